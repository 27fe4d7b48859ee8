"""The pages of one row in one layer: which there are, what stays of them in memory, which are read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future

import torch

from tenuto.kv.index import Index
from tenuto.kv.offload.pool import Pair, Pool, PooledPage, ready
from tenuto.kv.offload.predict import Guess

__all__ = ["PagedRow"]


class PagedRow:
    """Pages in the order in which they were put down.

    Attributes:
        pages: all of them; numbers: numbers of the tokens they hold, ``[tokens]`` int32.
        summaries: what stays of them, ``[pages, ...]`` by name.
        hot: pages in memory or on their way there, the least recently used first.
        room: entries per KV head that ``hot`` may hold.
        chosen: numbers of the pages read last; asked: the queries they were chosen for ``[heads, head_dim]``, or None.
        guess: predictions of the row's queries.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self.pages: list[PooledPage] = []
        self.numbers = torch.zeros(0, dtype=torch.int32)
        self.summaries: dict[str, torch.Tensor] = {}
        self.hot: OrderedDict[PooledPage, Future[Pair]] = OrderedDict()
        self.room = 0
        self.chosen: list[int] = []
        self.asked: torch.Tensor | None = None
        self.guess = Guess()

    def copied(self) -> PagedRow:
        """A copy; pages are shared, which never change."""
        other = PagedRow(self.index)
        for name, value in vars(self).items():
            setattr(other, name, value)
        other.pages, other.hot, other.summaries = list(self.pages), self.hot.copy(), dict(self.summaries)
        other.guess = self.guess.copied()
        return other

    def add(self, pool: Pool, keys: torch.Tensor, values: torch.Tensor, numbers: torch.Tensor) -> None:
        """Put down entries ``[kv_heads, whole pages, head_dim]``; the newest pages stay in memory as room allows."""
        self.hold(pool, [(_at(keys, at), _at(values, at)) for at in self.index.arrange(keys)], numbers)

    def hold(self, pool: Pool, pairs: Iterable[Pair], numbers: torch.Tensor) -> None:
        """Put down pages as they are."""
        made = []
        for keys, values in pairs:
            page = pool.put(keys, values)
            self.pages.append(page)
            self.hot[page] = ready((keys, values))
            made.append(self.index.summarise(keys))
        self.numbers = torch.cat([self.numbers.to(numbers.device), numbers.int()])
        for name in made[0] if made else ():
            new = torch.stack([each[name] for each in made])
            old = self.summaries.get(name)
            self.summaries[name] = new if old is None else torch.cat([old, new])
        self.trim()

    def trim(self) -> None:
        """Let go of the least recently used pages until the rest has room."""
        held = self.hot_entries
        while self.hot and held > self.room:
            page, _ = self.hot.popitem(last=False)
            held -= page.size

    @property
    def hot_entries(self) -> int:
        """Entries per KV head in memory or on their way."""
        return sum(page.size for page in self.hot)

    def choose(self, queries: torch.Tensor, scaling: float) -> list[int]:
        """The numbers of the pages that ``queries [heads, head_dim]`` read; remembered as the last choice."""
        if self.asked is None or self.index.boundary(self.asked, queries):
            self.chosen, self.asked = self.best(queries, scaling, self.index.pages), queries.clone()
        return self.chosen

    def best(self, queries: torch.Tensor, scaling: float, count: int) -> list[int]:
        """The pinned pages and the ``count`` others of the highest score, the best first."""
        pinned = self.index.pinned(self.summaries)
        scores = self.index.score(queries, self.summaries, scaling).float()
        scores[pinned.to(scores.device)] = float("-inf")
        most = min(count, len(self.pages) - len(pinned))
        return [*pinned.tolist(), *scores.topk(most).indices.tolist()]

    def take(self, pool: Pool, numbers: Iterable[int], device: torch.device) -> dict[PooledPage, Future[Pair]]:
        """Fetches of these pages, done for those in memory; all are the most recently used then."""
        wanted = [self.pages[number] for number in numbers]
        found = self._join(pool, wanted, device, early=False)
        self.trim()
        return found

    def expect(self, pool: Pool, numbers: Iterable[int], device: torch.device) -> None:
        """Fetch these pages early, as many as there is room for; what is in memory of them is kept longer. The best
        come first."""
        wanted = [self.pages[number] for number in numbers]
        self._join(pool, wanted[: self.room // self.index.page][::-1], device, early=True)
        self.trim()

    def _join(
        self, pool: Pool, wanted: Sequence[PooledPage], device: torch.device, early: bool
    ) -> dict[PooledPage, Future[Pair]]:
        absent = [page for page in wanted if page not in self.hot or _failed(self.hot[page])]
        self.hot |= zip(absent, pool.fetch(absent, device, early=early) if absent else (), strict=True)
        for page in wanted:
            self.hot.move_to_end(page)
        return {page: self.hot[page] for page in wanted}

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is held in memory, by name."""
        named = {"numbers": self.numbers, **{f"summary.{name}": t for name, t in self.summaries.items()}}
        named |= {} if self.asked is None else {"asked": self.asked}
        named |= self.guess.tensors()
        for number, fetch in enumerate(list(self.hot.values())):
            if fetch.done() and not _failed(fetch):
                keys, values = fetch.result()
                named |= {f"hot.{number}.keys": keys, f"hot.{number}.values": values}
        return named


def _at(x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """The entries ``at [kv_heads, entries]`` of each head."""
    return x.gather(1, at[..., None].expand(-1, -1, x.shape[-1]))


def _failed(fetch: Future[Pair]) -> bool:
    return fetch.done() and fetch.exception() is not None
