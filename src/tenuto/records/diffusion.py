"""Run: the record everything else reads. One policy, one model, one setting, one JSON file.

Report, tuner and server see records and never a model. The honesty rule (``tenuto.measure.speed.claim``): a Run whose
cache did nothing, or whose output equals the baseline's although the policy does not claim to be exact, has no
speed-up.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tenuto.errors import InputError
from tenuto.records.files import file_name, read_record, write_record

__all__ = [
    "ATTENTION_FILES",
    "KV_FILES",
    "PROMPT_FILES",
    "REUSE_FILES",
    "SHARDS_FILES",
    "Run",
    "Timing",
    "read_runs",
    "run_files",
    "write_run",
]

KV_FILES = "kv-"
"""How the names of the KV family's records begin (:mod:`tenuto.records.kv`)."""
SHARDS_FILES = "moe-"
"""The same of sharded caches (:mod:`tenuto.records.shards`)."""

ATTENTION_FILES = "attention-"
"""How the names of the records of trained attentions begin (:mod:`tenuto.records.attention`)."""

PROMPT_FILES = "prompt-"
"""How the names of the prompt family's records begin (:mod:`tenuto.records.prompt`)."""

REUSE_FILES = "store-"
"""How the names of the records of stores of prefixes begin (:mod:`tenuto.records.reuse`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Repeated wall-clock measurements in seconds, interleaved with the baseline's."""

    seconds: tuple[float, ...]
    baseline_seconds: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Baseline over method, pair by pair."""
        return tuple(b / s for s, b in zip(self.seconds, self.baseline_seconds, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What was measured for one policy.

    Attributes:
        policy: the policy as text; "none" is the uncached baseline, "fewer_steps:n=25" the fewer-steps baseline.
        task: what was done, for example "diffusion".
        model: name or path of the model, ``fingerprint`` its weights' fingerprint.
        settings: steps, samples, guidance, seed, batch and whatever else the task was given.
        versions: of tenuto, torch, diffusers, python.
        device: processor or accelerator, threads and dtype, in words.
        telemetry: :meth:`tenuto.telemetry.Telemetry.summary`.
        grid: ``[steps][blocks]`` fraction not computed; ``decisions`` the same for one generation, in words.
        timing: None for a Run that was not timed.
        speedup: median of ``timing.ratios``; None where the honesty rule withholds it, ``withheld`` says why.
        speedup_range: smallest and largest of ``timing.ratios``.
        flops_speedup: operations without caching over operations executed.
        psnr, ssim: against the uncached output of the same seeds: mean over images (dB; in [-1, 1]); None for the
            baseline itself. ``psnr_interval`` is the 95 % interval of the mean.
        fid: Fréchet distance of classifier features to the test set (lower is better), ``class_accuracy`` in [0, 1].
        reuse_ratio: fraction of block executions not computed.
        cache_bytes: most bytes of cached tensors and surrogate weights held; peak_bytes: peak resident memory growth.
        calibration_seconds: one-off cost of the profile; 0 if none was needed or it came with the model.
        shadow: :meth:`tenuto.bench.diffusion.shadow.Shadow.row`, true errors beside the budget; empty if not asked for.
        images: file names of pictures, relative to the record's folder: "grid", "difference".
    """

    policy: str
    task: str
    model: str
    fingerprint: str
    settings: dict[str, Any]
    versions: dict[str, str]
    device: str
    telemetry: dict[str, Any] = field(default_factory=dict)
    grid: list[list[float]] = field(default_factory=list)
    decisions: list[list[str]] = field(default_factory=list)
    timing: Timing | None = None
    speedup: float | None = None
    speedup_range: tuple[float, float] | None = None
    withheld: str | None = None
    flops_speedup: float | None = None
    psnr: float | None = None
    psnr_interval: tuple[float, float] | None = None
    ssim: float | None = None
    fid: float | None = None
    class_accuracy: float | None = None
    reuse_ratio: float = 0.0
    cache_bytes: int = 0
    peak_bytes: int | None = None
    calibration_seconds: float = 0.0
    shadow: dict[str, Any] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)
    command: str = ""

    @property
    def method(self) -> str:
        """The policy's text without its numbers: ``every_n+adacorrection``."""
        return "+".join(part.partition(":")[0] for part in re.split(r"\+(?!\d)", self.policy))

    def row(self) -> dict[str, Any]:
        """The flat JSON object that ``--json`` prints."""
        nested = {"telemetry", "grid", "decisions", "timing", "images"}
        return {key: value for key, value in asdict(self).items() if key not in nested}


def write_run(run: Run, folder: Path) -> Path:
    """Write one record as ``<policy>.json``, beside and renamed, so that a reader never sees half of it."""
    return write_record(run, folder / f"{file_name(run.policy)}.json")


def _from(raw: dict[str, Any]) -> Run:
    if raw.get("timing"):
        raw["timing"] = Timing(**{k: tuple(v) for k, v in raw["timing"].items()})
    for key in ("speedup_range", "psnr_interval"):
        raw[key] = tuple(raw[key]) if raw.get(key) else None
    return Run(**raw)


def run_files(folder: Path) -> list[Path]:
    """The files of Runs in a folder; those of other families are others."""
    others = (ATTENTION_FILES, KV_FILES, SHARDS_FILES, PROMPT_FILES, REUSE_FILES)
    return [path for path in sorted(folder.glob("*.json")) if not path.name.startswith(others)]


def read_runs(folder: Path) -> list[Run]:
    """All Runs in a folder, the baseline first, then by name.

    Raises:
        InputError: the folder does not exist, holds no record, or a record is damaged.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder. Give the --out folder of a benchmark.")
    runs = [read_record(path, Run, _from) for path in run_files(folder)]
    if not runs:
        raise InputError(f"{folder} holds no Run records (*.json). Run `tenuto bench` with --out {folder} first.")
    return sorted(runs, key=lambda run: (run.policy != "none", run.policy))
