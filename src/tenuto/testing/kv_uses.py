"""The differential law of the KV family: at a full budget an attached model is the plain one, however it is used.

    check_use(CacheUse(policy="my_method", rows=2, chunk=5, journey=("crop", "save")))

A :class:`CacheUse` is drawn at random by the tests. Either the attached model gives the plain model's logits and texts,
as far as its precision goes, or it refuses with a TenutoError; anything else breaks the law.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import DynamicCache

from tenuto import catalog
from tenuto.budget import MemoryBudget
from tenuto.errors import TenutoError
from tenuto.kv.attach import AttachedRun, attach
from tenuto.reuse.prefix import PrefixStore
from tenuto.testing.kv import TinyLM, tokens
from tenuto.testing.law import expect

__all__ = ["JOURNEYS", "CacheUse", "check_use"]

LAW = "an attached model at a full budget is the plain one"
JOURNEYS = ("turn", "crop", "save", "fork", "swap", "repeat", "step")
Journey = Literal["turn", "crop", "save", "fork", "swap", "repeat", "step"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheUse:
    """One ordinary way to use a model.

    Attributes:
        policy: text of a method; seed: of weights and tokens; dtype: of the weights.
        rows, length: of the prompt; pads: padding of each row; side: where it stands.
        chunk: tokens per call of a prompt that comes in several; 0: at once.
        journey: what happens to the cache after the prompt: a turn of several tokens, a crop and the same tokens once
            more, a file and back, a copy, rows in another order or twice, a decoding step.
        generate: texts are compared instead, with so many beams; 0: logits of the journey. lookup: prompt lookup.
        threads: that do the same at once; again: whether the policy is attached a second time.
        store: whether prompts are kept in a store, and the use made twice.
    """

    policy: str
    seed: int = 0
    dtype: str = "float32"
    rows: int = 1
    length: int = 20
    pads: tuple[int, ...] = (0, 0, 0)
    side: Literal["left", "right"] = "left"
    chunk: int = 0
    journey: tuple[Journey, ...] = ()
    generate: int = 0
    lookup: bool = False
    threads: int = 1
    again: bool = False
    store: bool = False


def check_use(use: CacheUse) -> bool:
    """Make a use of the plain model and of an attached one; False if it was refused.

    Raises:
        LawError: other logits or texts than the plain model's, or they are not finite.
    """
    model: Any = TinyLM(use.seed).to(getattr(torch, use.dtype))
    plain = _made(model, None, use)
    store = PrefixStore("host:?max=64MiB", page=4) if use.store else nullcontext()
    with store as kept:
        for _ in range(2 if use.again else 1):
            try:
                with attach(model, catalog.parse(use.policy), budget=MemoryBudget.keep(1.0), store=kept) as run:
                    found = [_threads(model, run, use) for _ in range(2 if use.store else 1)]
            except TenutoError:
                return False
            for some in found:
                for one in some:
                    _compare(one, plain, use)
    expect("tenuto" not in (model.config._attn_implementation, *vars(model)), "nothing of ours is left", vars(model))
    _compare(_made(model, None, use), plain, use)
    return True


def _compare(found: torch.Tensor, plain: torch.Tensor, use: CacheUse) -> None:
    if not plain.is_floating_point():
        expect(torch.equal(found, plain), LAW, (use, found.tolist(), plain.tolist()))
        return
    # Sums of three layers, each rounded to the dtype, in another order: some hundred times its precision at the size
    # of the logits. Attention that a policy has written out is in float32, whatever the model.
    eps = max(torch.finfo(getattr(torch, use.dtype)).eps, torch.finfo(torch.float32).eps)
    room = 256 * eps * float(plain.abs().max())
    gap = float((found - plain).abs().max()) if found.shape == plain.shape else float("inf")
    expect(gap <= room, LAW, (use, gap, room))


def _threads(model: Any, run: AttachedRun, use: CacheUse) -> list[torch.Tensor]:
    if use.threads == 1:
        return [_made(model, run, use)]
    with ThreadPoolExecutor(use.threads) as pool:
        return list(pool.map(lambda _: _made(model, run, use), range(use.threads)))


@torch.no_grad()
def _made(model: Any, run: AttachedRun | None, use: CacheUse) -> torch.Tensor:
    ids = tokens(use.length, use.seed, use.rows)
    mask = torch.ones_like(ids)
    for row, pad in enumerate(use.pads[: use.rows]):
        pad = min(pad, use.length - 2)
        at = slice(0, pad) if use.side == "left" or use.generate else slice(use.length - pad, use.length)
        mask[row, at] = 0
    ids = ids * mask
    if use.generate:
        options: dict[str, Any] = {"prefill_chunk_size": use.chunk} if use.chunk else {}
        options |= {"prompt_lookup_num_tokens": 2} if use.lookup else {}
        written: torch.Tensor = model.generate(
            ids, attention_mask=mask, max_new_tokens=6, do_sample=False, num_beams=use.generate, **options
        )
        return written
    return _Journey(model, run, ids, mask).go(use)


class _Journey:
    """One cache on its way, ours or transformers' own."""

    def __init__(self, model: Any, run: AttachedRun | None, ids: torch.Tensor, mask: torch.Tensor) -> None:
        self.model, self.run, self.ids, self.mask = model, run, ids, mask
        self.cache: Any = run.cache() if run else DynamicCache(config=model.config)
        self.fed, self.seen = ids[:, :0], mask[:, :0]
        self.logits: list[torch.Tensor] = []

    def go(self, use: CacheUse) -> torch.Tensor:
        """Logits of all tokens that are none of padding, in the order they were computed, ``[tokens, vocabulary]``."""
        chunk = use.chunk or use.length
        with self.run.prefill() if self.run and use.chunk else nullcontext():
            for start in range(0, use.length, chunk):
                self.feed(self.ids[:, start : start + chunk], self.mask[:, start : start + chunk])
        steps: dict[str, Callable[[int], None]] = {
            "turn": lambda n: self.feed(tokens(4, n, len(self.fed))),
            "step": lambda n: self.feed(tokens(1, n, len(self.fed))),
            "crop": lambda n: self.crop(3),
            "save": lambda n: self.save(),
            "fork": lambda n: self.fork(n),
            "swap": lambda n: self.select(torch.arange(len(self.fed)).flip(0)),
            "repeat": lambda n: self.select(torch.arange(len(self.fed)).repeat_interleave(2)),
        }
        for number, name in enumerate((*use.journey, "step")):
            steps[name](number + 7)
        return torch.cat(self.logits)

    def feed(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        """The next tokens, none of them padding if there is no mask."""
        mine = torch.ones_like(ids) if mask is None else mask
        self.seen = torch.cat([self.seen, mine], 1)
        self.fed = torch.cat([self.fed, ids], 1)
        at = (self.seen.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        found = self.model(ids, attention_mask=self.seen, position_ids=at, past_key_values=self.cache, use_cache=True)
        self.logits.append(found.logits[mine.bool()])

    def crop(self, count: int) -> None:
        """Take tokens back, and give them once more."""
        ids, mask = self.fed[:, -count:], self.seen[:, -count:]
        self.cache.crop(-count)
        self.fed, self.seen = self.fed[:, :-count], self.seen[:, :-count]
        self.feed(ids, mask)

    def save(self) -> None:
        """A file and back."""
        if self.run:
            with tempfile.TemporaryDirectory() as folder:
                self.run.save(Path(folder) / "cache", self.cache)
                self.cache = self.run.load(Path(folder) / "cache")

    def fork(self, number: int) -> None:
        """Go on with a copy, after the original has seen something else."""
        before, self.cache = self.cache, copy.deepcopy(self.cache)
        other, mask = tokens(1, number, len(self.fed)), torch.cat([self.seen, self.seen.new_ones(len(self.seen), 1)], 1)
        self.model(other, attention_mask=mask, past_key_values=before, use_cache=True)

    def select(self, rows: torch.Tensor) -> None:
        """Rows in another order, or several times."""
        self.cache.batch_select_indices(rows)
        self.fed, self.seen = self.fed[rows], self.seen[rows]
