"""What FastMKA's moving averages cost: against two projections, and in a training step against GQA.

    python benchmarks/attention_scan.py [--tokens 4096 --width 1024 --repeats 7 --train-tokens 1024 --train-repeats 5
            --kv-heads 2]

CPU seconds of one thread, forward and backward, median and range of repeats taken in turn after one that is not
counted. "Mixed" is what FastMKA runs: the routed sum of keys, values and their averages at three horizons, without
forming them; "all levels" forms them. The model of the second table is a Llama of random weights, width 512, 4 layers,
8 query heads, vocabulary 256; it is trained on random bytes, since only time is asked for.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tenuto.attention import FastMKA, ShortConv, retrofit
from tenuto.attention.scan import ema_mix, ema_scan

HORIZONS, HEAD = 3, 64


def parts(tokens: int, width: int) -> dict[str, Callable[[], None]]:
    """Forward and backward of the projections of keys and values, and of the averages of both."""
    heads = width // HEAD
    project = [torch.nn.Linear(width, width, bias=False) for _ in range(2)]
    hidden = torch.randn(1, tokens, width, requires_grad=True)
    both = torch.randn(1, heads, tokens, 2 * HEAD, requires_grad=True)
    log_horizon = torch.linspace(1.4, 5.5, HORIZONS).repeat(heads, 1).requires_grad_()
    weight = torch.randn(1, heads, tokens, 1 + HORIZONS).softmax(-1).requires_grad_()
    number = torch.arange(tokens)[None]
    given = torch.randn(1, tokens, width), torch.randn_like(both), torch.randn(1, heads, HORIZONS, tokens, 2 * HEAD)

    def projections() -> None:
        torch.autograd.backward([layer(hidden) for layer in project], [given[0], given[0]])

    def mixed() -> None:
        ema_mix(both, log_horizon.exp(), number, weight)[0].backward(given[1])

    def levels() -> None:
        ema_scan(both, log_horizon.exp(), number)[0].backward(given[2])

    return {"K and V projections": projections, "averages, mixed": mixed, "averages, all levels": levels}


def models(tokens: int, kv_heads: int) -> dict[str, Callable[[], None]]:
    """A training step, optimiser included, of a small model with each attention."""
    ids = torch.randint(0, 256, (1, tokens))

    def step_of(attention: FastMKA | ShortConv | None) -> Callable[[], None]:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=256,
            hidden_size=512,
            intermediate_size=1376,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=kv_heads,
            max_position_embeddings=2 * tokens,
        )
        model = LlamaForCausalLM(config).train()
        if attention:
            model = retrofit(model, attention)
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)

        def step() -> None:
            optimiser.zero_grad()
            model(ids, labels=ids, use_cache=False).loss.backward()
            optimiser.step()

        return step

    return {"plain": step_of(None), "FastMKA": step_of(FastMKA(horizons=HORIZONS)), "ShortConv": step_of(ShortConv())}


def table(title: str, run: dict[str, Callable[[], None]], repeats: int, tokens: int) -> None:
    """CPU seconds of each, and their ratio to the first one's."""
    times: dict[str, list[float]] = {name: [] for name in run}
    for _ in range(1 + repeats):
        for name, once in run.items():
            start = time.process_time()
            once()
            times[name].append(time.process_time() - start)
    print(f"| {title} | CPU s (range) | tokens/s | time, of the first (range) |\n| --- | --- | --- | --- |")
    base = next(iter(times.values()))[1:]
    for name, found in times.items():
        ratios = [mine / other for mine, other in zip(found[1:], base, strict=True)]
        spans = [(statistics.median(x), min(x), max(x)) for x in (found[1:], ratios)]
        cells = [f"{middle:.3f} ({low:.3f} to {high:.3f})" for middle, low, high in spans]
        print(f"| {name} | {cells[0]} | {tokens / spans[0][0]:,.0f} | {cells[1]} |")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {
        "tokens": 4096,
        "width": 1024,
        "repeats": 7,
        "train_tokens": 1024,
        "train_repeats": 5,
        "kv_heads": 2,
    }.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    table(
        f"{given.tokens:,} tokens, width {given.width:,}", parts(given.tokens, given.width), given.repeats, given.tokens
    )
    table(
        f"training step, {given.train_tokens:,} tokens, {given.kv_heads} KV heads",
        models(given.train_tokens, given.kv_heads),
        given.train_repeats,
        given.train_tokens,
    )


if __name__ == "__main__":
    main()
