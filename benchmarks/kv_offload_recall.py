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
from tenuto.kv.offload.row import Row

AHEAD = (1, 2, 4, 8)


class Recall:
    """Counts per predictor, layers 2 and up, of caches of one row."""

    def __init__(self, pages: int, rng: Random) -> None:
        self.pages, self.rng = pages, rng
        self.found: dict[str, list[tuple[int, float]]] = {}
        self.exact: dict[str, list[float]] = {}
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
            true, top = set(row.chosen), self._top(layer, row) if exact else set()
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
                guess.learn(row.asked, int(where), makers[number].rope)
            named |= self._tokens(row, likely, ids, cache.sequences.columns)
            named["random"] = set(self.rng.sample(range(len(row.pages)), self.pages))
            if not last[number]:
                continue
            for name, pages in named.items():
                self.found.setdefault(name, []).append((len(pages), len(pages & true) / len(true)))
                if exact:
                    self.exact.setdefault(name, []).append(len(pages & top) / len(top))
            if exact:
                self.exact.setdefault("what was read", []).append(len(true & top) / len(top))

    def _tokens(self, row: Row, likely: list[int], ids: torch.Tensor, columns: int) -> dict[str, set[int]]:
        """CXL-SpecKV's idea: the entries of the four likeliest next tokens. Their position has no entry yet; read as
        'entries of the same token, earlier', there are some."""
        numbers = row.numbers.view(len(row.pages), -1)
        following = (numbers == columns).any(1).nonzero()[:, 0].tolist()
        same = torch.isin(ids[0, numbers.long()], torch.tensor(likely)).any(1).nonzero()[:, 0].tolist()
        return {
            "4 likeliest next tokens, their own entries": set(following),
            "4 likeliest next tokens, where they stood before": set(same[-self.pages :]),
        }

    def _top(self, layer: Any, row: Row) -> set[int]:
        """The pages of the most attention, by exact keys, mean over heads."""
        pairs = [fetch.result()[0] for fetch in layer.paged.pool.fetch(row.pages, torch.device("cpu"))]
        keys, store = torch.cat(pairs, 1), layer.held.store
        rest = torch.stack([store.keys[store.run(head)] for head in range(store.heads)])
        found = logits(row.asked[:, None], torch.cat([keys, rest], 1), layer.site.scaling, None)  # type: ignore[index]
        shares = found.softmax(-1)[..., : keys.shape[1]].mean((0, 1, 2)).view(len(row.pages), -1).sum(-1)
        return set(shares.topk(self.pages).indices.tolist())

    def rows(self) -> list[list[str]]:
        """One line per predictor."""
        lines = [["what was read", str(self.pages), "1.000", f"{mean(self.exact['what was read']):.3f}"]]
        for name, counts in self.found.items():
            named, shares = zip(*counts, strict=True)
            lines.append([name, f"{mean(named):.1f}", f"{mean(shares):.3f}", f"{mean(self.exact[name]):.3f}"])
        return lines
