"""One layer of a sharded cache: the pages this rank holds, the tables of all pages, and attention over them.

New tokens are attended where they are computed, once; only what older tokens add comes from the shards. So a chunk is
never counted twice, and the first chunk of a prompt sends nothing. Afterwards each rank keeps its own tokens of the
chunk and forgets the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tenuto.errors import AttachError
from tenuto.kv.engine import EngineLayer
from tenuto.kv.offload.read import wide
from tenuto.shards.gradients import Refused, among_themselves
from tenuto.shards.merge import Part, merge, pack, part, rest, unpack
from tenuto.shards.plan import Plan, ReadTotals, Step
from tenuto.shards.policy import Arrivals
from tenuto.shards.selector import Asked, Selector
from tenuto.shards.shelf import ShardPages
from tenuto.shards.table import Table

__all__ = ["ShardedLayer"]


class ShardedLayer(EngineLayer):
    """The entries of one layer that lie on this rank.

    Attributes:
        number: of the layer in the model; seen: tokens per row before this step, padding left out.
        tables, shelves: per row; shelves by shard, of this rank's only.
        route: gives the router probabilities of the layer before ``[batch * new, experts]``, None where there are none.
    """

    differentiable = True

    def __init__(self, number: int, plan: Plan, books: ReadTotals, route: Callable[[], torch.Tensor | None]) -> None:
        super().__init__()
        self.number, self.plan, self.books, self.route = number, plan, books, route
        self.tables: list[Table] = []
        self.shelves: list[dict[int, ShardPages]] = []
        self.seen: list[int] = []
        self.columns = 0
        self.step: Step | None = None

    def get_seq_length(self) -> int:
        """Tokens before the present step, padding counted."""
        return self.columns

    # Attention.

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, softcap: float | None
    ) -> torch.Tensor:
        """Attend to new and older tokens, then hold the new ones.

        ``query [batch, heads, new, head_dim]``, ``key`` and ``value [batch, kv_heads, new, head_dim]``; gives
        ``[batch, new, heads, head_dim]``, zero for padding. Gradients are those of the first call of a cache; later
        ones would have to reach what is held, and are refused when they are asked for.

        Raises:
            StoreError: a rank does not answer.
        """
        step, older = self.step, any(self.seen)
        if step is None:
            raise AttachError("This cache belongs to a sharded model. Use it inside the `with` block that made it.")
        valid = step.valid[step.first : step.first + step.batch]
        learns = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
        own = Part(*among_themselves(query, key, value, valid, scaling, softcap, learns and not older))
        with torch.inference_mode(False), torch.no_grad():  # what is held outlives the caller's mode
            whole = self._with_older(step, own, query.detach(), key.detach(), value.detach(), scaling, softcap)
        output = (whole if older else own.output).to(query.dtype)
        if learns and older:
            apply: Any = Refused.apply
            output = apply(output, query, key, value)
        return output.masked_fill(~valid[:, None, :, None], 0).transpose(1, 2)

    def _with_older(
        self,
        step: Step,
        own: Part,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        softcap: float | None,
    ) -> torch.Tensor:
        """The attention of the new tokens, ``own`` being what they give among themselves; then they are held."""
        plan, parts, mine = self.plan, [own], slice(step.first, step.first + step.batch)
        probs = self.route() if plan.routed else None
        routed = [] if probs is None else [probs.float().view(step.batch, step.new, -1)]
        older = any(self.seen)
        shared = plan.exchange.rows([key, value, *routed, *([query] if older else [])])
        router, gone = shared[2] if routed else None, None
        if older and self._moving(query, len(shared[-1])):
            parts += self._visits(query, key, scaling, softcap, mine)
        elif older:
            found, gone = self._gathered(shared[-1], router, scaling, softcap)
            parts.append(found)
        whole = merge(parts)
        if gone is not None:
            self.books.dropped.append(float((gone - torch.logaddexp(gone, whole.lse)).exp().mean()))
        self._hold(shared[0], shared[1], router, step.valid)
        return whole.output

    def _moving(self, query: torch.Tensor, rows: int) -> bool:
        """Whether moving the older keys and values is cheaper than sending partial attention: prefills only."""
        heads, new, width = query.shape[1:]
        if new == 1 or self.plan.exchange.ranks == 1:
            return False
        kv_heads = next(shelf.keys.shape[0] for row in self.shelves for shelf in row.values())
        size = query.element_size()
        return rows * new * heads * (width * size + wide(query.dtype).itemsize) >= max(
            self._sizes(kv_heads * width * size * 2)
        )

    def _sizes(self, each: int) -> list[int]:
        """Bytes of older tokens on every rank; ``each`` token has so many."""
        loads = torch.stack([table.loads for table in self.tables]).sum(0).tolist()
        return [each * sum(loads[shard] for shard in self.plan.of(rank)) for rank in range(self.plan.exchange.ranks)]

    def _gathered(
        self, query: torch.Tensor, router: torch.Tensor | None, scaling: float, softcap: float | None
    ) -> tuple[Part, torch.Tensor | None]:
        """What older tokens add, each rank attending to its own, and the sum of what a selector left out if that is
        measured; ``query`` is of all rows that are sharded here."""
        plan, dtype = self.plan, query.dtype
        sparse = plan.selector is not None and query.shape[2] == 1
        measured = sparse and plan.measure and plan.schedule is None
        found, left = [], []
        for row, table in enumerate(self.tables):
            asked = None if router is None else router[row, 0]
            chosen = self._choose(plan.selector, row, query[row, :, 0], asked, scaling) if sparse else table.index >= 0
            if query.shape[2] == 1:
                self._note(table, chosen)
            self._bring(row, chosen)
            one, dropped = self._row(row, query[row], chosen, scaling, softcap, measured)
            found.append(one)
            left.append(dropped)
        local = Part(torch.stack([one.output for one in found]), torch.stack([one.lse for one in found]))
        packed = pack(local, dtype, torch.stack(left) if measured else None)
        parts, drops = [], []
        for one in plan.exchange.combine(packed):
            got, dropped_there = unpack(one, query.shape[-1], dtype, measured)
            parts.append(got)
            drops.append(dropped_there)
        gone = torch.stack([drop for drop in drops if drop is not None]).logsumexp(0) if measured else None
        return merge(parts), gone

    def _choose(
        self, selector: Selector | None, row: int, queries: torch.Tensor, router: torch.Tensor | None, scaling: float
    ) -> torch.Tensor:
        table = self.tables[row]
        if selector is None or not len(table.shard):
            return table.index >= 0
        newest = table.index.amax(-1)
        asked = Asked(self.number, queries, scaling, table.counts, newest, table.summaries, router)
        score = selector.score(asked) - selector.penalty * table.below
        chosen = selector.choose(table, score, self.seen[row])
        if self.plan.schedule is not None:
            table.used(chosen.any(-1), score.softmax(-1))
        return chosen

    def _note(self, table: Table, chosen: torch.Tensor) -> None:
        books = self.books
        books.tokens_read, books.tokens_held = (
            books.tokens_read + int(chosen.sum()),
            books.tokens_held + int((table.index >= 0).sum()),
        )
        books.pages_read, books.pages_held = (
            books.pages_read + int(chosen.any(-1).sum()),
            books.pages_held + len(chosen),
        )

    def _row(
        self,
        row: int,
        query: torch.Tensor,
        chosen: torch.Tensor,
        scaling: float,
        softcap: float | None,
        measured: bool,
    ) -> tuple[Part, torch.Tensor]:
        """What this rank's shards add to one row, and the sum of what they hold and leave out."""
        nothing = query.new_full(query.shape[:-1], float("-inf"), dtype=wide(query.dtype))
        parts, dropped = [Part(torch.zeros_like(query, dtype=nothing.dtype), nothing)], [nothing]
        for shard, shelf in self.shelves[row].items():
            pages = self.tables[row].of(shard)
            read, held = chosen[pages], self.tables[row].index[pages] >= 0
            if bool(read.any()):
                parts.append(part(query, *shelf.read(read), scaling, softcap))
            if measured and bool((held & ~read).any()):
                dropped.append(rest(query, shelf.read(held & ~read)[0], scaling, softcap))
        return merge(parts[1:] or parts), torch.stack(dropped).logsumexp(0)

    def _bring(self, row: int, wanted: torch.Tensor) -> None:
        """Have pages with ``wanted [pages, page]`` tokens in memory. All ranks note it; who holds them fetches."""
        table, pool = self.tables[row], self.plan.pool
        coming = table.below & wanted.any(-1)
        if pool is None or not bool(coming.any()):
            return
        start = time.perf_counter()
        for shard, shelf in self.shelves[row].items():
            local = coming[table.of(shard)].nonzero()[:, 0].tolist()
            if local:
                shelf.promote(local, pool)
        table.below &= ~coming
        pool.books.stall_s += time.perf_counter() - start

    def _settle(self, row: int, decoding: bool) -> None:
        """Encode what is full and old; demote or delete what there is no room for."""
        table, plan, schedule = self.tables[row], self.plan, self.plan.schedule
        if plan.codec.exact and schedule is None:
            return
        full = table.counts == table.page
        if not plan.codec.exact:
            self._encode(row, full & (table.index.amax(-1) < self.seen[row] - plan.recent))
        if schedule is None or (schedule.lossy and not decoding):
            return
        there = full & ~table.below
        if not (plan.codec.exact or schedule.lossy):
            there &= table.coded  # a page goes below as it will be read
        use, going = table.use(), []
        for shard in range(plan.shards):
            here = table.shard == shard
            ever = int((full & here).sum()) + int(table.gone[shard])
            going.append(schedule.demoted(use, there & here, ever))
        if schedule.lossy:
            self._delete(row, torch.cat(going))
        else:
            self._demote(row, going)

    def _demote(self, row: int, going: Sequence[torch.Tensor]) -> None:
        """Let pages go to the tier; numbers of each shard's."""
        table, pool = self.tables[row], self.plan.pool
        for shard, pages in enumerate(going):
            table.below[pages] = True
            if pool is not None and len(pages) and shard in self.shelves[row]:
                self.shelves[row][shard].demote(torch.searchsorted(table.of(shard), pages).tolist(), pool)

    def _delete(self, row: int, pages: torch.Tensor) -> None:
        """Forget full pages for good."""
        if len(pages):
            self.books.pages_deleted += len(pages)
            self.books.tokens_deleted += len(pages) * self.tables[row].page
            shards = self.tables[row].shard
            self._keep(row, shards, self.tables[row].delete(pages))

    def _encode(self, row: int, old: torch.Tensor) -> None:
        """Hold ``old [pages]`` bool through the codec, those that are raw in memory."""
        table = self.tables[row]
        going = old & ~table.coded
        if not bool(going.any()):
            return
        table.coded = table.coded | going
        for shard, shelf in self.shelves[row].items():
            shelf.encode(going[table.of(shard)].nonzero()[:, 0].tolist())

    def _keep(self, row: int, shards: torch.Tensor, stay: torch.Tensor) -> None:
        """On this rank's shelves, only the pages that ``stay [pages]``; ``shards`` are all pages'."""
        for shard, shelf in self.shelves[row].items():
            shelf.keep(stay[shards == shard])

    def _visits(
        self, query: torch.Tensor, like: torch.Tensor, scaling: float, softcap: float | None, mine: slice
    ) -> list[Part]:
        """What older tokens add, their keys and values passed from rank to rank; they are not held."""
        (kv_heads, width), plan = (like.shape[1], like.shape[3]), self.plan
        for row, table in enumerate(self.tables):
            self._bring(row, table.index >= 0)
        held = [shelf.read(self._filled(row, s)) for row, on in enumerate(self.shelves) for s, shelf in on.items()]
        flat = [x.transpose(0, 1).contiguous().view(torch.uint8).flatten() for pair in held for x in pair]
        sizes = self._sizes(2 * kv_heads * width * like.element_size())
        bytes_of = torch.cat(flat) if flat else like.new_zeros(0, dtype=torch.uint8)
        found = []
        loads = [table.loads.tolist() for table in self.tables]
        for rank, came in plan.exchange.visit(bytes_of, sizes):
            counts = [mine_of[shard] for mine_of in loads for shard in plan.of(rank) for _ in (0, 1)]
            entries = came.view(like.dtype).view(-1, kv_heads, width).transpose(0, 1).split(counts, 1)
            each = len(plan.of(rank))
            for at in range(each):
                rows = range(mine.start, mine.stop)
                picked = [entries[2 * (row * each + at) : 2 * (row * each + at) + 2] for row in rows]
                parts = [part(query[i], k, v, scaling, softcap) for i, (k, v) in enumerate(picked)]
                found.append(Part(torch.stack([p.output for p in parts]), torch.stack([p.lse for p in parts])))
        return found

    def _filled(self, row: int, shard: int) -> torch.Tensor:
        table = self.tables[row]
        return table.index[table.of(shard)] >= 0

    # Holding.

    def _hold(self, keys: torch.Tensor, values: torch.Tensor, router: torch.Tensor | None, valid: torch.Tensor) -> None:
        """Place the new tokens of all rows; keep those of this rank's shards."""
        plan = self.plan
        if not self.tables:
            needs = plan.selector.needs if plan.selector else ()
            self.tables = [Table(plan.placement.page, plan.shards, keys.device, needs) for _ in keys]
            self.shelves = [
                {shard: ShardPages(plan.placement.page, k, v, plan.codec) for shard in plan.mine}
                for k, v in zip(keys, values, strict=True)
            ]
            self.seen = [0] * len(keys)
        for row, table in enumerate(self.tables):
            at = valid[row].nonzero()[:, 0]
            if not len(at):
                continue
            numbers = torch.arange(self.seen[row], self.seen[row] + len(at), device=keys.device)
            probs = None if router is None else router[row, at]
            best = None if probs is None else probs.argmax(-1)
            key, value = keys[row][:, at], values[row][:, at]
            places = plan.placement.place(Arrivals(numbers, key, best, table.loads), table.memory)
            table.memory = places.memory
            hot = None if probs is None or best is None else torch.nn.functional.one_hot(best, probs.shape[-1])
            page, slot = table.add(numbers, places, key, hot)
            for shard, shelf in self.shelves[row].items():
                here = (places.shard == shard).nonzero()[:, 0]
                if len(here):
                    pages = table.of(shard)
                    local = torch.searchsorted(pages, page[here])
                    shelf.put(len(pages), local, slot[here], key[:, here], value[:, here])
            self.seen[row] += len(at)
            self._settle(row, valid.shape[1] == 1)
        self.columns += valid.shape[1]

    # Rows and rollback.

    def take(self, other: ShardedLayer) -> ShardedLayer:
        """Hold what another layer holds, copied; gives this layer."""
        self.tables, self.shelves, self.columns = other.tables, other.shelves, other.columns
        self.seen = other.seen
        self.select_rows(range(len(other.tables)))
        return self

    def select_rows(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may come twice."""
        self.tables = [self.tables[row].copied() for row in rows]
        self.shelves = [{shard: shelf.copied() for shard, shelf in self.shelves[row].items()} for row in rows]
        self.seen = [self.seen[row] for row in rows]

    def check_crop(self, count: int, kept: Sequence[int]) -> None:
        """Whether the newest ``count`` tokens can be forgotten, so that ``kept [rows]`` real ones are left.

        Raises:
            AttachError: pages have summaries or are coded, or may be in a lower tier.
        """
        if count and self.plan.schedule is not None:
            raise AttachError("Tokens cannot be taken back where pages are demoted: leave out schedule= for this.")
        for table, left in zip(self.tables, kept, strict=True):
            if left < int(table.index.amax() + 1 if table.index.numel() else 0):
                table.check_crop(left)

    def crop_to(self, columns: int, kept: Sequence[int]) -> None:
        """Forget what came after the first ``columns``, ``kept [rows]`` of which are real; checked before."""
        for row, table in enumerate(self.tables):
            self.seen[row] = kept[row]
            shards = table.shard
            self._keep(row, shards, table.crop(kept[row]))
        self.columns = columns

    def reset(self) -> None:
        """Forget everything."""
        self.tables, self.shelves, self.seen, self.columns = [], [], [], 0
