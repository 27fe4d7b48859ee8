"""Decoding in batches: CPU seconds per token and operations per layer, over those of transformers' DynamicCache.

    python benchmarks/kv_decode.py --shape smollm2 --batch 1,4,16 --padded
    python benchmarks/kv_decode.py --shape llama8b --layers 2 --batch 16 --context 4096 --policies knorm adakv

One thread, random weights; all rows of a table are measured in turn, so many tokens each, round after round, and the
median of the rounds is printed. kvpress has no row where a batch is padded: it takes no padding.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from tenuto import catalog
from tenuto.budget import MemoryBudget
from tenuto.kv.attach import attach

SHAPES = {"smollm2": (576, 9, 3, 64), "llama8b": (4096, 32, 8, 128), "small": (512, 8, 4, 64)}
"""Width, query heads, KV heads and channels of a head."""
POLICIES = ("knorm:0.25", "snapkv:0.25", "streaming_llm:0.25", "adakv:0.25", "kvzip:0.25", "h2o:0.25", "kivi,bits=4:1")
PLAIN = "DynamicCache"


class Operations(TorchDispatchMode):
    """Counts what is dispatched, views too."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += 1
        return func(*args, **(kwargs or {}))


class Decoding:
    """One row of the table: a cache after a prompt, that decodes on.

    Args:
        name: ``DynamicCache``, or a policy with what it keeps, as ``kivi,bits=4:1``.
    """

    def __init__(self, model: Any, name: str, prompt: torch.Tensor, mask: torch.Tensor) -> None:
        self.model, self.name, self.mask = model, name, mask
        self.seconds: list[float] = []
        self.operations = 0.0
        with self.attached() as run:
            self.cache: Any = DynamicCache(config=model.config) if run is None else run.cache()
            where = (mask.cumsum(-1) - 1).clamp(min=0)
            model(prompt, attention_mask=mask, position_ids=where, past_key_values=self.cache, logits_to_keep=1)

    @contextmanager
    def attached(self) -> Iterator[Any]:
        method, _, keep = self.name.rpartition(":")
        policy = catalog.parse(method.replace(",", ":", 1), "kv") if method else None
        budget = MemoryBudget.keep(float(keep)) if method else None
        with attach(self.model, policy, budget=budget) if policy and budget else nullcontext() as run:  # type: ignore[arg-type]
            yield run

    def decode(self, steps: int) -> None:
        """So many tokens; the first of them is not timed."""
        with self.attached():
            self.step()
            start = time.process_time()
            for _ in range(steps):
                self.step()
            self.seconds.append((time.process_time() - start) / steps)

    def count(self, steps: int) -> None:
        """Operations per token and layer."""
        with self.attached(), Operations() as counted:
            for _ in range(steps):
                self.step()
        self.operations = counted.seen / steps / self.model.config.num_hidden_layers

    def step(self) -> None:
        rows = len(self.mask)
        self.mask = torch.cat([self.mask, self.mask.new_ones(rows, 1)], 1)
        ids, where = self.mask.new_full((rows, 1), 7), self.mask.sum(-1, keepdim=True) - 1
        self.model(ids, attention_mask=self.mask, position_ids=where, past_key_values=self.cache)


def model_of(shape: str, layers: int) -> Any:
    width, heads, kv_heads, channels = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=channels,
        max_position_embeddings=16384,
        initializer_range=0.05,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def table(given: argparse.Namespace, batch: int) -> None:
    """Measure and print the rows of one batch size."""
    model = model_of(given.shape, given.layers)
    prompt = torch.randint(1, 97, (batch, given.context), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(prompt)
    for row in range(1, batch) if given.padded else ():
        mask[row, : given.context // 2 * row // batch] = 0
    rows = [Decoding(model, name, prompt * mask, mask) for name in (PLAIN, *given.policies)]
    for _ in range(given.rounds):
        for row in rows:
            row.decode(given.steps)
    for row in rows:
        row.count(32)
    plain = statistics.median(rows[0].seconds)
    print(f"\n{given.shape}, {given.layers} layers, batch {batch}, context {given.context}, padded: {given.padded}")
    for row in rows:
        seconds = statistics.median(row.seconds)
        operations = f"{row.operations:6.0f} operations per layer ({row.operations / rows[0].operations:.2f})"
        print(f"{row.name:22}{1e3 * seconds:9.2f} ms per token ({seconds / plain:.2f}) {operations}")


def main() -> None:
    """Print a table per batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--batch", default="1,4,16")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--padded", action="store_true", help="rows of half the context and more")
    parser.add_argument("--steps", type=int, default=8, help="tokens per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--policies", nargs="*", default=POLICIES, help="each with what it keeps: knorm:0.25")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for batch in given.batch.split(","):
        table(given, int(batch))


if __name__ == "__main__":
    main()
