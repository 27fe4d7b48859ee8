"""Whether anything is left behind: many generations and pipeline runs, each in an attachment of its own.

    OMP_NUM_THREADS=1 python benchmarks/soak.py [--language 1000 --images 1000]

Each language run attaches a policy, with a store of prefixes on disk or in memory, writes a text and detaches; each
image run attaches a policy to a tiny pipeline, draws and detaches. Policies, prompts, lengths change from run to run.
After a tenth of the runs, and ten times more, resident memory, open files and threads are read. Prints a table; exits
with 1 where there are more files, threads or bytes of tensors at the end than at the first reading, or resident memory
grows by over 4 KiB a run.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import tenuto
from tenuto import catalog
from tenuto.testing.kv import TinyLM, tokens

GROWTH = 4096
"""Bytes per run that memory may grow by: an allocator's pages, and what Python interns; a tiny model has 300 KB."""
STEPS = 64
"""Bytes of tensors that may differ: a scheduler keeps the time steps of its last run, of which there are 4 to 6."""
KV = (
    "knorm",
    "snapkv:window=8",
    "streaming_llm",
    "adakv",
    "kivi:bits=4,group=16,residual=8",
    "quest",
    "kvzip:chunk=32",
)
FEATURES = ("every_n:n=2", "first_block:threshold=0.5", "taylorseer:interval=2", "every_n:n=2+adacorrection")


@dataclass(frozen=True)
class Reading:
    """After ``runs``: resident bytes, open files, threads, and bytes of all tensors that Python can reach."""

    runs: int
    resident: int
    files: int
    threads: int
    tensors: int = 0


def alive() -> int:
    """Bytes of the memory of all tensors that are there, each counted once."""
    tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor) and each.device.type == "cpu"]
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
    return sum(storages.values())


def reading(runs: int) -> Reading:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    files = len(os.listdir("/proc/self/fd"))
    return Reading(runs, pages * os.sysconf("SC_PAGESIZE"), files, threading.active_count(), alive())


@contextmanager
def language() -> Iterator[Callable[[int], None]]:
    """One text of a tiny language model per run, the same prompts again and again, so that prefixes are restored."""
    model = TinyLM()
    with tempfile.TemporaryDirectory() as folder:

        def run(number: int) -> None:
            policy = catalog.parse(KV[number % len(KV)], "kv")
            ids = tokens(90 + number % 7, number % 5)
            address = f"disk:{folder}?max=4MiB" if number % 2 else "host:?max=1MiB"
            store: Any = None if policy.name in ("quest",) else tenuto.PrefixStore(address, page=16)
            try:
                with tenuto.attach(model, policy, budget=tenuto.MemoryBudget.keep(0.5), store=store):
                    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
            finally:
                if store is not None:
                    store.close()

        yield run


@contextmanager
def images() -> Iterator[Callable[[int], None]]:
    """One picture of a tiny pipeline per run."""
    pipe = _pipeline()

    def run(number: int) -> None:
        with tenuto.attach(pipe, catalog.parse(FEATURES[number % len(FEATURES)], "diffusion")):
            generator = torch.Generator().manual_seed(number)
            pipe([number % 10], generator=generator, num_inference_steps=4 + number % 3, output_type="np")

    yield run


def _pipeline() -> Any:
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    small = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 4, "num_layers": 3}
    transformer = DiTTransformer2DModel(**small, sample_size=8, patch_size=1, num_embeds_ada_norm=1000)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=8)
    pipe = DiTPipeline(transformer, vae, DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


SOAKS = {"language": language, "images": images}


def soak(name: str, runs: int) -> list[Reading]:
    """Readings after a tenth of the runs, and after each tenth of the rest, the last included."""
    found = []
    with SOAKS[name]() as run:
        first = min(max(runs // 10, 2 * len(KV)), runs)  # each policy was there, with either store
        for number in range(runs):
            run(number)
            done = number + 1
            if done >= first and ((done - first) % max((runs - first) // 10, 1) == 0 or done == runs):
                found.append(reading(done))
    return found


def growth(readings: list[Reading]) -> float:
    """Bytes of memory a run, from the first reading to the last."""
    first, last = readings[0], readings[-1]
    return (last.resident - first.resident) / max(last.runs - first.runs, 1)


def flat(readings: list[Reading]) -> bool:
    """Whether nothing is left behind."""
    first, last = readings[0], readings[-1]
    fewer = last.files <= first.files and last.threads <= first.threads
    return fewer and last.tensors <= first.tensors + STEPS and growth(readings) <= GROWTH


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in SOAKS:
        parser.add_argument(f"--{name}", type=int, default=1000, help="runs; 0 for none")
    given, good = vars(parser.parse_args()), True
    torch.set_num_threads(1)
    for name, runs in given.items():
        if not runs:
            continue
        readings = soak(name, runs)
        print(f"| {name}: runs | resident MB | tensors MB | open files | threads |\n|---|---|---|---|---|")
        for one in readings:
            print(f"| {one.runs} | {one.resident / 1e6:.1f} | {one.tensors / 1e6:.3f} | {one.files} | {one.threads} |")
        print(f"\n{growth(readings):.0f} bytes a run; {'flat' if flat(readings) else 'NOT FLAT'}\n")
        good &= flat(readings)
    sys.exit(not good)


if __name__ == "__main__":
    main()
