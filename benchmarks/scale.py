"""What caching costs and saves at real sizes: architectures as published, random weights.

    python benchmarks/scale.py [--model dit-xl-2,pixart-sigma-512,flux --policies fastcache --repeats 5 --steps 11]

Per model and policy one line: the cost of an attached but closed gate (attached / plain, median and range of pairs
taken in turn), and at high reuse (every fifth step computed) the speed-up by the clock beside that by executed
operations, and the bytes the cache holds. On a processor the clock is CPU seconds of one thread, on an accelerator wall
clock. Weights are random, so the maps of FastCache are too: this is about cost, not about pictures. ``flux`` has 2 of
19 double and 4 of 38 single blocks at full width, 1,024 image and 512 text tokens.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, FluxTransformer2DModel, PixArtTransformer2DModel

import tenuto
from tenuto.calibration import Profile, fingerprint
from tenuto.diffusion.gate import RATES
from tenuto.diffusion.ladder import packed
from tenuto.diffusion.models import find_denoisers
from tenuto.diffusion.policy import FeaturePolicy

EVERY = 5


@dataclass(frozen=True)
class Case:
    """A model, its inputs but for the timestep, and its width."""

    module: torch.nn.Module
    inputs: dict[str, Any]
    width: int


def dit() -> Case:
    shape = {"num_attention_heads": 16, "attention_head_dim": 72, "num_layers": 28, "sample_size": 32, "patch_size": 2}
    model = DiTTransformer2DModel(in_channels=4, out_channels=8, num_embeds_ada_norm=1000, **shape)
    return Case(model, {"hidden_states": torch.randn(2, 4, 32, 32), "class_labels": torch.tensor([1, 1000])}, 1152)


def pixart() -> Case:
    model = PixArtTransformer2DModel(
        sample_size=64, num_layers=28, interpolation_scale=1, use_additional_conditions=False
    )
    inputs = {
        "hidden_states": torch.randn(2, 4, 64, 64),
        "encoder_hidden_states": torch.randn(2, 300, 4096),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    return Case(model, inputs, 1152)


def flux() -> Case:
    model = FluxTransformer2DModel(num_layers=2, num_single_layers=4, guidance_embeds=True)
    rows = torch.stack(torch.meshgrid(torch.zeros(1), torch.arange(32.0), torch.arange(32.0), indexing="ij"), -1)
    inputs = {
        "hidden_states": torch.randn(1, 1024, 64),
        "encoder_hidden_states": torch.randn(1, 512, 4096),
        "pooled_projections": torch.randn(1, 768),
        "img_ids": rows.reshape(-1, 3),
        "txt_ids": torch.zeros(512, 3),
        "guidance": torch.full((1,), 3.5),
    }
    return Case(model, inputs, 3072)


CASES: dict[str, Callable[[], Case]] = {"dit-xl-2": dit, "pixart-sigma-512": pixart, "flux": flux}


def fastcache_profile(case: Case, reuse: bool) -> Profile:
    """Random low-rank maps, and a gate that always (or never) passes."""
    layout = find_denoisers(case.module)[0]
    streams, cells = 1 + ("encoder_hidden_states" in case.inputs and case.width == 3072), {}
    for span in range(len(layout.lists)):
        for stream in range(streams):
            for gap in range(1, EVERY):
                down, up = torch.randn(3 * case.width + 1, 64) * 1e-3, torch.randn(64, case.width) * 1e-3
                cells[span, stream, 0, gap] = (down, up)
    tensors, index = packed(cells)
    limits = (0.0, 1.0, 0.0) if reuse else (1e9, 1.0, 1e9)
    numbers = {
        "span": 0,
        "longest": EVERY - 1,
        "rung": "low_rank",
        "timesteps": list(range(1000, 0, -1)),
        "bins": 1,
        "cells": index,
        "gates": [[[limits] * (EVERY - 1)] * 1000] * len(layout.lists),
        "levels": list(RATES),
    }
    return Profile(policy="fastcache", fingerprint=fingerprint(case.module), numbers=numbers, tensors=tensors)


def policies(case: Case) -> dict[str, tuple[FeaturePolicy, FeaturePolicy, bool]]:
    """Name -> the policy closed, the same at high reuse, and whether it needs a profile."""
    return {
        "every_n": (tenuto.EveryN(n=1), tenuto.EveryN(n=EVERY), False),
        "first_block": (tenuto.FirstBlock(threshold=0.0), tenuto.FirstBlock(threshold=1e9), False),
        "taylorseer": (tenuto.TaylorSeer(interval=1), tenuto.TaylorSeer(interval=EVERY, warmup=1), False),
        "fastcache": (
            tenuto.FastCache(rtol=0.1, longest=EVERY - 1, warmup=1),
            tenuto.FastCache(rtol=0.1, longest=EVERY - 1, warmup=1),
            True,
        ),
    }


@torch.no_grad()
def clock(case: Case, module: torch.nn.Module, timestep: float) -> float:
    """Seconds of one denoiser call on hidden states of its own, so that no gate sees an input that stands still."""
    device = next(module.parameters()).device
    on_cpu = device.type == "cpu"
    now = time.process_time if on_cpu else time.perf_counter
    count = len(case.inputs["hidden_states"])
    scale = 1000.0 if "img_ids" in case.inputs else 1.0
    inputs = {**case.inputs, "hidden_states": torch.randn_like(case.inputs["hidden_states"])}
    given = torch.full((count,), timestep / scale, device=device)
    if not on_cpu:
        torch.accelerator.synchronize(device)
    start = now()
    module(timestep=given, **inputs, return_dict=False)
    if not on_cpu:
        torch.accelerator.synchronize(device)
    return now() - start


def measure(case: Case, twin: torch.nn.Module, name: str, repeats: int, steps: int) -> str:
    closed, strong, profiled = policies(case)[name]
    pairs = []
    with tenuto.attach(case.module, closed, profile=fastcache_profile(case, False) if profiled else None) as run:
        clock(case, case.module, 1000.0)  # the first call counts operations
        for repeat in range(repeats):
            order = (case.module, twin) if repeat % 2 else (twin, case.module)
            seconds = {chosen is twin: clock(case, chosen, 999.0 - repeat) for chosen in order}
            pairs.append(seconds[False] / seconds[True])
        if run.telemetry.reuse_ratio:
            raise SystemExit(f"{name} reused although its gate is closed")
    with tenuto.attach(case.module, strong, profile=fastcache_profile(case, True) if profiled else None) as run:
        clock(case, case.module, 1000.0)
        run.reset()
        book = run.telemetry
        book.flops = book.full_flops = 0.0
        cached = sum(clock(case, case.module, 999.0 - step) for step in range(steps))
        plain = statistics.median(clock(case, twin, 999.0 - step) for step in range(3)) * steps
    by_clock, by_flops = plain / cached, book.flops_speedup or 1.0
    return (
        f"| {name} | {statistics.median(pairs):.3f} ({min(pairs):.3f} to {max(pairs):.3f}) | {by_clock:.2f} | "
        f"{by_flops:.2f} | {by_clock / by_flops:.0%} | {book.peak_cache_bytes / 2**20:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=",".join(CASES))
    parser.add_argument("--policies", help="only these, separated by commas")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=11)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="compile the blocks")
    args = parser.parse_args()
    if args.device == "cpu":
        torch.set_num_threads(1)
    for name in args.model.split(","):
        case = CASES[name]()
        dtype = getattr(torch, args.dtype)
        case.module.eval().to(args.device, dtype)
        for key, value in case.inputs.items():
            if isinstance(value, torch.Tensor):
                case.inputs[key] = value.to(args.device, dtype if value.is_floating_point() else value.dtype)
        if args.compile:
            case.module.compile_repeated_blocks()
        twin = deepcopy(case.module)  # stays plain, so that both can take turns
        clock(case, twin, 1000.0)
        print(f"\n{name}, {args.dtype}, {args.device}\n")
        print("| policy | closed gate: attached / plain | speed-up | by operations | of it | cache MiB |")
        print("|---|---|---|---|---|---|")
        for policy in args.policies.split(",") if args.policies else policies(case):
            print(measure(case, twin, policy, args.repeats, args.steps), flush=True)


if __name__ == "__main__":
    main()
