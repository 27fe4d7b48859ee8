"""What a store of prefixes is worth: loading a prompt against computing it, in time, bytes and quality."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from tenuto.eval.language import LanguageModel, check_length
from tenuto.eval.reading import Entry, attached, new_cache, plain_bytes
from tenuto.eval.speed import synchronise
from tenuto.eval.tasks.likelihood import CONTINUED, text_of
from tenuto.kv.attach import AttachedRun
from tenuto.kv.reuse.prefix import PrefixStore

__all__ = ["StoreRow", "measure"]

GREEDY = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRow:
    """One store and codec.

    Attributes:
        store, codec: of the row; context: tokens of the prompt; restored: those of them that were loaded.
        bytes_stored: of the prompt's pages; bytes_full: of its cache in the model's dtype.
        recompute_s, restore_s: seconds to the first token, medians of turns taken one after the other.
        speedup, speedup_low, speedup_high: median and range of their ratios; cpu_speedup: of processor seconds.
        logits_error: largest difference of the first token's logits; same_text: whether the next 32 tokens, taken
            greedily, are the same.
        perplexity, perplexity_computed: of the 64 tokens that follow in the text, after a loaded and a computed prompt.
    """

    store: str
    codec: str
    context: int
    restored: int
    bytes_stored: int
    bytes_full: int
    recompute_s: float
    restore_s: float
    speedup: float
    speedup_low: float
    speedup_high: float
    cpu_speedup: float
    logits_error: float
    same_text: bool
    perplexity: float
    perplexity_computed: float

    def row(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class _Start:
    """One way to the first token: its cache and logits, wall and processor seconds."""

    cache: Any
    logits: torch.Tensor
    wall: float
    cpu: float


@torch.no_grad()
def measure(
    language: LanguageModel, addresses: Sequence[str], *, tokens: int, repeats: int, seed: int = 0
) -> Iterator[StoreRow]:
    """A row per store, each filled first with one prompt of real text.

    Raises:
        InputError: an address cannot be used, or the prompt is longer than the model was made for.
        AttachError: no prefix of this model can be stored.
    """
    check_length(language, tokens + CONTINUED)
    ids = text_of(language, seed, tokens + CONTINUED)
    for address in addresses:
        with PrefixStore(address) as store:
            yield _row(language, store, address, ids, tokens, repeats)


def _row(
    language: LanguageModel, store: PrefixStore, address: str, ids: torch.Tensor, tokens: int, repeats: int
) -> StoreRow:
    prompt, loading = ids[:, :tokens], Entry(store=store)
    with attached(language, loading) as run:
        _start(language, run, prompt)
        store.flush()
        size, restored = run.prefixes.size(prompt) if run and run.prefixes else (0, 0)
    pairs = []
    for turn in range(repeats):
        found = {}
        for way in ("load", "compute")[:: 1 if turn % 2 else -1]:
            with attached(language, loading if way == "load" else Entry()) as run:
                found[way] = _start(language, run, prompt)
        pairs.append((found["load"], found["compute"]))
    loaded, computed = pairs[-1]
    with attached(language, loading):
        text, likelihood = _goes_on(language, loaded, ids[:, tokens:])
    other, expected = _goes_on(language, computed, ids[:, tokens:])
    ratios = sorted(plain.wall / mine.wall for mine, plain in pairs)
    return StoreRow(
        store=address.split(":")[0],
        codec="/".join(str(level.codec) for level in store.levels),
        context=tokens,
        restored=restored,
        bytes_stored=size,
        bytes_full=plain_bytes(computed.cache),
        recompute_s=statistics.median(plain.wall for _, plain in pairs),
        restore_s=statistics.median(mine.wall for mine, _ in pairs),
        speedup=statistics.median(ratios),
        speedup_low=ratios[0],
        speedup_high=ratios[-1],
        cpu_speedup=statistics.median(plain.cpu / mine.cpu for mine, plain in pairs),
        logits_error=float((loaded.logits - computed.logits).abs().max()),
        same_text=text == other,
        perplexity=likelihood,
        perplexity_computed=expected,
    )


def _start(language: LanguageModel, run: AttachedRun | None, prompt: torch.Tensor) -> _Start:
    """The first token of a prompt: from the attached store, or computed with transformers' own cache."""
    synchronise(language.device)
    wall, cpu = time.perf_counter(), time.process_time()
    cache = run.restore(prompt) if run else new_cache(language, None)
    rest = prompt[:, cache.get_seq_length() :]
    logits = language.model(rest, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1].float()
    logits.argmax().item()
    return _Start(cache, logits, time.perf_counter() - wall, time.process_time() - cpu)


def _goes_on(language: LanguageModel, start: _Start, following: torch.Tensor) -> tuple[list[int], float]:
    """Greedy tokens after a prompt, and the perplexity of the text that follows; the cache is used up."""
    cache, said = copy.deepcopy(start.cache), [int(start.logits.argmax())]
    while len(said) < GREEDY:
        given = torch.tensor([said[-1:]], device=language.device)
        said.append(int(language.model(given, past_key_values=cache, use_cache=True).logits[0, -1].argmax()))
    logits = language.model(following[:, :-1], past_key_values=start.cache, use_cache=True).logits[0].float()
    every = torch.cat([start.logits[None], logits])
    return said, float(torch.nn.functional.cross_entropy(every, following[0]).exp())
