"""What predictors name of the pages that a layer reads; for kv_offload.py."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from random import Random
from statistics import mean
from typing import Any

import torch

from tenuto.kv.offload.predict import Guess, predictors
from tenuto.kv.offload.read import logits
from tenuto.kv.offload.row import PagedRow

AHEAD = (1, 2, 4, 8)


class Recall:
    """Counts per predictor, layers 2 and up, of caches of one row."""

    def __init__(self, pages: int, rng: Random) -> None:
        self.pages, self.rng = pages, rng
        self.found: dict[str, list[tuple[int, float]]] = {}
        self.exact: dict[str, list[float]] = {}
        self.rehearsed: dict[str, list[float]] = {}
        self.guesses: dict[Any, Guess] = {}

    def watch(self, stack: ExitStack, run: Any) -> dict[int, torch.Tensor]:
        """The inputs of all layers, as of the last step."""
        inputs: dict[int, torch.Tensor] = {}

        def keep(number: int, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs[number] = (args[0] if args else kwargs["hidden_states"])[:, -1]

        for number, block in enumerate(run.layout.blocks):
            stack.callback(block.register_forward_pre_hook(partial(keep, number), with_kwargs=True).remove)
        return inputs

    def before(self, cache: Any, after: torch.Tensor) -> tuple[list[list[int]], list[int]]:
        """What is known before a step: the pages read last per layer, and the four likeliest next tokens."""
        return [list(layer.paged.rows[0].chosen) for layer in cache.engine], after.topk(4).indices.tolist()

    def step(
        self,
        run: Any,
        cache: Any,
        inputs: dict[int, torch.Tensor],
        before: tuple[list[list[int]], list[int]],
        ids: torch.Tensor,
        exact: bool,
    ) -> None:
        """Compare what the step read with what was named."""
        makers = predictors(run.layout.blocks, [spec.site.rope for spec in run.layout.layers])
        where, (last, likely) = cache.sequences.positions[:, -1], before
        for number in range(2, len(cache.engine)):
            layer = cache.engine[number]
            row, scaling = layer.paged.rows[0], layer.site.scaling
            keys = _keys(layer) if exact else None
            true, top = set(row.chosen), set() if keys is None else self._top(row.asked, keys, layer)
            named: dict[str, set[int]] = {"pages of the step before": set(last[number])}
            for ahead in AHEAD:
                plain = makers[number](inputs[max(number - ahead, 0)])[0]
                guess = self.guesses.setdefault((cache, number, ahead), Guess())
                for kind, raw in (("", plain), (", corrected", guess.correct(plain))):
                    query = makers[number].rope.rotate(raw, where.expand(len(raw)))
                    for margin in (1, 2):
                        title = f"input {ahead} earlier{kind}{f', {margin}x' * (margin > 1)}"
                        named[title] = set(row.best(query, scaling, margin * self.pages))
                        named[f"{title}, or the step before"] = named[title] | set(last[number])
                    if keys is not None:
                        rehearsed = self._top(query, keys, layer)
                        self.rehearsed.setdefault(f"input {ahead} earlier{kind}", []).append(_share(rehearsed, top))
                guess.learn(row.asked, int(where), makers[number].rope)
            named |= self._tokens(row, likely, ids, cache.sequences.columns)
            named["random"] = set(self.rng.sample(range(len(row.pages)), self.pages))
            if not last[number]:
                continue
            for name, pages in named.items():
                self.found.setdefault(name, []).append((len(pages), _share(pages, true)))
                if exact:
                    self.exact.setdefault(name, []).append(_share(pages, top))
            if exact:
                self.exact.setdefault("what was read", []).append(_share(true, top))

    def _tokens(self, row: PagedRow, likely: list[int], ids: torch.Tensor, columns: int) -> dict[str, set[int]]:
        """CXL-SpecKV's idea: the entries of the four likeliest next tokens. Their position has no entry yet; read as
        'entries of the same token, earlier', there are some."""
        numbers = row.numbers.view(len(row.pages), -1)
        following = (numbers == columns).any(1).nonzero()[:, 0].tolist()
        same = torch.isin(ids[0, numbers.long()], torch.tensor(likely)).any(1).nonzero()[:, 0].tolist()
        return {
            "4 likeliest next tokens, their own entries": set(following),
            "4 likeliest next tokens, where they stood before": set(same[-self.pages :]),
        }

    def _top(self, query: Any, keys: torch.Tensor, layer: Any) -> set[int]:
        """The pages of the most attention by exact keys ``[kv_heads, entries, head_dim]``, mean over heads."""
        pages = len(layer.paged.rows[0].pages)
        found = logits(query[:, None], keys, layer.site.scaling, None).softmax(-1).mean((0, 1, 2))
        size = layer.paged.index.page
        return set(found[: pages * size].view(pages, size).sum(-1).topk(self.pages).indices.tolist())

    def rows(self) -> list[list[str]]:
        """One line per predictor."""
        lines = [["what was read", str(self.pages), "1.000", f"{mean(self.exact['what was read']):.3f}", ""]]
        for name, counts in self.found.items():
            named, shares = zip(*counts, strict=True)
            exact = f"{mean(self.rehearsed[name]):.3f}" if name in self.rehearsed else ""
            lines.append([name, f"{mean(named):.1f}", f"{mean(shares):.3f}", f"{mean(self.exact[name]):.3f}", exact])
        return lines


def _share(named: set[int], true: set[int]) -> float:
    return len(named & true) / len(true)


def _keys(layer: Any) -> torch.Tensor:
    """Exact keys of a layer's one row, those of its pages first."""
    row, store = layer.paged.rows[0], layer.held.store
    pairs = [fetch.result()[0] for fetch in layer.paged.pool.fetch(row.pages, torch.device("cpu"))]
    return torch.cat([*pairs, torch.stack([store.keys[store.run(head)] for head in range(store.heads)])], 1)
