"""PiAttention: do its backends agree, how fast are they, and which distances does a fixed stride leave out?

    python benchmarks/pi_attention.py agreement [--compile]
    python benchmarks/pi_attention.py speed [--tokens 4096 --repeats 5]
    python benchmarks/pi_attention.py decode
    python benchmarks/pi_attention.py blind
    python benchmarks/pi_attention.py needle [--steps 600]

Prints Markdown. One thread; timings are interleaved, median of the repeats, so that a busy machine slows all alike.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

import torch
from torch.nn.attention import flex_attention
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from tqdm import trange
from transformers import LlamaConfig, LlamaForCausalLM

from tenuto.attention import PiAttention, pi_backends, retrofit
from tenuto.attention.coverage import by_residue, reachable
from tenuto.attention.pi_backends import dense, flex, step
from tenuto.attention.pi_pattern import Pattern
from tenuto.attention.pi_reshape import reshape

FAST = [
    PiAttention(window=256, stride=64),
    PiAttention(window=256, stride=128),
    PiAttention(window=256, stride=256),
    PiAttention(window=256, stride=64, coprime=True),
    PiAttention(window=256, stride=64, variant="log"),
    PiAttention(window=256, stride=64, last=8),
]
SMALL = [
    PiAttention(window=8, stride=3),
    PiAttention(window=5, stride=7, coprime=True, phases=True),
    PiAttention(window=64, stride=16),
    PiAttention(window=6, stride=4, last=3),
    PiAttention(window=5, stride=9, variant="single"),
    PiAttention(window=3, stride=4, variant="log"),
]
BLIND = [
    PiAttention(window=4, stride=16, sinks=0),
    PiAttention(window=4, stride=16, sinks=0, phases=True),
    PiAttention(window=4, stride=16, sinks=0, coprime=True),
]
VALUES, FILLERS, LENGTH, BATCH = 16, 32, 81, 32


def table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> None:
    for cells in [head, ["---"] * len(head), *rows]:
        print(f"| {' | '.join(map(str, cells))} |")


def inputs(length: int, heads: int = 8, kv_heads: int = 8, width: int = 64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = [(1, heads, length, width), (1, kv_heads, length, width), (1, kv_heads, length, width), (1, heads, length)]
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def agreement(compiled: bool) -> None:
    """The largest difference from the reference, of outputs and gradients."""
    if not compiled:
        flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = True
        pi_backends._compiled = lambda: flex_attention.flex_attention
    rows = []
    for attention in SMALL:
        worst = [0.0, 0.0, 0.0]
        for length in (1, 61, 257, 301):
            given, pattern = inputs(length, 6, 2, 16), attention.pattern(6)
            ours, theirs = (backend(*given, pattern, 0.25)[0] for backend in (reshape, dense))
            weight = torch.randn_like(ours)
            grads = zip(
                torch.autograd.grad(ours, given, weight), torch.autograd.grad(theirs, given, weight), strict=True
            )
            with torch.no_grad():
                third = flex(*(x.detach() for x in given), pattern, 0.25)[0]
            found = (
                (ours - theirs).abs().max(),
                max((a - b).abs().max() for a, b in grads),
                (third - theirs).abs().max(),
            )
            worst = [max(a, b.item()) for a, b in zip(worst, found, strict=True)]
        rows.append([f"`{attention}`", *(f"{value:.1e}" for value in worst)])
    table(["pattern", "reshape, outputs", "reshape, gradients", f"flex{', compiled' if compiled else ''}"], rows)


def interleaved(functions: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 1):
        for found, function in zip(times, functions, strict=True):
            start = time.perf_counter()
            function()
            if repeat:
                found.append(time.perf_counter() - start)
    return [median(found) for found in times]


def speed(length: int, repeats: int) -> None:
    """Forward and backward against dense causal attention: 8 heads of 64 channels, one row, float32."""
    given = inputs(length)

    def run(pattern: Pattern | None, backward: bool) -> Callable[[], object]:
        def once() -> None:
            with torch.set_grad_enabled(backward):
                if pattern is None:
                    out = scaled_dot_product_attention(*given[:3], is_causal=True)
                else:
                    out = reshape(*given, pattern, given[0].shape[-1] ** -0.5)[0]
            if backward:
                torch.autograd.grad(out.sum(), given if pattern else given[:3])

        return once

    patterns = [None, *(attention.pattern(8) for attention in FAST)]
    both = interleaved([run(pattern, True) for pattern in patterns], repeats)
    ahead = interleaved([run(pattern, False) for pattern in patterns], repeats)
    rows = []
    for name, forward, all_ in zip(["dense causal SDPA", *(f"`{a}`" for a in FAST)], ahead, both, strict=True):
        ratios = f"{ahead[0] / forward:.1f}x", f"{both[0] / all_:.1f}x"
        rows.append([name, f"{1000 * forward:.0f}", ratios[0], f"{1000 * all_:.0f}", ratios[1]])
    print(f"{length} tokens, {torch.get_num_threads()} thread:")
    table(["attention", "forward ms", "faster", "forward + backward ms", "faster"], rows)


def decode(repeats: int) -> None:
    """One query against a cache: the layer's attention alone, 8 heads on 8 key heads."""
    rows = []
    for length in (1024, 4096, 16384, 32768):
        given = [x.detach() for x in inputs(length)]
        q, bias = given[0][:, :, -1:], given[3][:, :, -1:]
        at, first = torch.arange(length)[None], torch.arange(4)[None]
        functions: list[Callable[[], object]] = [lambda q=q, g=given: scaled_dot_product_attention(q, g[1], g[2])]
        for attention in FAST:
            pattern = attention.pattern(8)
            rest = (bias, pattern, 0.125, (at[:, -1:], at), first)
            functions.append(lambda q=q, g=given, rest=rest: step(q, g[1], g[2], *rest))
        with torch.no_grad():
            found = interleaved(functions, 4 * repeats)
        rows.append([length, *(f"{1000 * value:.2f}" for value in found)])
    table(["tokens held", "all keys ms", *(f"`{attention}` ms" for attention in FAST)], rows)


