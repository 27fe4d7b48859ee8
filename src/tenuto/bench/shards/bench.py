"""Sharded KV caches on several processes of this machine, against the model's own cache: placements and selectors.

Every rank is a process of its own (``python -m tenuto.bench.shards.bench``), joined over gloo. All read the same texts,
and are given the tokens after them one by one: once with transformers' cache, once for every placement and selector.
"""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tenuto import catalog
from tenuto.errors import InputError, StoreError
from tenuto.measure.devices import versions
from tenuto.measure.folders import check_folder
from tenuto.measure.resume import Unfinished
from tenuto.records.build import build
from tenuto.records.shards import BASELINE, ShardsRun, write_shards_run
from tenuto.shards.policy import ShardMethod
from tenuto.tiers.codec import PageCodec

__all__ = ["ALL", "FITTED", "ShardingJob", "as_mixture", "default_placement", "measure"]

ALL = "all"
"""The selector that reads everything."""
LIMIT = 3600.0
FITTED, FITTED_SEED = 256, 99
"""Tokens of the text that routers are fitted on, and its number."""


def default_placement() -> str:
    """What a job places tokens by that names nothing."""
    methods = catalog.methods("shards").values()
    return next(info.name for info in methods if issubclass(info.cls, ShardMethod) and info.cls.default)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardingJob:
    """What is measured.

    Attributes:
        model: a name or folder of a language model; ranks: processes.
        placements, selectors, codecs: texts of methods of the shards family, "all" for a selector that reads
            everything, and codecs of old pages; everything is measured with everything.
        keep, window: of selectors; profile: file of the profile of a selector that needs one.
        page: tokens per page.
        resident, utility, lossy: of the schedule; resident 1: there is none.
        context, tokens: of the texts, and after them; rows: texts.
        experts: a dense model becomes a mixture of so many; 0: it stays as it is. top_k: of each token; 0: all.
    """

    model: str
    ranks: int = 2
    placements: tuple[str, ...] = field(default_factory=lambda: (default_placement(),))
    selectors: tuple[str, ...] = ("all",)
    codecs: tuple[str, ...] = ("raw",)
    keep: float = 0.125
    window: int = 32
    profile: str | None = None
    page: int = 16
    resident: float = 1.0
    utility: str = "lru"
    lossy: bool = False
    context: int = 256
    tokens: int = 32
    rows: int = 2
    experts: int = 0
    top_k: int = 0

    def __post_init__(self) -> None:
        for placement, selector in product(self.placements, self.selectors):
            if self.method(placement, selector).profiled and self.profile is None:
                raise InputError(
                    f"The selector {selector} needs a profile. Make one with: tenuto calibrate shards --out FILE."
                )
        for name in self.codecs:
            PageCodec.parse(name)

    def method(self, placement: str, selector: str) -> ShardMethod:
        """The two as one method, with the job's numbers.

        Raises:
            PolicyError: there is no such method, or the two do not go together.
        """
        placed = _with(placement, page=self.page)
        if selector == ALL:
            return catalog.parse(placed, "shards")
        return catalog.parse(f"{placed}+{_with(selector, keep=self.keep, window=self.window)}", "shards")

    @property
    def schedule(self) -> str:
        """The schedule in words."""
        how = f"{self.utility}, {self.resident:g} of full pages stay"
        return "none" if self.resident == 1 else how + (", others deleted" if self.lossy else "")

    @property
    def keys(self) -> list[list[str]]:
        """What is measured, in turn: the model's own cache, then placement, selector and codec of every other row."""
        rows = product(self.placements, self.selectors, self.codecs)
        return [[BASELINE, "all", "raw"], *(list(row) for row in rows)]

    @property
    def settings(self) -> dict[str, Any]:
        """What the record says of it."""
        numbers = {"ranks": self.ranks, "page": self.page}
        sparse = {"keep": self.keep, "window": self.window} if set(self.selectors) != {ALL} else {}
        mixture = {"experts": self.experts, "top_k": self.top_k or self.experts} if self.experts else {}
        texts = {"context": self.context, "tokens": self.tokens, "rows": self.rows}
        return {**numbers, **sparse, **texts, **mixture}


def measure(job: ShardingJob, out: Path | None = None, *, command: str = "") -> list[ShardsRun]:
    """The model's own cache, then every placement, selector and codec; one rank is this process.

    Stopped before, the same call goes on with what is missing; the model's own cache is measured again.

    Args:
        job: what is measured; out: folder for one record each; command: how it was asked for.

    Raises:
        StoreError: a rank failed; the others are stopped.
        InputError: ``out`` cannot be written, or holds an unfinished benchmark of another job.
    """
    if out:
        check_folder(out)
    unfinished = Unfinished(out, {**asdict(job), **versions("transformers")})
    if job.ranks == 1:
        rank_main(job, list(unfinished.done), lambda key, run: unfinished.put(key, asdict(run)))
    else:
        _ranks(job, unfinished)
    found = [build(ShardsRun, unfinished.get(key)) for key in job.keys]
    runs = [replace(run, command=command) for run in found]
    if out:
        out.mkdir(parents=True, exist_ok=True)
        for run in runs:
            write_shards_run(run, out)
    unfinished.remove()
    return runs


