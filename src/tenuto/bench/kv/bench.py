"""The KV task: read the same contexts under every policy and budget; measure memory, time and what is still known.

The rows: the uncompressed cache ("none", transformers' DynamicCache), and every policy at every budget. Per round,
which is one example of one task at one length, all rows read the same context in turn; the questions are asked of
copies of the compressed cache. By default a question is not in the text that is compressed, so a policy cannot know
what will be asked, and question and answer are held whole on top of the budget.

A round is kept as soon as it is measured, so that a benchmark goes on where it was stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tenuto import catalog
from tenuto.bench.kv.cases import make_case
from tenuto.bench.kv.job import KVJob, Round, distinct
from tenuto.bench.kv.scores import Outcome, summarise
from tenuto.bench.likelihood import text_of
from tenuto.bench.reading import CacheEntry, attached, reading
from tenuto.budget import MemoryBudget
from tenuto.errors import InputError
from tenuto.kv.policy import KVMethod
from tenuto.measure.devices import device_words, versions
from tenuto.measure.folders import check_folder
from tenuto.measure.resume import Unfinished
from tenuto.records.kv import KVRun, read_kv_runs, write_kv_run
from tenuto.zoo.language import LanguageModel, check_length, load_language

__all__ = ["DEMO", "bench", "demo_rows"]

ROOM = 256
"""Tokens left for questions and answers when a length is checked against the model's positions."""


DEMO = KVJob(contexts=(384,), tasks=("niah_single",), examples=5, decoded=8)
"""What `tenuto demo` measures: about a minute on two cores."""


def demo_rows() -> list[CacheEntry]:
    """What the methods that are installed show of themselves."""
    shown = [info.cls.demo for info in catalog.methods("kv").values() if issubclass(info.cls, KVMethod)]
    return [
        CacheEntry(policy=catalog.parse(text, "kv"), budget=MemoryBudget.keep(keep))
        for demo in shown
        for text, keep in demo.items()
    ]


def bench(
    model: str,
    rows: Sequence[CacheEntry],
    out: Path,
    job: KVJob,
    *,
    device: str = "auto",
    command: str = "",
) -> list[KVRun]:
    """Measure policies at budgets on a language model and write one record per row and length into ``out``.

    Args:
        model: ``bundled:smollm2`` or a folder.
        rows: policies with their budgets; the baseline is added.
        out: folder for the records.
        job: lengths, tasks, examples, seed.
        device: "auto", or a torch device; command: stored in the records.

    Returns:
        The records written, the baseline first.

    Raises:
        InputError: the folder cannot be written or holds records of another job, a budget is below what a policy keeps,
            or a length does not fit the model.
        ModelError: the model is missing or damaged.
    """
    entries, every = [CacheEntry(), *rows], [row.every for row in rows]
    distinct([f"{entry.name} at {entry.budget_text}" for entry in entries])
    check_folder(out)
    language = load_language(model, device)
    check_length(language, max(job.contexts) + ROOM)
    shared = KVRun(
        policy="",
        budget="",
        context=0,
        model=language.name,
        fingerprint=language.fingerprint,
        settings={**job.settings(), **({"every": every[0]} if any(every) else {})},
        versions=versions("transformers"),
        device=device_words(language.device, language.model.dtype),
        command=command,
    )
    _same_job(out, shared)
    plan = {"job": asdict(job), "rows": [[entry.name, entry.budget_text] for entry in entries]}
    told = {"weights": shared.fingerprint, "device": shared.device, "every": every, **shared.versions}
    unfinished = Unfinished(out, {**plan, **told})
    _warm_up(language, entries, job)
    found = _measure(language, entries, job, unfinished)
    runs = [run for context in job.contexts for run in summarise(shared, entries, context, found)]
    for run in runs:
        write_kv_run(run, out)
    unfinished.remove()
    return runs


def _same_job(out: Path, mine: KVRun) -> None:
    """Records of another job would end in one table with these: refuse before any work."""
    for run in read_kv_runs(out) if out.is_dir() else []:
        told, now = ({"model weights": it.fingerprint, **it.settings} for it in (run, mine))
        for key in {**now, **told}:
            if told.get(key) != now.get(key):
                raise InputError(
                    f"{out} holds records of another job ({key}: {told.get(key)}, now {now.get(key)}). "
                    "Give another --out."
                )


def _warm_up(language: LanguageModel, entries: Sequence[CacheEntry], job: KVJob) -> None:
    """One untimed context per row: it pays for what a process allocates once. What cannot be is refused first."""
    for entry in entries:
        with attached(language, entry):
            pass
    ids = text_of(language, 0, min(job.contexts))
    for entry in tqdm(entries, desc="warm-up", unit="row", leave=False):
        with reading(language, entry, ids) as read:
            read.decode_seconds(1)


def _measure(
    language: LanguageModel, entries: Sequence[CacheEntry], job: KVJob, unfinished: Unfinished
) -> Mapping[Round, list[Outcome]]:
    found: dict[Round, list[Outcome]] = {}
    with tqdm(total=len(job.rounds) * len(entries), desc="kv", unit="row") as bar:
        for this in job.rounds:
            told = unfinished.get(this)
            if told is None:
                told = [outcome.told() for outcome in _round(language, entries, job, this, bar)]
                unfinished.put(this, told)
            else:
                bar.update(len(entries))
            found[this] = [Outcome.read(one) for one in told]
    return found


def _round(language: LanguageModel, entries: Sequence[CacheEntry], job: KVJob, this: Round, bar: Any) -> list[Outcome]:
    """All rows on one example: the baseline, then the others, from another one on each time."""
    length, task, number = this
    case = make_case(language, task, job.seed + number, length, job.question)
    others = list(range(1, len(entries)))
    turn = number % max(len(others), 1)
    outcomes: dict[int, Outcome] = {}
    for index in [0, *others[turn:], *others[:turn]]:
        with reading(language, entries[index], case.context) as read:
            outcomes[index] = Outcome(
                seconds=read.seconds,
                decode_seconds=read.decode_seconds(job.decoded),
                held=read.held(),
                scores=case.scores(read),
            )
        bar.update()
    return [outcomes[index] for index in range(len(entries))]