def tiny(attention: PiAttention | None, layers: int = 2) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VALUES + FILLERS,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
    )
    model = LlamaForCausalLM(config)
    return (
        model if attention is None else retrofit(model, replace(attention, backend="dense"))
    )  # quick where it is short


def blind() -> None:
    """Per remainder of the distance: the share of distances that reach the last token, computed and by gradient."""
    for layers in (1, 2, 3):
        rows = []
        for attention in BLIND:
            bits = reachable([attention.pattern(4, layer) for layer in range(layers)], LENGTH)[-1]
            model = tiny(attention, layers)
            ids = torch.randint(VALUES + FILLERS, (1, LENGTH), generator=torch.Generator().manual_seed(0))
            embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
            model(inputs_embeds=embedded, use_cache=False).logits[0, -1].square().sum().backward()
            moved = (embedded.grad[0].abs().sum(-1).flip(0) > 0).tolist()
            same = all(flag == bool(bits >> distance & 1) for distance, flag in enumerate(moved))
            shares = by_residue(bits, attention.stride, LENGTH)
            rows.append([f"`{attention}`", f"{bits.bit_count()}", *(f"{share:.0%}" for share in shares), same])
        print(f"\n{layers} layers, {LENGTH} distances, by distance modulo {BLIND[0].stride}:\n")
        table(["pattern", "reached", *range(BLIND[0].stride), "gradients agree"], rows)


def haystack(rows: int, distances: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of fillers with one value at a distance from the end; to be told at every token from there on."""
    ids = VALUES + torch.randint(FILLERS, (rows, LENGTH), generator=generator)
    values = torch.randint(VALUES, (rows, 1), generator=generator)
    ids.scatter_(1, LENGTH - 1 - distances[:, None], values)
    told = torch.arange(LENGTH) >= LENGTH - 1 - distances[:, None]
    return ids, torch.where(told, values, -100)


def needle(steps: int) -> None:
    """Two layers trained to tell the one value that was seen: recall at the last token, chance 1/16."""
    rows, stride = [], BLIND[0].stride
    for attention in (None, *BLIND):
        model, generator = tiny(attention), torch.Generator().manual_seed(1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        for _ in (bar := trange(steps, desc=str(attention), leave=False)):
            ids, values = haystack(BATCH, torch.randint(1, LENGTH, (BATCH,), generator=generator), generator)
            loss = cross_entropy(model(ids, use_cache=False).logits.flatten(0, 1), values.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
            bar.set_postfix(loss=f"{loss.item():.2f}")
        right = torch.zeros(LENGTH)
        with torch.no_grad():
            for _ in range(16):
                ids, values = haystack(LENGTH - 1, torch.arange(1, LENGTH), generator)
                right[1:] += (model(ids, use_cache=False).logits[:, -1].argmax(-1) == values[:, -1]) / 16
        found = [right[stride + residue :: stride].mean() for residue in range(stride)]
        name = f"`{attention or 'all keys'}`"
        rows.append([name, *(f"{value:.0%}" for value in found), f"{right[stride:].mean():.0%}"])
    print(
        f"Recall of a needle {stride} to {LENGTH - 1} tokens back, by distance modulo {stride}, after {steps} steps:\n"
    )
    table(["attention", *range(stride), "all"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["agreement", "speed", "decode", "blind", "needle"])
    parser.add_argument("--compile", action="store_true", help="agreement: compile FlexAttention, a minute a pattern")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.part == "agreement":
        agreement(args.compile)
    elif args.part == "speed":
        speed(args.tokens, args.repeats)
    elif args.part == "decode":
        decode(args.repeats)
    elif args.part == "blind":
        blind()
    else:
        needle(args.steps)


if __name__ == "__main__":
    main()
