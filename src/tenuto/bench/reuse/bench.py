"""What a store of prefixes is worth: loading a prompt against computing it, in time, bytes and quality."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from tenuto.bench.likelihood import CONTINUED, text_of
from tenuto.bench.reading import CacheEntry, attached, new_cache, plain_bytes
from tenuto.kv.attach import AttachedRun
from tenuto.measure.devices import device_words, versions
from tenuto.measure.folders import check_folder
from tenuto.measure.resume import Unfinished
from tenuto.measure.speed import synchronise
from tenuto.records.build import build
from tenuto.records.reuse import ReuseRun, write_reuse_run
from tenuto.reuse.prefix import PrefixStore
from tenuto.zoo.language import LanguageModel, check_length

__all__ = ["bench"]

GREEDY = 32


@dataclass(frozen=True, slots=True, eq=False)
class _Start:
    """One way to the first token: its cache and logits, wall and processor seconds."""

    cache: Any
    logits: torch.Tensor
    wall: float
    cpu: float


@torch.no_grad()
def bench(
    language: LanguageModel,
    addresses: Sequence[str],
    *,
    tokens: int,
    repeats: int,
    seed: int = 0,
    out: Path | None = None,
    command: str = "",
) -> list[ReuseRun]:
    """A row per store, each filled first with one prompt of real text; one record each in ``out``, if it is given.

    Stopped before, the same call goes on with the stores that are missing. The command is stored in the records.

    Raises:
        InputError: an address cannot be used, or the prompt is longer than the model was made for.
        AttachError: no prefix of this model can be stored.
    """
    check_length(language, tokens + CONTINUED)
    if out is not None:
        check_folder(out)
    settings = {"repeats": repeats, "seed": seed}
    plan = {"weights": language.fingerprint, "tokens": tokens, **settings, "stores": len(addresses)}
    unfinished = Unfinished(out, {**plan, **versions("transformers")})
    ids, runs = text_of(language, seed, tokens + CONTINUED), []
    for number, address in enumerate(tqdm(addresses, desc="stores", leave=False, disable=None)):
        if unfinished.get(number) is None:
            with PrefixStore(address) as store:
                unfinished.put(number, asdict(_row(language, store, address, ids, tokens, repeats)))
        runs.append(replace(build(ReuseRun, unfinished.get(number)), settings=settings, command=command))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for run in runs:
            write_reuse_run(run, out)
    unfinished.remove()
    return runs


def _row(
    language: LanguageModel, store: PrefixStore, address: str, ids: torch.Tensor, tokens: int, repeats: int
) -> ReuseRun:
    prompt, loading = ids[:, :tokens], CacheEntry(store=store)
    with attached(language, loading) as run:
        _start(language, run, prompt)
        store.flush()
        size, restored = run.prefixes.size(prompt) if run and run.prefixes else (0, 0)
    pairs = []
    for turn in range(repeats):
        found = {}
        for way in ("load", "compute")[:: 1 if turn % 2 else -1]:
            with attached(language, loading if way == "load" else CacheEntry()) as run:
                found[way] = _start(language, run, prompt)
        pairs.append((found["load"], found["compute"]))
    loaded, computed = pairs[-1]
    with attached(language, loading):
        text, likelihood = _goes_on(language, loaded, ids[:, tokens:])
    other, expected = _goes_on(language, computed, ids[:, tokens:])
    ratios = sorted(plain.wall / mine.wall for mine, plain in pairs)
    return ReuseRun(
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
        model=language.name,
        fingerprint=language.fingerprint,
        settings={},
        versions=versions("transformers"),
        device=device_words(language.device, language.model.dtype),
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
