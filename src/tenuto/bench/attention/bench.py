"""The attention task: measure trained models that differ in attention and seed only.

Held-out bits per byte and recall for every model; share of attention by level where the model has levels; decoding, in
turn, for the first seed of each attention. A model is kept as soon as it is measured, so that a benchmark goes on where
it was stopped; one that has a record in the folder is not measured again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from tenuto.attention import watch
from tenuto.attention.policy import shares
from tenuto.bench.attention.bits import bits_per_byte, held_windows
from tenuto.bench.attention.decoding import decoding
from tenuto.bench.attention.recall import recall_by_distance
from tenuto.calibration import fingerprint
from tenuto.errors import InputError, closest
from tenuto.measure.devices import device_words, pick_device, versions
from tenuto.measure.folders import check_folder
from tenuto.measure.resume import Unfinished
from tenuto.records.attention import FULL, AttentionRun, read_attention_runs, write_attention_run
from tenuto.records.build import build
from tenuto.texts.facts import Facts
from tenuto.train.minilm import canonical, is_plain, put_on, read_size
from tenuto.train.tokens import Tokens, prepare
from tenuto.train.training import TrainingLog, load_trained, read_log

__all__ = ["AttentionJob", "bench", "read_baselines"]

FACTORS = (1, 2, 4)
"""Contexts of bits per byte and recall, in training contexts."""

EQUAL = ("size", "steps", "digest")
"""What must be equal in all trainings that are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionJob:
    """What to measure.

    Attributes:
        windows: of held-out text, each four training contexts long. rows: of recall, per context, four questions each.
        contexts: tokens, at which decoding is timed; repeats: tokens decoded at each.
        seed: of recall.
    """

    windows: int = 48
    rows: int = 64
    contexts: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384, 32768)
    repeats: int = 16
    seed: int = 0


def bench(
    folders: Sequence[Path],
    out: Path,
    job: AttentionJob,
    *,
    device: str = "auto",
    command: str = "",
    text: Tokens | None = None,
) -> list[AttentionRun]:
    """Measure trained models and write one record for each into ``out``.

    Args:
        folders: written by ``tenuto train mini-lm``; text: what they were trained on, None for what is installed here.

    Returns:
        All records of ``out``, by attention and seed.

    Raises:
        ModelError: a folder holds no finished training, or is damaged.
        InputError: the trainings differ in more than attention and seed, were on another text, or ``out`` holds
            records of another job.
    """
    logs = [read_log(folder) for folder in folders]
    tokens = prepare() if text is None else text
    _check_equal(folders, logs, tokens)
    check_folder(out)
    where = pick_device(device)
    shared = {**{name: getattr(logs[0], name) for name in EQUAL}, "bible": logs[0].bible, **asdict(job)}
    settings = {key: list(value) if isinstance(value, tuple) else value for key, value in shared.items()}
    there = {(run.attention, run.seed): run for run in read_attention_runs(out)} if out.is_dir() else {}
    if other := next((run for run in there.values() if run.settings != settings), None):
        raise InputError(f"{out} holds records of another job: {_first_other(other, settings)}. Give another --out.")
    unfinished = Unfinished(out, {"settings": settings, **versions("transformers")})
    measured: list[tuple[Path, AttentionRun]] = []
    for folder, log in tqdm(list(zip(folders, logs, strict=True)), desc="measuring", leave=False, disable=None):
        model = load_trained(folder, where)[0]
        run, weights = there.get((log.attention, log.seed)), fingerprint(model)
        if run is None or run.fingerprint != weights:
            key = [log.attention, log.seed, weights]
            if unfinished.get(key) is None:
                unfinished.put(key, asdict(_measure(model, log, tokens, job)))
            found = build(AttentionRun, unfinished.get(key))
            run = replace(found, model=folder.name, settings=settings, command=command)
        measured.append((folder, run))
    for run in [*(run for _, run in measured), *_timed(measured, tokens, job, where)]:
        write_attention_run(run, out)
    unfinished.remove()
    return read_attention_runs(out)


