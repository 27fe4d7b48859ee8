"""What a budget comes to: entries that fit into bytes, and entries that each row may hold in memory."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from tenuto.budget import MemoryBudget
from tenuto.errors import InputError
from tenuto.kv.entries import ROOM
from tenuto.kv.layer import KVLayer
from tenuto.kv.models import Layout
from tenuto.kv.policy import KVPolicy
from tenuto.kv.slots import SLACK
from tenuto.kv.step import Sequences

if TYPE_CHECKING:
    from tenuto.kv.cache import KVCache

__all__ = ["allowance", "entries", "kv_heads", "spare"]


def kv_heads(layout: Layout) -> int:
    """KV heads of all cached layers together."""
    return sum(spec.kv_heads for spec in layout.cached)


def entries(
    layout: Layout, policy: KVPolicy, size: int, shared: int = 0, fresh: float = float("inf"), weighted: bool = False
) -> int:
    """Entries per head that fit into ``size`` bytes of one row, everything counted that they bring along.

    Args:
        shared: bytes that entries encoded already share: eviction may leave all of them, one entry to a page.
        fresh: entries per head that are not encoded yet, or still to come until the next compression.
        weighted: whether entries carry count weights though the policy gives them none.
    """
    codec, free = policy.codec, policy.trigger.room("decode", 0, True)
    extra = 4 + 4 * policy.scorer.features + 4 * (policy.losers.weighs or weighted)
    plain = coded = paged = fixed = 0.0
    ragged = not policy.allocator.even  # blocks are not all full, and each is known three times, once for the longest
    room = 1 + ragged / SLACK
    for spec in layout.cached:
        plain += spec.kv_heads * (2 * spec.head_dim * layout.itemsize + extra + ragged * 4 * (2 + spec.kv_heads)) * room
        coded += spec.kv_heads * (codec.entry_bytes(spec.head_dim, layout.itemsize) + extra) if codec else 0.0
        paged += spec.kv_heads * codec.page_bytes(spec.head_dim, layout.itemsize) if codec else 0.0
        fixed += spec.kv_heads * policy.positioner.turned * spec.head_dim * layout.itemsize
        fixed += policy.decode_probes * (spec.heads * spec.head_dim * layout.itemsize + 8) if free is not None else 0
    left, slack = size - fixed, min(free or 0, ROOM)  # slots reserved beyond what is held
    if codec is None:
        count = int(left // plain)
        return count if count >= policy.floor + (free or 0) else count - slack
    whole, page = codec.residual + codec.page, codec.page  # entries that may have to stay in full precision

    def cost(count: int) -> float:
        older = max(count - whole, 0)
        scales = min(shared, older * paged) + min(older, fresh) * paged / page
        return (min(count, whole) + slack) * plain + older * coded + scales

    return bisect_right(range(int(max(left, 0) // coded) + whole), left, key=cost) - 1


def allowance(
    budget: MemoryBudget,
    policy: KVPolicy,
    layout: Layout,
    engine: Sequence[KVLayer],
    sequences: Sequences,
    *,
    coming: Sequence[int] | None = None,
    others: int = 0,
    new: int = 0,
    token_bytes: int = 4,
) -> list[int]:
    """Entries each row may hold, all heads of all layers together.

    Args:
        coming: tokens per row of a step that has not begun; new: tokens per row that layers do not hold yet.
        others: bytes of layers that slide; token_bytes: bytes per token beside its entries: position, padding
            or not, id.

    Raises:
        InputError: the budget cannot hold sinks and window.
    """
    seen = [s + c for s, c in zip(sequences.seen, coming or [0] * len(sequences.seen), strict=True)]
    heads = kv_heads(layout)
    if budget.kind == "keep":
        return [int(budget.amount * s + 1e-9) * heads for s in seen]
    if budget.kind == "tokens":
        return [int(budget.amount) * heads] * len(seen)
    spent = others + (sequences.columns + (0 if coming is None else new) + ROOM) * len(seen) * token_bytes
    spent += sum(_summaries(policy, layout, tokens) for tokens in seen)
    size, free = int(budget.amount - spent) // max(len(seen), 1), policy.trigger.room("decode", 0, True)
    counts = []
    for row in range(len(seen)):
        whole, shared = map(sum, zip(*[layer.stock(row) for layer in engine], strict=True))
        fresh = whole / heads + new + (free or 0)
        counts.append(entries(layout, policy, size, shared, fresh, engine[-1].weighted))
    if min(counts) < max(policy.floor, 1):
        raise InputError(
            f"The budget {budget} holds {max(min(counts), 0)} tokens per head of {len(seen)} rows, and the "
            f"policy keeps at least {max(policy.floor, 1)} (sinks and window). Give a larger budget."
        )
    return [count * heads for count in counts]


def _summaries(policy: KVPolicy, layout: Layout, tokens: int) -> int:
    """Bytes that stay in memory of so many tokens' pages at most, beside the hot set."""
    if policy.index is None:
        return 0
    size = 0
    for spec in layout.cached:
        empty = torch.zeros(spec.kv_heads, policy.index.page, spec.head_dim, dtype=layout.dtype)
        made = policy.index.summarise(empty)
        pages = -(-tokens // policy.index.page)
        size += pages * sum(tensor.nbytes for tensor in made.values()) + 4 * tokens
        size += 3 * spec.heads * spec.head_dim * 4  # the queries pages were chosen for, their prediction, its error
    return size


def spare(cache: KVCache, free: int | None, counts: Sequence[int]) -> int:
    """Slots to grow by beyond the new one, in a decoding step of so many tokens per row.

    A divisor of what the trigger leaves ``free``, so that the budget is met; while it has let go of nothing, no more
    than fit into a budget in bytes.
    """
    if free is None:
        return ROOM - 1
    slots = max(n for n in range(1, ROOM + 1) if max(free, 1) % n == 0) - 1
    if not slots or cache.budget.kind != "bytes" or not cache.sequences.columns:
        return slots
    held = [sum(map(sum, rows)) for rows in zip(*cache.counts(), strict=True)]
    left = [total - mine for total, mine in zip(cache._totals(counts, 1), held, strict=True)]
    return max(min(slots, min(left) // kv_heads(cache.layout) - 1), 0)