def _ranks(job: ShardingJob, unfinished: Unfinished) -> None:
    """Have processes of this machine measure what is missing; what all of them have found is kept at once."""
    import torch

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    threads = max(torch.get_num_threads() // job.ranks, 1)
    given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(job.ranks)}
    given["OMP_NUM_THREADS"] = str(threads)  # the ranks share what this process may use
    with TemporaryDirectory(prefix="tenuto-ranks-") as place:
        folder, words = Path(place), [json.dumps(asdict(job)), place, json.dumps(list(unfinished.done))]
        start = [sys.executable, "-m", "tenuto.bench.shards.bench", *words]
        ranks = []
        for rank in range(job.ranks):
            with (folder / f"{rank}.log").open("wb") as log:
                ranks.append(subprocess.Popen(start, env={**os.environ, **given, "RANK": str(rank)}, stderr=log))
        try:
            _wait(ranks, folder, unfinished)
        finally:
            for process in ranks:
                process.kill()
                process.wait()
            _gather(folder, job.ranks, unfinished)


def _gather(folder: Path, ranks: int, unfinished: Unfinished) -> None:
    """Keep what all ranks have written and is not kept yet; a line that is half-written waits."""
    paths = [folder / f"{rank}.jsonl" for rank in range(ranks)]
    if not all(path.is_file() for path in paths):
        return
    lines = [path.read_text().rpartition("\n")[0].splitlines() for path in paths]
    for same in zip(*lines, strict=False):
        pairs = [json.loads(line) for line in same]
        key = pairs[0][0]
        if unfinished.get(key) is None:
            unfinished.put(key, asdict(_joined([build(ShardsRun, facts) for _, facts in pairs])))


def _joined(ranks: Sequence[ShardsRun]) -> ShardsRun:
    """One record of what all ranks say of one pair; each has only its own bytes."""
    first = ranks[0]
    if first.placement == BASELINE:
        return first
    lists: dict[str, Any] = {
        name: [size for run in ranks for size in getattr(run, name)]
        for name in ("bytes_held", "bytes_below", "bytes_sent")
    }
    worst: dict[str, Any] = {name: max(getattr(run, name) for run in ranks) for name in ("logit_gap", "stall_s")}
    fetched = sum(run.pages_fetched for run in ranks)
    return replace(first, **lists, **worst, pages_fetched=fetched, same=min(run.same for run in ranks))


def _wait(ranks: list[subprocess.Popen[bytes]], folder: Path, unfinished: Unfinished) -> None:
    start = time.monotonic()
    while any(process.poll() is None for process in ranks) and time.monotonic() - start < LIMIT:
        if any(process.poll() for process in ranks):
            break
        _gather(folder, len(ranks), unfinished)
        time.sleep(0.1)
    for rank, process in enumerate(ranks):
        if process.poll() != 0:
            lines = (folder / f"{rank}.log").read_text(errors="replace").strip().splitlines()
            raise StoreError(f"Rank {rank} stopped: {lines[-1][:300] if lines else 'it did not finish in time'}")


def as_mixture(language: Any, experts: int, top_k: int) -> None:
    """Make a dense model a mixture of experts, of which each token takes ``top_k`` (0: all), in place; the same one
    wherever it is done."""
    from tenuto.bench.likelihood import text_of
    from tenuto.zoo.mixture import partition

    partition(language.model, text_of(language, FITTED_SEED, FITTED), experts, top_k or experts)


