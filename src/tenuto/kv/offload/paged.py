"""One layer whose old entries are pages: what moves down, what a step reads, what was left out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, wait

import torch

from tenuto.kv.entries import Held, Store
from tenuto.kv.offload.pool import Pair, Pool, PooledPage
from tenuto.kv.offload.read import read
from tenuto.kv.offload.row import PagedRow
from tenuto.kv.offload.skips import Skip
from tenuto.kv.policy import Entries, KVPolicy
from tenuto.kv.rope import Rope
from tenuto.kv.step import Step

__all__ = ["Paged"]


class Paged:
    """The pages of all rows of one layer. Sinks, window and what is not a whole page yet stay in the layer's store.

    Attributes:
        policy: its ``index`` chooses; pool: the way to the tier; rows: one per batch row, none before the first call.
    """

    def __init__(self, policy: KVPolicy, pool: Pool) -> None:
        if policy.index is None:
            raise ValueError("A policy without an index has no pages.")
        self.policy, self.pool, self.index = policy, pool, policy.index
        self.rows: list[PagedRow] = []

    @property
    def used(self) -> bool:
        """Whether any row has pages."""
        return any(row.pages for row in self.rows)

    def settle(self, held: Held, totals: Sequence[int]) -> Held:
        """Move down whole pages of what is between sinks and window, in rows that do not fit their total.

        Args:
            totals: entries the layer may hold in memory per row, all KV heads together.
        """
        store, selector, page = held.store, self.policy.selector, self.index.page
        self.rows = self.rows or [PagedRow(self.index) for _ in range(store.rows)]
        sinks, window = selector.sinks, max(selector.window, 1)
        segments, moved = [], False
        for number, (row, total) in enumerate(zip(self.rows, totals, strict=True)):
            mine = [store.entries(number * store.heads + head) for head in range(store.heads)]
            most, length = max(total // store.heads, self.policy.floor), len(mine[0])
            row.room = max(most - sinks - window - page, 0)
            surplus = (length - sinks - window) // page * page if row.pages or length > most else 0
            if surplus > 0:
                run, moved = slice(sinks, sinks + surplus), True
                keys, values = (torch.stack([getattr(part, name)[run] for part in mine]) for name in ("keys", "values"))
                row.add(self.pool, keys, values, mine[0].index[run].clone())
                mine = [_without(part, run) for part in mine]
            row.trim()
            segments += mine
        return Held(Store(store.rows, store.heads, 0, segments), None, held.encoded, held.origins) if moved else held

    def renew(self) -> None:
        """A prefill is over: the next step chooses pages anew."""
        for row in self.rows:
            row.asked = None

    def learn(self, queries: torch.Tensor, positions: torch.Tensor, rope: Rope) -> None:
        """Tell predictions the truth: ``queries [batch, heads, head_dim]`` of a step at ``positions [batch]``."""
        for row, query, position in zip(self.rows, queries, positions.tolist(), strict=True):
            row.guess.learn(query, position, rope)

    def attend(
        self, query: torch.Tensor, held: Held, step: Step, scaling: float, softcap: float | None
    ) -> torch.Tensor:
        """Attention of new tokens ``query [batch, heads, new, head_dim]``, which are in the store already.

        A sparse step reads sinks, window and the pages the index chooses; any other step reads all pages. Gives
        ``[batch, new, heads, head_dim]``, zero for padding.

        Raises:
            StoreError: a page could not be fetched.
        """
        self.pool.skips.account(self.pool.books)
        at = [None if step.valid is None else step.valid[number].nonzero()[:, 0] for number in range(query.shape[0])]
        fetches = []
        for number, row in enumerate(self.rows):
            there = bool(row.pages) and (at[number] is None or len(at[number]) > 0)  # type: ignore[arg-type]
            fetches.append(self._ask(row, query[number, :, -1], step, scaling) if there else {})
        output = query.new_zeros(query.shape[0], query.shape[2], query.shape[1], held.store.values.shape[-1])
        for number, found in enumerate(fetches):
            where = slice(None) if (real := at[number]) is None else real
            some = query[number][:, where]
            if some.shape[1]:
                pairs, missing = self._gather(found, step.sparse)
                keys, values = ([pair[i] for pair in pairs] + [_row_of(held.store, number, i)] for i in (0, 1))
                mixed, lse = read(some, torch.cat(keys, 1), torch.cat(values, 1), scaling, softcap)
                output[number, where] = mixed.transpose(0, 1)
                if missing:
                    self.pool.skips.open.append(Skip(some[:, 0].clone(), lse[:, 0], missing, scaling, softcap))
        return output

    def _ask(self, row: PagedRow, query: torch.Tensor, step: Step, scaling: float) -> dict[PooledPage, Future[Pair]]:
        books, start = self.pool.books, time.perf_counter()
        if not step.sparse:
            hot = {page: row.hot[page] for page in row.pages if page in row.hot}
            others = [page for page in row.pages if page not in hot]
            return hot | dict(zip(others, self.pool.fetch(others, query.device) if others else (), strict=True))
        wanted = row.choose(query, scaling)
        there = [fetch for number in wanted if (fetch := row.hot.get(row.pages[number])) and fetch.done()]
        start = time.perf_counter()
        found = row.take(self.pool, wanted, query.device)
        books.stall_s += time.perf_counter() - start
        books.pages_read, books.hits, books.reads = (
            books.pages_read + len(wanted),
            books.hits + len(there),
            books.reads + 1,
        )
        return found

    def _gather(self, fetches: dict[PooledPage, Future[Pair]], sparse: bool) -> tuple[list[Pair], list[Future[Pair]]]:
        """Pages that have come, and fetches of those that are left out."""
        books, prefetch, all_of_them = self.pool.books, self.pool.prefetch, list(fetches.values())
        late = [fetch for fetch in all_of_them if not fetch.done()]
        if prefetch is None or prefetch.miss == "wait" or not sparse:
            start = time.perf_counter()
            pairs = [fetch.result() for fetch in all_of_them]
            books.stall_s += time.perf_counter() - start if late else 0.0
            return pairs, []
        if late and prefetch.patience:
            start = time.perf_counter()
            wait(late, prefetch.patience)
            books.stall_s += time.perf_counter() - start
        come = [fetch for fetch in all_of_them if fetch.done() and fetch.exception() is None]
        missing = [fetch for fetch in all_of_them if not any(fetch is other for other in come)]
        books.pages_skipped += len(missing)
        return [fetch.result() for fetch in come], missing

    # Rows, books, files.

    def selected(self, rows: Sequence[int]) -> Paged:
        """These rows, in this order; pages are shared."""
        other = Paged(self.policy, self.pool)
        other.rows = [self.rows[row].copied() for row in rows] if self.rows else []
        return other

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is held in memory, by name."""
        return {f"{number}.{name}": t for number, row in enumerate(self.rows) for name, t in row.tensors().items()}

    def saved(self) -> dict[str, torch.Tensor]:
        """All that a file must hold, pages included, by name; those that are not in memory are fetched.

        Raises:
            StoreError: a page could not be fetched.
        """
        named: dict[str, torch.Tensor] = {}
        for number, row in enumerate(self.rows):
            if not row.pages:
                continue
            pairs = [fetch.result() for fetch in self.pool.fetch(row.pages, row.numbers.device)]
            mine = {"keys": torch.cat([keys for keys, _ in pairs], 1), "values": torch.cat([v for _, v in pairs], 1)}
            mine |= {"numbers": row.numbers, "sizes": torch.tensor([page.size for page in row.pages])}
            mine |= {"chosen": torch.tensor(row.chosen, dtype=torch.int64), "room": torch.tensor([row.room])}
            mine |= {} if row.asked is None else {"asked": row.asked}
            named |= {f"{number}.{name}": tensor for name, tensor in mine.items()}
        return named

    def restore(self, named: dict[str, torch.Tensor], rows: int) -> None:
        """Take in what :meth:`saved` gave; pages go to this cache's tier."""
        self.rows = [PagedRow(self.index) for _ in range(rows)]
        for number, row in enumerate(self.rows):
            mine = {k.removeprefix(f"{number}."): t for k, t in named.items() if k.startswith(f"{number}.")}
            if mine:
                sizes = mine["sizes"].tolist()
                row.room = int(mine["room"])
                pairs = zip(mine["keys"].split(sizes, 1), mine["values"].split(sizes, 1), strict=True)
                row.hold(self.pool, [(k.clone(), v.clone()) for k, v in pairs], mine["numbers"])
                row.chosen, row.asked = mine["chosen"].tolist(), mine.get("asked")


def _row_of(store: Store, row: int, which: int) -> torch.Tensor:
    """Keys (0) or values (1) of one row, ``[kv_heads, entries, head_dim]``; without evictions its heads hold alike."""
    tensor = (store.keys, store.values)[which]
    return torch.stack([tensor[store.run(row * store.heads + head)] for head in range(store.heads)])


def _without(part: Entries, run: slice) -> Entries:
    keys, values, index = (torch.cat([x[: run.start], x[run.stop :]]) for x in (part.keys, part.values, part.index))
    return Entries(keys, values, index)
