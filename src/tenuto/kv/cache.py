"""The cache: one :class:`KVLayer` per layer of full attention, one budget over all of them, and the books.

A forward call is one *step*: :meth:`KVCache.begin`, the layers' attention, :meth:`KVCache.finish`. A step of several
tokens is a prefill and is compressed at its end; where a prompt comes in chunks, the engine must be told (``generate``
with ``prefill_chunk_size`` tells it, ``with run.prefill():`` does so by hand) and compresses once, after the last
chunk, so that chunked and one-shot prefill keep the same entries.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from transformers.cache_utils import Cache

from tenuto.budget import MemoryBudget
from tenuto.errors import AttachError, InputError
from tenuto.kv import sliding
from tenuto.kv.allowance import allowance, kv_heads, spare
from tenuto.kv.layer import KVLayer
from tenuto.kv.models import Layout
from tenuto.kv.offload.paged import Paged
from tenuto.kv.offload.pool import Pool
from tenuto.kv.policy import KVPolicy
from tenuto.kv.step import Phase, Sequences, Step
from tenuto.kv.together import compress_all, joint

__all__ = ["KVCache"]


class KVCache(Cache):  # type: ignore[misc]
    """Keys and values under a policy and a budget. Made by an attached run; layers that slide are transformers' own.

    Attributes:
        policy, budget, layout: what it was made with.
        sequences: what all layers know about the rows.
        replay: runs the model for a scorer that asks for it, on this cache.
        keeper: is shown the cache before a prefill is compressed; level: of its store that the first tokens are from.
        pool: where old entries go under a policy with an index; None without.
        phase: what is going on; an error leaves it as it was, and the cache is incomplete.
        since: tokens since the last compression; waiting: of a prompt that is not compressed yet.
        crops: how often tokens were taken back since it was said that they may be; None: they may not be.
    """

    def __init__(
        self,
        policy: KVPolicy,
        budget: MemoryBudget,
        layout: Layout,
        replay: Callable[[KVCache], None],
        keeper: Callable[[KVCache], None] | None = None,
        pool: Pool | None = None,
    ) -> None:
        self.policy, self.budget, self.layout, self.replay = policy, budget, layout, replay
        self.keeper, self.pool = keeper, pool
        self.sequences = Sequences(0, [], torch.zeros(0, 0, dtype=torch.int32), torch.zeros(0, 0, dtype=torch.int32))
        self.engine = [
            KVLayer(policy, spec.site, self.sequences, Paged(policy, pool) if pool else None)
            for spec in layout.layers
            for _ in range(spec.calls)
            if spec.site
        ]
        super().__init__(layers=(layers := self._ordered([spec.sliding_layer for spec in layout.layers])))
        self.layers: list[Any] = layers
        self.most = self.since = self.level = self.waiting = 0
        self.phase = Phase.READY
        self.crops: int | None = None

    def _ordered(self, others: Sequence[Callable[[], Any]]) -> list[Any]:
        """The layers as the model numbers them: ours, with their twins, and those that slide."""
        ours, ordered = iter(self.engine), []
        for spec, make in zip(self.layout.layers, others, strict=True):
            layer = next(ours) if spec.site else make()
            if spec.site:
                layer.twins = [next(ours) for _ in range(spec.calls - 1)]
            ordered.append(layer)
        return ordered

    # One step.

    @torch.no_grad()
    def begin(
        self,
        batch: int,
        new: int,
        mask: torch.Tensor | None,
        positions: torch.Tensor | None,
        device: Any,
        phase: Phase | None = None,
    ) -> None:
        """A forward call of ``new`` tokens per row starts.

        Args:
            phase: what the call is; None: a prefill if it has several tokens that stay, else decoding.
            mask: 2-D attention mask; its last ``new`` columns are those of the new tokens. positions: their RoPE
                positions ``[batch or 1, new]``; None: they continue the columns.

        Raises:
            AttachError: another batch size than before, or the cache was left half-written by an error.
            InputError: the budget cannot hold sinks and window.
        """
        rows = self.sequences
        if self.phase is not (Phase.COMPRESSION if phase is Phase.REPLAY else Phase.READY):
            raise AttachError("An error interrupted the model in mid-step: this cache is incomplete. Start a new one.")
        if not rows.columns:
            rows.start(batch, device)
        if batch != len(rows.seen):
            raise AttachError(f"The cache holds {len(rows.seen)} rows and the model was given {batch}.")
        valid = rows.valid(mask, new)
        counts = [new] * batch if valid is None else [int(n) for n in valid.sum(-1)]
        phase = phase or (Phase.DECODE if new == 1 or self.crops else Phase.PREFILL)
        if phase is Phase.DECODE and rows.columns and self.policy.index is None:
            self._make_room(counts, new)
        index = torch.arange(rows.columns, rows.columns + new, device=device, dtype=torch.int32)
        where = index[None] if positions is None else positions.to(torch.int32)
        step = self._step(phase, counts, index, valid)
        self.phase = phase
        rows.add(where, counts, valid)
        self.since += new
        self.waiting += new if phase.prefill else 0
        for layer in self.engine:
            layer.step = step

    def _step(self, phase: Phase, counts: Sequence[int], index: torch.Tensor, valid: torch.Tensor | None) -> Step:
        """What the layers are told of a call that starts, of ``counts`` tokens per row."""
        policy, new = self.policy, len(index)
        free, indexed = policy.trigger.room("decode", 0, True), policy.index is not None
        local = phase is Phase.PREFILL and not (self.crops is not None or joint(self.policy) or self.keeper)
        at_once = local and policy.trigger.room("prefill", self.since + new, True) == 0
        sparse = indexed and new == 1 and phase in (Phase.DECODE, Phase.ANSWERING)
        probes = policy.probes if phase.prefill else policy.decode_probes if phase is Phase.DECODE else 0
        remembered = probes if phase.prefill or free is not None else 0
        return Step(
            new=new,
            index=index,
            valid=valid,
            remember=remembered + new if remembered and self.crops is not None else remembered,  # some are taken back
            spare=0 if new > 1 or (indexed and self.budget.kind == "bytes") else spare(self, free, counts),
            grows=new == 1 and (free is None or self.budget.kind != "bytes"),
            now=self._totals(counts, new, each=True) if at_once or (sparse and phase is Phase.DECODE) else None,
            settle=phase is Phase.DECODE,
            sparse=sparse,
            observing=policy.scorer.observes == ("replay" if phase is Phase.REPLAY else "calls"),
        )

    def valid(self) -> torch.Tensor:
        """Which tokens so far are none of padding, ``[batch, columns]`` bool."""
        return self.sequences.real

    def finish(self) -> None:
        """The forward call is over: compress if it ended a prefill."""
        local = any(layer.step is not None and layer.step.now is not None for layer in self.engine)
        for layer in self.engine:
            layer.step = None
        sliding.let_go(self.layers)
        phase, self.phase = self.phase, Phase.COMPRESSION if self.phase is Phase.REPLAY else Phase.READY
        if local:
            self.since = self.waiting = 0
        elif self.waiting and not phase.waits and self.crops is None:
            self.compress()

    @torch.no_grad()
    def fill(self, tokens: torch.Tensor, positions: torch.Tensor, layers: Sequence[tuple[torch.Tensor, ...]]) -> None:
        """Hold entries that were computed elsewhere, as if this cache had seen their tokens; it must be empty.

        What it keeps of them is decided when the next prefill ends.

        Args:
            tokens: ids ``[batch, columns]``, -1 for padding on the left; positions: RoPE positions, of the same shape.
            layers: per layer, keys after RoPE and values, ``[batch, kv_heads, columns, head_dim]`` each.

        Raises:
            AttachError: the cache holds something, or has layers that slide (these hold a window only).
        """
        if self.sequences.columns or len(self.engine) != len(self.layers):
            raise AttachError(
                "Only an empty cache of a model whose layers all attend in full can be filled: start with run.cache()."
            )
        batch, columns = tokens.shape
        ids, where = tokens.to(torch.int32), positions.to(torch.int32)
        valid = None if bool((ids >= 0).all()) else ids >= 0
        index = torch.arange(columns, device=tokens.device, dtype=torch.int32)
        self.sequences.start(batch, tokens.device)
        self.sequences.add(where, [columns] * batch if valid is None else valid.sum(-1).tolist(), valid)
        self.sequences.tokens = ids if self.keeps_tokens else ids[:, :0].clone()
        for layer, (keys, values) in zip(self.engine, layers, strict=True):
            layer.hold(keys, values, index, valid)
        self.since = columns

    @property
    def keeps_tokens(self) -> bool:
        """Whether the ids of all tokens must be remembered."""
        return self.policy.scorer.observes == "replay" or self.keeper is not None

    @torch.no_grad()
    def compress(self) -> None:
        """End a prefill: compress every row to the budget. Nothing happens if no token came since the last time."""
        self.waiting = 0
        if self.keeper is not None:
            self.keeper(self)
        room = self.policy.trigger.room("prefill", self.since, True)
        if room is not None and self.since:
            self._compress([total - room * kv_heads(self.layout) for total in self._totals()], self.replay)

    def _make_room(self, counts: Sequence[int], new: int) -> None:
        """Before a decoding step: compress the rows it would take over the budget, if the trigger says so."""
        totals, each, heads = self._totals(counts, new), self.counts(), kv_heads(self.layout)
        goals: list[int | None] = [None] * len(totals)
        for row, total in enumerate(totals):
            over = sum(sum(layer[row]) for layer in each) + counts[row] * heads > total
            if (room := self.policy.trigger.room("decode", self.since, over)) is not None:
                goals[row] = total - max(room, counts[row]) * heads
        if any(goal is not None for goal in goals):
            self._compress(goals)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        self.phase = Phase.COMPRESSION
        yield
        self.phase = Phase.READY

    def _compress(self, totals: Sequence[int | None], replay: Callable[[KVCache], None] | None = None) -> None:
        self.most = max(self.most, self.bytes_held)
        with self._changing():
            if replay is not None and self.policy.scorer.observes == "replay":
                replay(self)
            compress_all(self.policy, self.engine, totals, decoding=replay is None)
            self.since = 0

    def note(self, ids: torch.Tensor | None) -> None:
        """Remember the ids of this step's tokens, for a scorer that runs the prompt again, or a store.

        Embeddings have no ids: a store keeps nothing of a sequence that was given them.

        Raises:
            AttachError: the model was given embeddings instead.
        """
        step = self.engine[0].step
        if step is None or self.phase is Phase.REPLAY:
            return
        if ids is None and self.policy.scorer.observes != "replay":
            self.keeper = None
            self.sequences.tokens = self.sequences.tokens[:, :0].clone()
            return
        if ids is None:
            raise AttachError(
                f"{type(self.policy.scorer).__name__} runs the prompt again: give input_ids, not embeddings."
            )
        known = ids if step.valid is None else ids.masked_fill(~step.valid, -1)
        self.sequences.tokens = torch.cat([self.sequences.tokens, known.to(torch.int32)], 1)

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Take back all that the calls inside have added."""
        shared = self.sequences
        before = replace(shared, seen=list(shared.seen)), self.since
        kept = [None if isinstance(layer, KVLayer) else copy.deepcopy(layer) for layer in self.layers]
        yield
        shared.put_back(before[0])
        self.since = before[1]
        self._forget(shared.columns, [layer.newer(shared.columns) for layer in self.engine])
        self.layers = [one or layer for one, layer in zip(kept, self.layers, strict=True)]

    def _forget(self, columns: int, counts: Sequence[list[int]]) -> None:
        for layer, count in zip(self.engine, counts, strict=True):
            layer.drop_last(columns, count)

    # Budget and books.

    def _totals(self, coming: Sequence[int] | None = None, new: int = 0, each: bool = False) -> list[int]:
        """Entries each row may hold, all heads of all layers together, or of one layer (``each``)."""
        tokens = self.sequences.columns + (0 if coming is None else new)
        others = sliding.nbytes(self.layers, self.layout, len(self.sequences.seen), tokens)
        given = (self.budget, self.policy, self.layout, self.engine, self.sequences)
        found = allowance(*given, coming=coming, others=others, new=new, token_bytes=9 if self.keeps_tokens else 5)
        return [total // len(self.engine) for total in found] if each else found

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything the cache holds, by name."""
        named = {f"{n}.{k}": t for n, layer in enumerate(self.engine) for k, t in layer.tensors().items()}
        slid = {f"sliding.{number}": tensor for number, tensor in enumerate(sliding.tensors(self.layers))}
        return named | slid | self.sequences.tensors()

    @property
    def bytes_held(self) -> int:
        """Bytes of the tensors held, counted from their storage; what is shared counts once."""
        storages = [tensor.untyped_storage() for tensor in self.tensors().values()]
        return sum({s.data_ptr(): s.nbytes() for s in storages if s.nbytes()}.values())

    @property
    def peak(self) -> int:
        """The most bytes held so far, what there was just before a compression included."""
        return max(self.most, self.bytes_held)

    @property
    def bytes_full(self) -> int:
        """Bytes of keys and values that transformers' DynamicCache would hold for the same tokens, padding included."""
        slid = sum(tensor.nbytes for tensor in sliding.tensors(self.layers))
        return slid + len(self.sequences.seen) * self.sequences.columns * self.layout.token_bytes

    def counts(self) -> list[list[list[int]]]:
        """Entries held per cached layer, batch row and KV head."""
        return [layer.counts() for layer in self.engine]

    def survivors(self, layer: int, row: int = 0, head: int = 0) -> list[int]:
        """Numbers of the tokens whose entries one head holds, in pages out of memory too, in order; -1 for one that
        stands for no one token."""
        held, paged = self.engine[layer].held, self.engine[layer].paged
        index = None if held is None else held.column(row * held.store.heads + head, "index")
        below = paged.rows[row].numbers.tolist() if paged is not None and paged.rows else []
        mine = [] if index is None else [int(number) for number in index]
        return sorted(mine + below) if below else mine

    # What generation does to a cache.

    def activate_past_recording(self) -> None:
        """Tokens of the coming steps may be taken back (assisted decoding): a prefill is compressed after its crop."""
        super().activate_past_recording()
        self.crops = 0

    def deactivate_past_recording(self) -> None:
        """No more tokens will be taken back."""
        self.crops = None
        for layer in sliding.sliding(self.layers):
            layer.record_past = False

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens (a negative number), as rejected proposals of assisted decoding are.

        Raises:
            AttachError: as :meth:`KVLayer.newer`; nothing is taken back then.
        """
        if tokens_to_remove > 0:
            raise InputError(f"crop({tokens_to_remove}): give minus the number of tokens to take back.")
        rows, count = self.sequences, -tokens_to_remove
        if count > rows.columns:
            raise InputError(f"crop({tokens_to_remove}): the cache has seen {rows.columns} tokens.")
        if count:
            self._crop(count)
        self.crops = None if self.crops is None else self.crops + 1
        if self.crops and self.waiting:
            self.compress()

    def _crop(self, count: int) -> None:
        rows = self.sequences
        sliding.check_crop(self.layers)  # all layers forget, or none
        lost = [layer.newer(rows.columns - count) for layer in self.engine]
        with self._changing():
            self._forget(rows.columns - count, lost)
            for layer in sliding.sliding(self.layers):
                if layer.is_initialized:
                    layer.crop(-count)
            rows.take_back(count)
            self.since = max(self.since - count, 0)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Rows in another order, for beam search."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Only these rows, in this order."""
        if not self.sequences.columns:
            return
        rows = [int(row) for row in indices]
        with self._changing():
            self.sequences.select(rows)
            for layer in self.engine:
                layer.select_rows(rows)
            for layer in sliding.sliding(self.layers):
                layer.batch_select_indices(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row so many times."""
        rows = torch.arange(len(self.sequences.seen)).repeat_interleave(repeats)
        self.batch_select_indices(rows.to(self.sequences.positions.device))

    def empty(self) -> KVCache:
        """A new cache of this kind."""
        return KVCache(self.policy, self.budget, self.layout, self.replay, self.keeper, self.pool)

    def reset(self) -> None:
        """Forget everything."""
        self.__dict__.update(self.empty().__dict__)

    def fork(self) -> KVCache:
        """An independent copy: ask several questions on one compressed context, each on its own fork."""
        other = self.empty()
        other.sequences = replace(self.sequences, seen=list(self.sequences.seen))
        other.engine = [layer.copied(other.sequences) for layer in self.engine]
        other.layers = other._ordered([partial(copy.deepcopy, layer) for layer in self.layers])
        other.since, other.level, other.phase, other.waiting = self.since, self.level, self.phase, self.waiting
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> KVCache:
        return self.fork()
