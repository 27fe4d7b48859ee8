"""MKA: three levels of memory in one softmax: the last tokens, a summary of every older chunk, and recalled chunks.

Memory-Keyed Attention (https://arxiv.org/abs/2603.20586) names three levels, local, session and long-term, and a
learned router between them. Its public code has no long-term level, restarts its memory at every call, and holds as
many bytes as plain attention. Here each level holds less than what it stands for, and the cache carries it all along:

    local      the first ``sinks`` tokens and a sliding window; the window begins at a chunk, so it is ``window`` to
               ``window + chunk - 1`` tokens long and nothing falls between it and the summaries
    session    one learned pooled key and value per chunk that has left the window, ``kbar = sum_t a_t k_t``,
               ``a = softmax_t(u k_t + p_t)``; and, over these, running means at ``horizons`` learned decays
    long-term  the ``recall`` chunks whose summaries answer the query best, in full, from an archive on the host, on
               disk or on a server, there quantised if asked (:func:`keep_far`); their summaries then stand back

All of it is one softmax, with a learned bias per head and level and a learned term in the query, ``b + w q``: that
is the router, and it decides per query. With ``recall`` enough for all chunks, original positions and no running means
it is full attention; without session and recall the window; a text within the window is plain attention.

Positions: with ``original=false`` whatever has left the window is attended to as if it stood at the window's edge
(unrotated keys under a query rotated by ``window``), so that no distance appears which training did not have. With
``original=true`` recalled tokens keep their positions, and a summary has that of its chunk's last token.

What it does not do: the archive holds every token, on a cheaper tier (``recall=0`` has none), and a summary stays per
chunk. Gradients do not reach the archive of a cache, only that of a whole sequence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import torch
from torch import nn

from tenuto.attention.archive import SLAB, Archive, InCall, InMemory, InTier, chosen_from
from tenuto.attention.columns import chunks_of, first_tokens, joined, last, placed
from tenuto.attention.levels import LevelMix, MKALevel, mix
from tenuto.attention.policy import Attention, AttentionCall, Claim, Heads, Paper, Shape, State
from tenuto.errors import AttachError, PolicyError
from tenuto.tiers.address import open_levels

__all__ = ["MKA", "MKAHeads", "MKAState", "keep_far"]

BLOCK = 128  # queries that are attended to at a time
NEVER = -math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class MKA(Attention):
    """Multi-level attention.

    Attributes:
        window: tokens at least that a query sees in full.
        sinks: first tokens that stay.
        chunk: tokens to a summary.
        recall: chunks that a query sees in full per KV head, 0: no long-term level.
        horizons: running means over summaries, of 4, 16, 64, ... chunks at first.
        session: whether there are summaries.
        crowd: summaries that add up, as many as training rows have; of more, each weighs less. 0: any number adds up.
        start: what a recalled token, a mean and a summary weigh at first beside a token of the window, so that a model
            learns from near to far. 0: 1, 1 and ``chunk``, as in full attention, for a model that is trained already.
        original: positions of what has left the window, see above.

    Raises:
        PolicyError: a number out of its range, or running means with original positions or without summaries.
    """

    window: int = 256
    sinks: int = 4
    chunk: int = 32
    recall: int = 4
    horizons: int = 2
    session: bool = True
    crowd: int = 0
    start: float = 0.0
    original: bool = False

    paper: ClassVar[Paper] = Paper(
        "MKA: Memory-Keyed Attention for Efficient Long-Context Reasoning",
        "Dong Liu, Yanxuan Yu, Ben Lengerich, Ying Nian Wu",
        2026,
        "https://arxiv.org/abs/2603.20586",
    )
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim("perplexity, multi-head attention 2.54", "2.41 to 2.43", "GPT-2 124M, WikiText-2", "MKA-Design's README"),
    )
    trials: ClassVar[tuple[str, ...]] = (
        "mka:window=9,sinks=2,chunk=4,recall=2",
        "mka:window=8,sinks=0,chunk=5,recall=3,horizons=0,original=true",
        "mka:window=6,sinks=1,chunk=3,recall=0,horizons=3,crowd=4",
        "mka:window=7,sinks=2,chunk=4,recall=2,horizons=0,session=false",
    )

    def __post_init__(self) -> None:
        others = (self.sinks, self.recall, self.horizons, self.crowd, self.start)
        if min(self.window, self.chunk) < 1 or min(others) < 0 or self.start > 1:
            raise PolicyError(
                f"{self} is not allowed: window and chunk are 1 or more, start 0 to 1, the others 0 or more."
            )
        if self.horizons and (self.original or not self.session):
            raise PolicyError(f"{self}: running means need summaries without positions. Give horizons=0 with it.")

    def build(self, shape: Shape) -> MKAHeads:
        """The module for one layer; numbers that could never come into play in the model's context are refused."""
        room = shape.context - self.sinks - self.window
        if room < 0:
            raise PolicyError(
                f"window={self.window} and sinks={self.sinks} are longer than the model's context of {shape.context}. "
                "Give less."
            )
        if self.recall * self.chunk > room:
            raise PolicyError(
                f"recall={self.recall} chunks of {self.chunk} are more than can leave a window of {self.window} in a "
                f"context of {shape.context}: {room // self.chunk}. Give less."
            )
        return MKAHeads(self, shape)


