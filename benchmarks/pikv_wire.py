"""One decoding step's attention on two ranks: sending partial attention against moving keys and values.

    torchrun --nproc-per-node 2 benchmarks/pikv_wire.py [--context 32768 --heads 32 --kv-heads 4 --width 128]

Every rank holds half of the context. ``exchange``: attention over the half, one all-gather of (o, lse), merge.
``move``: the other half's keys and values come over the wire, attention over the whole. Interleaved, medians.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.distributed as dist

from tenuto.shards import open_mesh
from tenuto.shards.merge import Part, merge, pack, part, unpack
from tenuto.shards.mesh import Replicated


def exchanged(
    exchange: Replicated, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> tuple[Part, float, float]:
    """The result, seconds in all, and seconds of attention to this rank's half."""
    start = time.perf_counter()
    mine = part(query, keys, values, query.shape[-1] ** -0.5)
    local = time.perf_counter() - start
    got = exchange.combine(pack(mine, query.dtype)[None])
    whole = merge([unpack(one[0], query.shape[-1], query.dtype)[0] for one in got])
    return whole, time.perf_counter() - start, local


def moved(
    exchange: Replicated, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> tuple[Part, float, float]:
    """The result, seconds in all, and seconds of attention to the whole."""
    start = time.perf_counter()
    payload = torch.cat([keys.flatten(), values.flatten()]).view(torch.uint8)
    halves = [
        came.view(keys.dtype).view(2, *keys.shape)
        for _, came in exchange.visit(payload, [payload.numel()] * exchange.ranks)
    ]
    came = time.perf_counter()
    parts = [part(query, k, v, query.shape[-1] ** -0.5) for k, v in halves]
    whole = merge(parts)
    return whole, time.perf_counter() - start, time.perf_counter() - came


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, value in {"context": 32768, "heads": 32, "kv-heads": 4, "width": 128, "repeats": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    torch.set_num_threads(1)
    exchange = Replicated(open_mesh(2), timeout=120)
    made = torch.Generator().manual_seed(exchange.rank)
    query = torch.randn(given.heads, 1, given.width, generator=torch.Generator().manual_seed(7))
    keys, values = (torch.randn(given.kv_heads, given.context // 2, given.width, generator=made) for _ in (0, 1))
    times: dict[str, list[tuple[float, float]]] = {"exchange": [], "move": []}
    sent, gap = {"exchange": 0, "move": 0}, 0.0
    for repeat in range(given.repeats + 1):
        outputs = []
        for name, act in (("exchange", exchanged), ("move", moved)):
            before = exchange.traffic.bytes + exchange.traffic.prefill_bytes + exchange.traffic.moved_bytes
            dist.barrier()
            out, seconds, attending = act(exchange, query, keys, values)
            if repeat:  # the first warms up
                times[name].append((seconds, attending))
            outputs.append(out.output)
            after = exchange.traffic.bytes + exchange.traffic.prefill_bytes + exchange.traffic.moved_bytes
            sent[name] = after - before
        gap = max(gap, float((outputs[0] - outputs[1]).abs().max()))
    if exchange.rank == 0:
        print(f"context {given.context}, {given.heads}/{given.kv_heads} heads of {given.width}, float32, 2 ranks, gloo")
        print("| way | ms, median (least - most) | of it attention, ms | wire, ms | bytes sent per rank |")
        print("|---|---|---|---|---|")
        wire = {}
        for name, pairs in times.items():
            total, attending = [1e3 * a for a, _ in pairs], statistics.median(1e3 * b for _, b in pairs)
            wire[name] = statistics.median(1e3 * (a - b) for a, b in pairs)
            print(
                f"| {name} | {statistics.median(total):.1f} ({min(total):.1f} - {max(total):.1f}) | {attending:.1f} "
                f"| {wire[name]:.1f} | {sent[name]:,} |"
            )
        a, b = (statistics.median(seconds for seconds, _ in times[name]) for name in ("exchange", "move"))
        print(f"moving takes {b / a:.1f}x the time in all, {wire['move'] / wire['exchange']:.1f}x on the wire,")
        print(f"and sends {sent['move'] / sent['exchange']:.0f}x the bytes; outputs differ by {gap:.1e}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
