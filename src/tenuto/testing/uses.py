"""Differential laws: a cache under ordinary uses, drawn at random, against the model without a cache.

    use = Use(padding=(0, 3), calls=(("read", 9), ("steps", 3), ("crop", 2), ("copy", 0), ("read", 4)))
    law_use(use, model, plain, run.cache)

Whatever is done to the cache, in whatever order, the logits of every real token are those of the text read at once.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from tenuto.errors import TenutoError
from tenuto.testing.law import expect

__all__ = ["CALLS", "Use", "law_use"]

CALLS = ("read", "steps", "inference", "thread", "crop", "reorder", "repeat", "copy", "reset", "wrong")
"""What can be done: tokens in one call, one by one, in inference mode, in another thread; the last ones taken back;
rows in another order, or repeated; go on with a copy; begin again; a call that is refused."""
MOST = 6
"""Rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """How a cache is used.

    Attributes:
        padding: of each row, so many tokens; right: behind the first call's tokens, and not before them.
        calls: names of :data:`CALLS`, each with a number of tokens, or a seed.
        seed: of the tokens.
    """

    padding: tuple[int, ...]
    calls: tuple[tuple[str, int], ...]
    right: bool = False
    seed: int = 0


class _WantedText:
    """What a cache should hold: ``ids`` and ``mask [rows, columns]``."""

    def __init__(self, use: Use, vocabulary: int) -> None:
        self.use, self.vocabulary = use, vocabulary
        self.chance = torch.Generator().manual_seed(use.seed)
        self.ids = self.mask = torch.zeros(len(use.padding), 0, dtype=torch.int64)

    def longer(self, count: int) -> None:
        new = torch.randint(1, self.vocabulary, (len(self.ids), count), generator=self.chance)
        seen = torch.ones_like(new)
        if not self.ids.shape[1] and len(self.ids) == len(self.use.padding):
            for row, pads in enumerate(self.use.padding):
                pads = min(pads, count - 1)
                seen[row, count - pads :] = 0 if self.use.right else 1
                seen[row, :pads] = seen[row, :pads] if self.use.right else 0
        self.ids, self.mask = torch.cat([self.ids, new], 1), torch.cat([self.mask, seen], 1)

    def rows(self, index: torch.Tensor) -> None:
        self.ids, self.mask = self.ids[index], self.mask[index]

    @property
    def positions(self) -> torch.Tensor:
        return (self.mask.cumsum(-1) - 1).clamp(min=0)

    def copied(self) -> _WantedText:
        other = copy.copy(self)
        other.chance = torch.Generator().manual_seed(self.use.seed + 1)
        return other


@torch.no_grad()
@torch.no_grad()
def law_use(
    use: Use, model: Any, plain: Any, new: Callable[[], Any], room: float = 1e-4, begun: torch.Tensor | None = None
) -> int:
    """Logits of every real token are those of the text read at once; what is refused changes nothing.

    Args:
        model: with the caches that ``new`` makes; plain: the same model without, which is called without a cache.
        room: of the largest logit; at least of 1.
        begun: what a new cache holds already, token ids ``[1, tokens]``; None: nothing.

    Returns:
        How many calls were refused: taking tokens back, or going on behind padding on the right.

    Raises:
        LawError: they differ, or something else was refused.
    """
    text, cache, refused, left = _WantedText(use, plain.config.vocab_size), new(), 0, list[tuple[_WantedText, Any]]()
    if begun is not None:
        text.ids, text.mask = begun, torch.ones_like(begun)
    for name, number in (*use.calls, ("steps", 1)):
        try:
            cache, text = _act(name, number, text, cache, (model, plain, room), left)
        except TenutoError as error:
            allowed = name == "crop" or (use.right and any(use.padding))
            expect(allowed, f"{name} is not refused in {use}", error)
            refused += 1
            if name != "crop":
                return refused
    for before, old in left:  # what was copied has not changed
        before.longer(1)
        try:
            _compare(before, old, 1, model, plain, room)
        except TenutoError as error:
            expect(use.right and any(use.padding), f"what was copied goes on in {use}", error)
            refused += 1
    return refused


def _act(
    name: str,
    number: int,
    text: _WantedText,
    cache: Any,
    models: tuple[Any, Any, float],
    left: list[tuple[_WantedText, Any]],
) -> tuple[Any, _WantedText]:
    held, many = text.ids.shape[1], max(number, 1)
    if name in ("read", "inference", "thread"):
        text.longer(many)
        with torch.inference_mode() if name == "inference" else nullcontext():  # inference_mode(False) has gradients
            run = _in_thread if name == "thread" else _at_once
            run(lambda: _compare(text, cache, many, *models))
    elif name == "steps":
        for _ in range(many):
            text.longer(1)
            _compare(text, cache, 1, *models)
    elif name == "crop" and held:
        count = min(many, held)
        cache.crop(-count)
        text.ids, text.mask = text.ids[:, : held - count], text.mask[:, : held - count]
    elif name in ("reorder", "repeat") and held:
        times = 2 if name == "repeat" and 2 * len(text.ids) <= MOST else 1
        index = torch.arange(len(text.ids)).repeat_interleave(times)
        if name == "reorder":
            index = torch.randint(0, len(text.ids), (len(text.ids),), generator=torch.Generator().manual_seed(number))
            cache.reorder_cache(index)
        else:
            cache.batch_repeat_interleave(times)
        text.rows(index)
    elif name == "copy" and held:
        left.append((text.copied(), cache))
        cache = copy.deepcopy(cache)
    elif name == "reset":
        cache.reset()
        text = _WantedText(text.use, text.vocabulary)
    elif name == "wrong" and held:
        _refuses(text, cache, models[0])
    return cache, text


def _at_once(act: Callable[[], None]) -> None:
    act()


def _in_thread(act: Callable[[], None]) -> None:
    raised = list[BaseException]()

    def work() -> None:
        try:
            with torch.no_grad():
                act()
        except BaseException as error:  # noqa: BLE001 (it is raised again)
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def _refuses(text: _WantedText, cache: Any, model: Any) -> None:
    """A mask that hides what is held is refused, and the cache is what it was."""
    mask = torch.cat([1 - text.mask, torch.ones(len(text.ids), 1, dtype=torch.int64)], 1)
    try:
        model(text.ids[:, :1], attention_mask=mask, past_key_values=cache)
    except TenutoError:
        return
    expect(False, "a later mask that hides what is held is refused", mask)


def _compare(text: _WantedText, cache: Any, count: int, model: Any, plain: Any, room: float) -> None:
    part = slice(text.ids.shape[1] - count, None)
    given = {"attention_mask": text.mask, "position_ids": text.positions[:, part]}
    got = model(text.ids[:, part], past_key_values=cache, **given).logits
    want = plain(text.ids, attention_mask=text.mask, position_ids=text.positions, use_cache=False).logits[:, part]
    real = text.mask[:, part].bool()
    expect(bool(torch.isfinite(got).all()), "logits are finite", text.use)
    gap, most = (got - want)[real].abs(), max(1.0, float(want[real].abs().max()) if bool(real.any()) else 1.0)
    expect(not gap.numel() or float(gap.max()) <= room * most, "logits are those of the text at once", text.use)