@dataclass(slots=True, eq=False)
class MKAState(State):
    """One layer's memory.

    Attributes:
        sink_k, sink_v: rotated, ``[batch, kv_heads, sinks, head_dim]``; k, v: of the last columns, rotated.
        plain_k: of the last columns, not rotated, as far as an open chunk can reach.
        sum_k, sum_v: summaries by number ``[batch, kv_heads, chunks, head_dim]``; archive: of their chunks.
    """

    sink_k: torch.Tensor | None = None
    sink_v: torch.Tensor | None = None
    k: torch.Tensor | None = None
    v: torch.Tensor | None = None
    plain_k: torch.Tensor | None = None
    sum_k: torch.Tensor | None = None
    sum_v: torch.Tensor | None = None
    archive: Archive | None = None

    def select(self, rows: torch.Tensor) -> None:
        """See :class:`State`."""
        State.select(self, rows)
        if self.archive is not None and self.sum_k is not None:
            self.archive.select(rows)

    def copied(self) -> Self:
        """See :class:`State`."""
        other = State.copied(self)
        other.archive = None if self.archive is None else self.archive.copied()
        return other

    def held(self) -> dict[str, int]:
        """See :class:`State`."""
        below = self.archive.held() if self.archive is not None and self.sum_k is not None else {}
        return State.held(self) | below