def rank_main(job: ShardingJob, done: Sequence[str], keep: Callable[[list[str], ShardsRun], object]) -> None:
    """What one rank does, under torchrun's variables if there are others; what it finds it gives to ``keep`` at once.

    Args:
        done: keys of what need not be measured, as JSON.
    """
    import torch
    from transformers import DynamicCache

    from tenuto.bench.likelihood import text_of
    from tenuto.calibration import Profile, fingerprint
    from tenuto.kv.models import find_layout
    from tenuto.measure.devices import device_words
    from tenuto.shards import Schedule, open_mesh, shard
    from tenuto.zoo.language import load_language

    mesh = open_mesh(job.ranks) if job.ranks > 1 else None
    language = load_language(job.model)
    if job.experts:
        as_mixture(language, job.experts, job.top_k)
    ids = torch.cat([text_of(language, seed, job.context + job.tokens + 1) for seed in range(job.rows)])
    model, layout = language.model, find_layout(language.model)
    plain, own_speed = _forced(model, DynamicCache(config=model.config), ids, job)
    own = _perplexity(plain, ids, job)
    shared: dict[str, Any] = {
        "model": job.model,
        "fingerprint": fingerprint(layout.decoder),
        "settings": job.settings,
        "versions": versions("transformers"),
        "device": device_words(language.device, model.dtype),
        "own": own,
        "own_tokens_per_s": own_speed,
        "logit_largest": float(plain.abs().max()),
        "steps": job.tokens,
    }
    full = job.rows * (job.context + job.tokens) * layout.token_bytes
    held: dict[str, Any] = {"bytes_held": [full], "bytes_full": full}
    first = ShardsRun(placement=BASELINE, selector=ALL, perplexity=own, tokens_per_s=own_speed, **held, **shared)
    if json.dumps(job.keys[0]) not in done:
        keep(job.keys[0], first)
    demoted = Schedule(resident=job.resident, utility=job.utility, lossy=job.lossy) if job.resident < 1 else None
    profile = Profile.load(Path(job.profile)) if job.profile else None
    for key in job.keys[1:]:
        if json.dumps(key) in done:
            continue
        name, chosen, codec = key
        method = job.method(name, chosen)
        with shard(model, method, mesh=mesh, schedule=demoted, codec=codec, profile=profile) as run:
            logits, speed = _forced(model, run.cache(), ids, job)
            facts = run.summary()
        numbers: dict[str, Any] = {"tokens_per_s": speed, "codec": codec, "schedule": job.schedule, **_facts(facts)}
        numbers["perplexity"] = _perplexity(logits, ids, job)
        keep(key, ShardsRun(placement=name, selector=chosen, **numbers, **_apart(plain, logits), **shared))


def _with(text: str, **numbers: float) -> str:
    """A method's text with these numbers, those in the text before them."""
    given = {part.partition("=")[0].strip() for part in text.partition(":")[2].split(",")}
    more = ",".join(f"{name}={value:g}" for name, value in numbers.items() if name not in given)
    return text + ("," if ":" in text else ":") + more if more else text


def _forced(model: Any, cache: Any, ids: Any, job: ShardingJob) -> tuple[Any, float]:
    """Logits ``[rows, tokens, vocabulary]`` of decoding steps that are given the text, and tokens per second."""
    import torch

    with torch.no_grad():
        model(ids[:, : job.context], past_key_values=cache, logits_to_keep=1)
        start, said = time.perf_counter(), []
        for at in range(job.context, job.context + job.tokens):
            said.append(model(ids[:, at : at + 1], past_key_values=cache).logits[:, -1].float())
    return torch.stack(said, 1), job.rows * job.tokens / (time.perf_counter() - start)


def _perplexity(logits: Any, ids: Any, job: ShardingJob) -> float:
    following = ids[:, job.context + 1 :, None]
    return math.exp(-float(logits.log_softmax(-1).gather(-1, following).mean()))


def _apart(plain: Any, found: Any) -> dict[str, Any]:
    """How far logits are from the model's own."""
    p, q = plain.log_softmax(-1), found.log_softmax(-1)
    return {
        "kl": max(float((p.exp() * (p - q)).sum(-1).mean()), 0.0),
        "logit_gap": float((plain - found).abs().max()),
        "same": float((plain.argmax(-1) == found.argmax(-1)).float().mean()),
    }


def _facts(facts: dict[str, Any]) -> dict[str, Any]:
    """What a run's summary says, by the names of the record."""
    same = ("bytes_full", "collectives", "tokens_read", "tokens_held", "pages_read", "pages_held", "tokens_deleted")
    told = {name: facts[name] for name in same}
    mine = {"bytes_held": [facts["bytes_held"]], "bytes_sent": [facts["bytes_sent"]], "balance": facts["balance"]}
    below = {"bytes_below": [facts.get("bytes_below", 0)], "pages_fetched": facts.get("pages_fetched", 0)}
    return {**told, **mine, **below, "stall_s": facts.get("stall_s", 0.0), "dropped": facts["dropped_mass"]}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    lists = {name: tuple(given[name]) for name in ("placements", "selectors", "codecs")}
    job, place = ShardingJob(**{**given, **lists}), Path(sys.argv[2]) / f"{os.environ['RANK']}.jsonl"
    with place.open("w", buffering=1) as lines:
        rank_main(job, json.loads(sys.argv[3]), lambda key, run: lines.write(json.dumps([key, asdict(run)]) + "\n"))
