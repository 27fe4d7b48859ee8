"""One compression of all layers: by themselves, or together where an allocator must see the scores of all."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tenuto.kv.compress import plan
from tenuto.kv.layer import KVLayer
from tenuto.kv.policy import KVPolicy

__all__ = ["compress_all", "joint"]


def joint(policy: KVPolicy) -> bool:
    """Whether layers must wait for each other."""
    return policy.allocator.joint or policy.scorer.observes == "replay"


@torch.no_grad()
def compress_all(
    policy: KVPolicy, layers: Sequence[KVLayer], totals: Sequence[int | None], decoding: bool = False
) -> None:
    """Compress rows to ``totals`` entries each, all heads of all layers together; None leaves a row as it is.

    While ``decoding``, what is reserved stays so, and where the policy allows all rows are compressed in one go.
    """
    share = [None if total is None else total // len(layers) for total in totals]
    if decoding and all(layer.thin(share) for layer in layers):
        return
    each = [0 if total is None else total // len(layers) for total in totals]
    counts = layers[0].counts()
    rows = [
        row
        for row, total in enumerate(totals)
        if total is not None and max(counts[row]) and not _unasked(policy, layers, row, total)  # one may be all padding
    ]
    if policy.index is not None:
        for layer in layers:
            layer.page_out(each)
    elif joint(policy):
        views = {row: [layer.look(row) for layer in layers] for row in rows}
        plans = {row: plan(policy, views[row], totals[row] or 0) for row in rows}
        for number, layer in enumerate(layers):
            layer.keep({row: (views[row][number], plans[row][number]) for row in rows})
    else:
        for layer in layers:
            layer.compress([[layer.look(row)] if row in rows else None for row in range(len(totals))], each)


def _unasked(policy: KVPolicy, layers: Sequence[KVLayer], row: int, total: int) -> bool:
    """Whether a row is within its budget and has had no query since it was judged last: it got padding alone."""
    if not policy.scorer.probes or len(layers[0].probes[row].index):
        return False
    return sum(sum(layer.counts()[row]) for layer in layers) <= total