class MKAHeads(Heads):
    """MKA's attention of one layer.

    Parameters, zero at first but where said: ``pool_key`` u and ``pool_place`` p per KV head; ``bias`` b per head of
    session, means and recalled: see ``start``; ``route`` w per head and level;
    ``decay``, the logarithm of the horizons in chunks.
    """

    def __init__(self, attention: MKA, shape: Shape) -> None:
        super().__init__()
        self.attention, self.shape = attention, shape
        self.shelf: Callable[[], Archive] = InMemory
        if attention.session or attention.recall:
            learned = attention.session  # recall alone chooses by the mean key, which no gradient reaches
            self.pool_key = nn.Parameter(torch.zeros(shape.kv_heads, shape.head_dim), requires_grad=learned)
            self.pool_place = nn.Parameter(torch.zeros(shape.kv_heads, attention.chunk), requires_grad=learned)
            bias = torch.full((3, shape.heads), math.log(attention.start or 1.0))
            if not attention.start:
                bias[0] = math.log(attention.chunk)
            used = [attention.session, attention.horizons > 0, attention.recall > 0]
            self.rows = {name: sum(used[:i]) for i, name in enumerate(("session", "means", "recalled")) if used[i]}
            self.bias = nn.Parameter(bias[torch.tensor(used)])
            self.route = nn.Parameter(torch.zeros(sum(used), shape.heads, shape.head_dim))
        if attention.horizons:
            start = torch.arange(1, attention.horizons + 1) * math.log(4.0)
            self.decay = nn.Parameter(start.expand(shape.kv_heads, -1).clone())

    def state(self) -> MKAState:
        """An empty state."""
        return MKAState()

    @property
    def reach(self) -> int:
        """Columns before a query that its window may need."""
        return self.attention.window + self.attention.chunk - 2

    def formula(self, tokens: int, itemsize: int) -> dict[str, int]:
        """Device: ``2 kv_heads head_dim itemsize`` times ``sinks + min(tokens, window + chunk - 2)`` raw tokens,
        ``min(tokens, chunk - 1) / 2`` keys of the open chunk and ``(tokens - sinks) // chunk`` summaries. Host: the
        chunks in full, in steps of 64."""
        a, entry = self.attention, 2 * self.shape.kv_heads * self.shape.head_dim * itemsize
        closed = max(tokens - a.sinks, 0) // a.chunk
        raw = a.sinks + min(tokens, self.reach)
        if not (a.session or a.recall):
            return {"device": entry * raw}
        device = entry * (raw + closed) + entry // 2 * min(tokens, a.chunk - 1)
        host = entry * a.chunk * -(-closed // SLAB) * SLAB
        return {"device": device} | ({"host": host} if a.recall and closed else {})

    def forward(self, call: AttentionCall, state: State | None) -> torch.Tensor:
        """See :class:`Heads`."""
        past = cast(MKAState, state) if state is not None else MKAState()
        q, k = call.normalise(call.q, call.k)
        q_near, k_near = call.rotate(q, call.number), call.rotate(k, call.number)
        new = k.shape[2]
        view = _View(
            keys=joined(past.k, k_near),
            values=joined(past.v, call.v),
            sink_k=first_tokens(past.sink_k, k_near, call.number, self.attention.sinks),
            sink_v=first_tokens(past.sink_v, call.v, call.number, self.attention.sinks),
            number=call.number,
        )
        if self.attention.session or self.attention.recall:
            plain = joined(past.plain_k, k)
            if self.attention.recall:
                view.archive = past.archive or (InCall() if state is None else self.shelf())
            view.sum_k, view.sum_v = past.sum_k, past.sum_v
            self._close(call, plain, view)
            edge = torch.full_like(call.number, self.attention.window)
            view.q, view.q_far = q, q_near if self.attention.original else call.rotate(q, edge)
            if state is not None:
                past.plain_k = last(plain, self.attention.chunk - 1)
                past.sum_k, past.sum_v, past.archive = view.sum_k, view.sum_v, view.archive
        out = [self._attend(q_near[:, :, start : start + BLOCK], start, view, call) for start in range(0, new, BLOCK)]
        if state is not None:
            past.k, past.v = last(view.keys, self.reach), last(view.values, self.reach)
            past.sink_k, past.sink_v = view.sink_k, view.sink_v
        return torch.cat(out, 2)

    def _close(self, call: AttentionCall, plain: torch.Tensor, view: _View) -> None:
        """Summarise and archive the chunks that this call completes."""
        a, number = self.attention, call.number
        before = (number[:, 0].clamp(min=0) - a.sinks).clamp(min=0) // a.chunk
        after = (number[:, -1] + 1 - a.sinks).clamp(min=0) // a.chunk
        fresh = int((after - before).max())
        if not fresh:
            return
        which = before[:, None] + torch.arange(fresh, device=number.device)  # [batch, chunks]
        valid = which < after[:, None]
        token = a.sinks + which[..., None] * a.chunk + torch.arange(a.chunk, device=number.device)
        k, v = chunks_of(plain, token, number), chunks_of(view.values, token, number)
        weights = (torch.einsum("bhnsd,hd->bhns", k, self.pool_key) + self.pool_place[:, None]).softmax(-1)
        sum_k, sum_v = (torch.einsum("bhns,bhnsd->bhnd", weights, part) for part in (k, v))
        if a.original:
            sum_k, k = call.rotate(sum_k, token[..., -1]), chunks_of(view.keys, token, number)
        view.sum_k, view.sum_v = (
            placed(old, part, which, valid) for old, part in ((view.sum_k, sum_k), (view.sum_v, sum_v))
        )
        if a.recall and view.archive is not None:
            view.archive.put(k, v, which, valid)

    def _attend(self, q: torch.Tensor, start: int, view: _View, call: AttentionCall) -> torch.Tensor:
        """A block of queries, rotated ``[batch, heads, queries, head_dim]``, from column ``start`` of this call on."""
        size = q.shape[2]
        number = view.number[:, start : start + size]
        first = self._window_start(number)  # [batch, queries]
        levels = [self._local(self._grouped(q) * call.scale, start, first, view)]
        if view.sum_k is not None:
            exposed = (first - self.attention.sinks) // self.attention.chunk
            chunks = int(exposed.max())  # none beyond is seen yet by any query of the block
            if chunks:
                part = slice(start, start + size)
                far = self._grouped(view.q_far[:, :, part]) * call.scale
                levels += self._distant(far, view.q[:, :, part] * call.scale, exposed, chunks, view)
        mixed = mix(levels, call.dropout)
        self._count(mixed, number >= 0)
        return mixed.out.flatten(1, 2)

    def _window_start(self, number: torch.Tensor) -> torch.Tensor:
        a = self.attention
        return a.sinks + (number - a.window + 1 - a.sinks).clamp(min=0) // a.chunk * a.chunk

    def _grouped(self, q: torch.Tensor) -> torch.Tensor:
        """``[batch, kv_heads, group, queries, ...]``."""
        return q.reshape(q.shape[0], self.shape.kv_heads, -1, *q.shape[2:])

    def _local(self, q: torch.Tensor, start: int, first: torch.Tensor, view: _View) -> MKALevel:
        old = view.keys.shape[2] - view.number.shape[1]
        part = slice(max(old + start - self.reach, 0), old + start + q.shape[3])
        columns = torch.arange(part.start, part.stop, device=q.device)
        seen = (view.number[:, :1] - old + columns)[:, None]  # number of each key [batch, 1, keys]
        own = view.number[:, start : start + q.shape[3], None]
        near = (seen <= own) & (seen >= first[..., None]) | (seen == own) & (own < 0)  # padding sees itself
        sinks = torch.arange(self.attention.sinks, device=q.device) <= own
        mask = torch.cat([sinks, near], -1)[:, None, None]
        keys = torch.cat([view.sink_k, view.keys[:, :, part]], 2)
        values = torch.cat([view.sink_v, view.values[:, :, part]], 2)
        logits = torch.einsum("bhgqd,bhkd->bhgqk", q, keys).masked_fill(~mask, NEVER)
        return MKALevel("local", logits, lambda weights: torch.einsum("bhgqk,bhkd->bhgqd", weights, values))

    def _distant(
        self, far: torch.Tensor, q: torch.Tensor, exposed: torch.Tensor, chunks: int, view: _View
    ) -> list[MKALevel]:
        """Summaries, running means over them, and recalled chunks."""
        if view.sum_k is None or view.sum_v is None:
            raise ValueError("no summaries")
        sum_k, sum_v = view.sum_k[:, :, :chunks], view.sum_v[:, :, :chunks]
        plain = torch.einsum("bhgqd,bhkd->bhgqk", far, sum_k)
        hidden = (torch.arange(chunks, device=q.device) >= exposed[..., None])[:, None]  # [batch, 1, queries, chunks]
        levels, recalled = list[MKALevel](), hidden
        if self.attention.recall:
            scores = plain.detach().sum(2).masked_fill(hidden, NEVER)
            best, chosen = scores.topk(min(self.attention.recall, chunks), -1)
            recalled = hidden | torch.zeros_like(scores, dtype=torch.bool).scatter(3, chosen, True)
            read = chosen_from(view.archive, chosen, best > NEVER, chunks)
            levels.append(_recalled(far, self._bias("recalled", q), *read))
        if self.attention.session:
            logits = plain + self._bias("session", q)
            if self.attention.crowd:
                among = (exposed.to(q.dtype) / self.attention.crowd).clamp(min=1)
                logits = logits - among.log()[:, None, None, :, None]
            logits = logits.masked_fill(recalled[:, :, None], NEVER)
            levels.append(MKALevel("session", logits, lambda w: torch.einsum("bhgqk,bhkd->bhgqd", w, sum_v)))
        if self.attention.horizons:
            levels.append(self._means(plain, self._bias("means", q), exposed, chunks, sum_v))
        return levels

    def _bias(self, level: str, q: torch.Tensor) -> torch.Tensor:
        """``b + w q`` of a level ``[batch, kv_heads, group, queries, 1]``: the router."""
        row = self.rows[level]
        routed = torch.einsum("bhqd,hd->bhq", q, self.route[row]) + self.bias[row][:, None]
        grouped: torch.Tensor = self._grouped(routed)[..., None]
        return grouped

    def _means(
        self, plain: torch.Tensor, bias: torch.Tensor, exposed: torch.Tensor, chunks: int, sum_v: torch.Tensor
    ) -> MKALevel:
        """A mean's key is a weighted sum of summaries, so its logit is that sum of theirs, and so are its values."""
        age = (exposed[..., None] - 1 - torch.arange(chunks, device=plain.device))[
            :, None, None
        ]  # [b, 1, 1, q, chunks]
        rate = -self.decay.neg().exp()[None, :, :, None, None]  # log of the decay per chunk
        weights = (rate * age.clamp(min=0)).exp() * (age >= 0)
        weights = weights / weights.sum(-1, keepdim=True).clamp(
            min=1e-9
        )  # [batch, kv_heads, horizons, queries, chunks]
        logits = torch.einsum("bhgqk,bhmqk->bhgqm", plain, weights) + bias
        logits = logits.masked_fill((exposed == 0)[:, None, None, :, None], NEVER)

        def values(given: torch.Tensor) -> torch.Tensor:
            return torch.einsum("bhgqk,bhkd->bhgqd", torch.einsum("bhgqm,bhmqk->bhgqk", given, weights), sum_v)

        return MKALevel("means", logits, values)

    def _count(self, mixed: LevelMix, real: torch.Tensor) -> None:
        if self.usage is None:
            return
        for name, share in mixed.share.items():
            total = (share.detach().flatten(1, 2) * real[:, None]).sum((0, 2))
            self.usage[name] = self.usage[name] + total if name in self.usage else total
        self.usage["tokens"] = self.usage.get("tokens", 0) + real.sum()[None]


@dataclass(slots=True, eq=False)
class _View:
    """What the queries of one call see; ``number`` is that of the call's tokens."""

    keys: torch.Tensor
    values: torch.Tensor
    sink_k: torch.Tensor
    sink_v: torch.Tensor
    number: torch.Tensor
    q: Any = None
    q_far: Any = None
    sum_k: torch.Tensor | None = None
    sum_v: torch.Tensor | None = None
    archive: Archive | None = None


def _recalled(far: torch.Tensor, bias: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor) -> MKALevel:
    if k.shape[2] == 1:  # the same keys for all queries
        logits, total = torch.einsum("bhgqd,bhkd->bhgqk", far, k[:, :, 0]), ("bhgqk,bhkd->bhgqd", v[:, :, 0])
    else:
        logits, total = torch.einsum("bhgqd,bhqkd->bhgqk", far, k), ("bhgqk,bhqkd->bhgqd", v)
    logits = (logits + bias).masked_fill(~seen[:, :, None], NEVER)
    return MKALevel("recalled", logits, lambda weights: torch.einsum(total[0], weights, total[1]))


def keep_far(model: Any, address: str) -> None:
    """Have the long-term level of a model's new caches in a store: ``disk:FOLDER``, ``host:``, ``redis://...``.

    Args:
        model: retrofitted with MKA; address: as of ``tenuto run --store``, with ``?codec=int8`` to quantise.

    Raises:
        AttachError: a model without a long-term level.
        InputError: no such store.
    """
    layers = [module for module in model.modules() if isinstance(module, MKAHeads) and module.attention.recall]
    if not layers:
        raise AttachError(f"{type(model).__name__} has no long-term level. Retrofit it with MKA(recall=4) first.")
    level = open_levels(address)[0]
    for layer in layers:
        layer.shelf = lambda: InTier(level.tier, level.codec)
