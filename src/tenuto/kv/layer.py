"""One layer of the cache: what it holds, the probe queries it remembers, attention and compression of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from tenuto.errors import AttachError
from tenuto.kv.attend import attend
from tenuto.kv.compress import Probes, Site, commit, look, plan, scored, settle, turn
from tenuto.kv.engine import EngineLayer
from tenuto.kv.entries import Held, Store
from tenuto.kv.offload.paged import Paged
from tenuto.kv.policy import ALL, Entries, KVPolicy, Scored
from tenuto.kv.step import Sequences, Step
from tenuto.kv.thin import thin

__all__ = ["KVLayer"]


class KVLayer(EngineLayer):
    """The entries of one layer, and the last queries that saw them; ``paged`` has those that left memory."""

    def __init__(self, policy: KVPolicy, site: Site, sequences: Sequences, paged: Paged | None = None) -> None:
        super().__init__()
        self.policy, self.site, self.sequences, self.paged = policy, site, sequences, paged
        self.held: Held | None = None
        self.probes: list[Probes] = []
        self.step: Step | None = None

    def get_seq_length(self) -> int:
        """Tokens before the present step, evicted ones included."""
        return self.sequences.columns - (self.step.new if self.step else 0)

    # The engine.

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, softcap: float | None
    ) -> torch.Tensor:
        """Hold the new tokens, attend to all that is held, and compress if this step says so.

        ``query [batch, heads, new, head_dim]``, ``key`` and ``value [batch, kv_heads, new, head_dim]``; gives
        ``[batch, new, heads, head_dim]``.
        """
        step, policy = self.step, self.policy
        if step is None:
            raise AttachError("This cache belongs to an attached model. Use it inside `with tenuto.attach(...)`.")
        self.site = replace(self.site, scaling=scaling)
        with torch.no_grad():
            held = self.held = self._holding(key, value, step)
            if step.remember:
                self._remember(query, step)
        if self.paged is not None and (step.sparse or self.paged.used):
            return self._attend_paged(self.paged, query, held, step, softcap)
        watch = step.observing and policy.scorer.observes != "no"
        output = attend(
            query,
            held,
            valid=step.valid,
            scaling=scaling,
            softcap=softcap,
            observer=self._observe if watch else None,
            watch=self._watch if watch else None,
        )
        if step.now is not None and self.paged is not None:
            self.page_out(step.now)
        elif step.now is not None:
            seen = self.sequences.seen  # nothing of a row that is all padding
            self.compress([[self.look(row)] if count else None for row, count in enumerate(seen)], step.now)
        return output

    @torch.no_grad()
    def _attend_paged(
        self, paged: Paged, query: torch.Tensor, held: Held, step: Step, softcap: float | None
    ) -> torch.Tensor:
        """Attention where old entries are pages, or may be from this step on."""
        if step.sparse and step.now is not None:
            held = self.held = paged.settle(held, step.now)
        if paged.used:
            if step.sparse and self.site.rope is not None:
                paged.learn(query[:, :, -1], self.sequences.positions[:, -1], self.site.rope)
            output = paged.attend(query, held, step, self.site.scaling, softcap)
        else:
            output = attend(query, held, valid=step.valid, scaling=self.site.scaling, softcap=softcap)
        if not step.sparse and step.now is not None:
            self.page_out(step.now)
        return output

    @torch.no_grad()
    def page_out(self, totals: Sequence[int]) -> None:
        """At the end of a prefill: move down what does not fit the ``totals`` per row, all KV heads together."""
        if self.paged is not None:
            self.held = self.paged.settle(self.holding(), totals)
            self.paged.renew()

    def _holding(self, key: torch.Tensor, value: torch.Tensor, step: Step) -> Held:
        held = self._empty(key, value) if self.held is None else self.held
        if step.settle and self.policy.codec is not None:
            wanted = self.policy.codec.probes
            known = enumerate(self.probes if wanted else ())
            held = settle(held, {}, {row: probes.last(wanted).queries for row, probes in known})
        held.store.spare, held.store.grows = step.spare, step.grows
        held.store.append(key, value, step.index, step.valid, step.weights)
        return held

    def hold(self, keys: torch.Tensor, values: torch.Tensor, index: torch.Tensor, valid: torch.Tensor | None) -> None:
        """Hold entries that this layer has not computed; shapes as in :meth:`Store.append`."""
        self.held = self._empty(keys, values)
        self.held.store.append(keys, values, index, valid)

    def _empty(self, key: torch.Tensor, value: torch.Tensor) -> Held:
        rows, heads = key.shape[:2]
        part = Entries(key[0, 0, :0], value[0, 0, :0], torch.zeros(0, dtype=torch.int32, device=key.device))
        segments = rows * heads
        store = Store(rows, heads, self.policy.scorer.features, [part] * segments)
        none = Probes(key.new_zeros(0, 0, key.shape[-1]), torch.zeros(0, dtype=torch.int64, device=key.device))
        self.probes = [none] * rows
        return Held(store, self.policy.codec, [None] * segments, {})

    def _remember(self, query: torch.Tensor, step: Step) -> None:
        """Add this call's queries to the probes and forget what is too old."""
        for row in range(query.shape[0]):
            at = slice(None) if step.valid is None else step.valid[row]
            index, new = step.index.long()[at], query[row][:, at]
            before = self.probes[row].last(max(step.remember - len(index), 0))
            latest = Probes(new, index).last(step.remember)
            older = before.queries if len(before.index) else new[:, :0]
            self.probes[row] = Probes(
                torch.cat([older, latest.queries], 1), torch.cat([before.index, latest.index]).clone()
            )

    @torch.no_grad()
    def _observe(self, segment: int, attention: torch.Tensor, queries: torch.Tensor) -> None:
        held, step = self.held, self.step
        if held is None or step is None:
            return
        state = held.column(segment, "state")
        if state is None:
            return
        after = self.policy.scorer.observe(state, attention, step.index.long()[queries])
        encoded = held.encoded[segment]
        older = 0 if encoded is None else len(encoded)
        if encoded is not None and encoded.state is not None:
            encoded.state = after[:older].clone()
        part = held.store.entries(segment).state
        if part is not None:
            part.copy_(after[older:])

    @torch.no_grad()
    def _watch(self, attention: torch.Tensor) -> None:
        """As :meth:`_observe`, of all segments: ``[blocks, group, slots]``."""
        held, step = self.held, self.step
        if held is not None and step is not None and held.store.state is not None:
            state = held.store.state.view(attention.shape[0], attention.shape[2], -1)
            state.copy_(self.policy.scorer.observe(state, attention[:, :, None], step.index.long()))

    def thin(self, totals: Sequence[int | None]) -> bool:
        """Compress rows while decoding to ``totals`` entries each, all heads together (None leaves one as it is), if
        the policy allows and what is reserved stays in use; whether it was done."""
        if not self.policy.thins or self.held is None:
            return False
        return thin(self.held, self.policy, self.site, self.sequences.positions, totals)

    @torch.no_grad()
    def look(self, row: int) -> Scored:
        """What this layer shows an allocator of one row: its view, scored."""
        policy, probes = self.policy, self.probes[row]
        view = look(
            self.holding(),
            row,
            self.site,
            positions=self.sequences.positions[row],
            seen=self.sequences.seen[row],
            probes=probes.last(policy.scorer.probes),
        )
        return scored(policy, view)

    @property
    def weighted(self) -> bool:
        """Whether entries carry count weights."""
        held = self.held
        return held is not None and any(held.column(at, "weights") is not None for at in range(len(held.encoded)))

    def holding(self) -> Held:
        """What is held.

        Raises:
            AttachError: nothing yet.
        """
        if self.held is None:
            raise AttachError("The cache is empty: run the model first.")
        return self.held

    @torch.no_grad()
    def compress(self, rows: Sequence[Sequence[Scored] | None], totals: Sequence[int]) -> None:
        """Compress by itself: ``rows`` holds this layer's scored view per row, None to leave a row as it is."""
        chosen = [None if s is None else plan(self.policy, s, totals[row])[0] for row, s in enumerate(rows)]
        self.keep({row: (s[0], c) for row, (s, c) in enumerate(zip(rows, chosen, strict=True)) if s and c is not None})

    @torch.no_grad()
    def keep(self, rows: dict[int, tuple[Scored, torch.Tensor]]) -> None:
        """Make a selection final: scored view and classes kept, per row."""
        held, policy = self.holding(), self.policy
        kept = {}
        for row, (given, classes) in rows.items():
            segments = range(row * held.store.heads, (row + 1) * held.store.heads)
            mixed = any(held.encoded[s] is not None for s in segments)
            plain = self._view(held, row, encoded=False) if mixed else given.view
            probes = self.probes[row].last(policy.codec.probes if policy.codec else 0)
            kept[row] = (replace(given.view, queries=probes.queries, query_index=probes.index), plain, classes)
        self.held = commit(held, policy, kept)
        if policy.positioner.turned:
            turn(self.held, policy, {row: self._view(self.held, row) for row in rows})
        if policy.probes == ALL or policy.trigger.room("decode", 0, True) is None:
            for row in rows:
                old = self.probes[row]
                self.probes[row] = Probes(old.queries[:, :0].clone(), old.index[:0].clone())

    def _view(self, held: Held, row: int, encoded: bool = True) -> Any:
        none = self.probes[row].last(0)
        where = self.sequences.positions[row]
        seen = self.sequences.seen[row]
        return look(held, row, self.site, positions=where, seen=seen, probes=none, encoded=encoded)

    # Rows, rollback, books.

    def select_rows(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may come twice."""
        if self.held is not None:
            self.held = self.held.selected(rows)
            self.probes = [self.probes[row] for row in rows]
        if self.paged is not None:
            self.paged = self.paged.selected(rows)

    def newer(self, columns: int) -> list[int]:
        """How many of the newest entries of each row and head came after token ``columns`` and can be forgotten.

        Raises:
            AttachError: some are encoded already, stand for earlier tokens as well, or running state has seen them.
        """
        if self.held is None:
            return []
        if self.policy.scorer.observes == "calls":
            raise AttachError(
                f"{type(self.policy.scorer).__name__} adds up attention and cannot take tokens back: assisted and "
                "prompt-lookup decoding need another scorer."
            )
        store, encoded = self.held.store, [part for part in self.held.encoded if part is not None]
        below = [row.numbers for row in self.paged.rows] if self.paged else []
        if any(len(part) and int(part.max()) >= columns for part in [*(e.index for e in encoded), *below]):
            raise AttachError(
                "Tokens to take back have been encoded, or put into pages. Assisted decoding needs a policy that keeps "
                "at least the proposed tokens as they are: fewer proposed tokens, or a larger window or residual."
            )
        late = [store.entries(segment) for segment in range(len(store.lengths))]
        lost = [int((part.index >= columns).sum()) for part in late]  # what was evicted is not there to be taken back
        if any(_shared(part, count, columns) for part, count in zip(late, lost, strict=True)):
            raise AttachError("Tokens to take back share an entry with others. Take back fewer tokens.")
        return lost

    def drop_last(self, columns: int, counts: Sequence[int]) -> None:
        """Forget the newest entries of each row and head, which came after token ``columns``; so many as :meth:`newer`
        gives."""
        if self.held is None:
            return
        self.held.store.shorten(counts)
        self.probes = [
            Probes(p.queries[:, (seen := p.index < columns)], p.index[seen]) if len(p.index) else p for p in self.probes
        ]

    def copied(self, sequences: Sequences) -> KVLayer:
        """A copy that shares nothing that changes."""
        other = KVLayer(self.policy, self.site, sequences)
        if self.held is not None:
            other.held = self.held.selected(range(self.held.store.rows))
            other.probes = list(self.probes)
        if self.paged is not None:
            other.paged = self.paged.selected(range(len(self.paged.rows)))
        return other

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything held, by name."""
        named = {} if self.held is None else self.held.tensors()
        named |= {f"paged.{name}": tensor for name, tensor in self.paged.tensors().items()} if self.paged else {}
        for row, probes in enumerate(self.probes):
            named |= {f"{row}.queries": probes.queries, f"{row}.query_index": probes.index}
        return named

    def stock(self, row: int) -> tuple[int, int]:
        """Entries of a row in full precision, all heads together, and bytes that its encoded ones share."""
        if self.held is None or self.policy.codec is None:
            return 0, 0
        segments = range(row * self.held.store.heads, (row + 1) * self.held.store.heads)
        codes = [encoded.code for segment in segments if (encoded := self.held.encoded[segment]) is not None]
        whole = sum(self.held.store.lengths[segment] for segment in segments)
        return whole, sum(code[self.policy.codec.shared].nbytes for code in codes)

    def counts(self) -> list[list[int]]:
        """Entries held in memory per batch row and KV head."""
        if self.held is None:
            return []
        heads = self.held.store.heads
        hot = [row.hot_entries for row in self.paged.rows] if self.paged else []
        lengths = [self.held.length(s) + (hot[s // heads] if hot else 0) for s in range(len(self.held.store.lengths))]
        return [lengths[start : start + heads] for start in range(0, len(lengths), heads)]


def _shared(part: Entries, lost: int, columns: int) -> bool:
    """Whether an entry at the cut may stand for tokens on both sides: one that goes and stands for several, or one that
    stays, where the next does not begin at the cut."""
    if not lost or part.weights is None:
        return False
    first = part.index.shape[0] - lost
    before = first > 0 and float(part.weights[first - 1]) != 1 and int(part.index[first]) != columns
    return before or bool((part.weights[first:] != 1).any())