def read_baselines(given: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """The attentions to compare with, as they are recorded: those given, or one that attends to everything, the model's
    own before a method.

    Raises:
        InputError: none of the folders has it. PolicyError: there is no such attention.
    """
    there = [read_log(folder).attention for folder in folders]
    asked = [canonical(name) for name in given] or sorted(filter(_whole, there), key=lambda name: name != FULL)[:1]
    if lacking := next((name for name in asked if name not in there), None):
        raise InputError(f"The baseline {lacking!r} is in none of the folders.{closest(lacking, there)}")
    return asked


def _first_other(run: AttentionRun, settings: dict[str, Any]) -> str:
    return next(
        f"{key} is {run.settings.get(key)} there, now {settings.get(key)}"
        for key in {**run.settings, **settings}
        if run.settings.get(key) != settings.get(key)
    )


def _check_equal(folders: Sequence[Path], logs: Sequence[TrainingLog], tokens: Tokens) -> None:
    if not logs:
        raise InputError("No folders were given. Give those that `tenuto train mini-lm --out` wrote.")
    for folder, log in zip(folders, logs, strict=True):
        pairs = {name: (getattr(log, name), getattr(logs[0], name)) for name in EQUAL}
        pairs |= {name: (log.shape.get(name, number), number) for name, number in logs[0].shape.items()}
        for name, (mine, first) in pairs.items():
            if mine != first:
                raise InputError(f"{folder} was trained with {name}={mine}, {folders[0]} with {name}={first}.")
    names = [(log.attention, log.seed) for log in logs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{twice[0]} with seed {twice[1]} was given twice. Give each model once.")
    if tokens.digest != logs[0].digest:
        raise InputError(
            f"{folders[0]} was trained on text {logs[0].digest}, installed here is {tokens.digest}: what is held out "
            f"may have been trained on. Measure where it was trained, or train again."
        )


def _measure(model: Any, log: TrainingLog, tokens: Tokens, job: AttentionJob) -> AttentionRun:
    """All but decoding."""
    context = int(log.shape.get("context", read_size(log.size).context))
    windows = held_windows(tokens, max(FACTORS) * context, job.windows)
    facts = Facts(tokens.tokenizer)
    bits, recall = [], []
    for factor in FACTORS:
        length = factor * context
        bits.append(bits_per_byte(model, windows, tokens.bytes_of, length))
        asked = recall_by_distance(model, tokens, facts, length=length, rows=job.rows, seed=job.seed)
        recall += [(length, distance, rank) for distance, rank in asked]
    return AttentionRun(
        attention=log.attention,
        seed=log.seed,
        parameters=log.parameters,
        context=context,
        model="",
        fingerprint=fingerprint(model),
        settings={},
        versions=versions("transformers"),
        device=device_words(torch.device(model.device), model.dtype),
        train_tokens_per_s=log.tokens_per_s,
        train_tokens_per_cpu_s=log.tokens_per_cpu_s,
        losses=log.losses,
        bits=tuple(bits),
        recall=tuple(recall),
        candidates=len(facts.values),
        usage=() if is_plain(log.attention) else _usage(model, windows[:4, :-1]),
        period=_period(log.attention),
        whole=_whole(log.attention),
    )


def _whole(attention: str) -> bool:
    """Whether it attends to everything."""
    policy = put_on(attention)
    return attention == FULL or (policy is not None and policy.whole and str(policy) == attention)


def _period(attention: str) -> int:
    """Tokens between two skips of a periodic pattern, 0 for any other attention."""
    policy = put_on(attention)
    return policy.attending.period if policy else 0


@torch.inference_mode()
def _usage(model: Any, ids: torch.Tensor) -> tuple[dict[str, float], ...]:
    """Per layer, each level's share of attention, mean over heads; empty where a model has no levels."""
    with watch(model) as layers:
        model(input_ids=ids.to(model.device), use_cache=False)
        told = [shares(usage) for usage in layers if usage]
    return tuple({level: sum(heads) / len(heads) for level, heads in usage.items()} for usage in told)


def _timed(
    measured: Sequence[tuple[Path, AttentionRun]], tokens: Tokens, job: AttentionJob, device: torch.device
) -> list[AttentionRun]:
    """The records of the first seed of each attention with decoding, all timed in turn; none if all have it."""
    first: dict[str, tuple[Path, AttentionRun]] = {}
    for folder, run in sorted(measured, key=lambda pair: pair[1].seed):
        first.setdefault(run.attention, (folder, run))
    if not job.contexts or all(run.decode for _, run in first.values()):
        return []
    models = {name: load_trained(folder, device)[0] for name, (folder, _) in first.items()}
    found = decoding(models, torch.cat(tokens.held).long(), job.contexts, job.repeats)
    return [replace(run, decode=found[name]) for name, (_, run) in first.items()]
