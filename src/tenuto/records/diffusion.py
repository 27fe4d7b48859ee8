"""Run: the record of one diffusion policy on one model with one setting.

Report, tuner and server see records and never a model. The honesty rule (``tenuto.measure.speed.claim``): a Run whose
cache did nothing, or whose output equals the baseline's although the policy does not claim to be exact, has no
speed-up.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tenuto.records.files import Kind, file_name, read_kind, write_record
from tenuto.records.header import Header
from tenuto.records.timing import Timing

__all__ = ["KIND", "Run", "read_runs", "write_run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Header):
    """What was measured for one policy.

    Attributes:
        policy: the policy as text; "none" is the uncached baseline, "fewer_steps:n=25" the fewer-steps baseline.
        telemetry: :meth:`tenuto.telemetry.Telemetry.summary`.
        grid: ``[steps][blocks]`` fraction not computed; ``decisions`` the same for one generation, in words.
        timing: None for a Run that was not timed.
        speedup: median of ``timing.ratios``; None where the honesty rule withholds it, ``withheld`` says why.
        speedup_range: smallest and largest of ``timing.ratios``.
        flops_speedup: operations without caching over operations executed.
        psnr, ssim: against the uncached output of the same seeds: mean over images (dB; in [-1, 1]); None for the
            baseline itself. ``psnr_interval`` is the 95 % interval of the mean.
        frame_psnr: of clips: PSNR by the number of the frame, mean over clips.
        motion_error: of clips: distance of the differences of consecutive frames to the uncached ones', relative to
            them, mean over clips.
        fid: Fréchet distance of classifier features to the test set (lower is better), ``class_accuracy`` in [0, 1].
        reuse_ratio: fraction of block executions not computed.
        cache_bytes: most bytes of cached tensors and surrogate weights held; peak_bytes: peak resident memory growth.
        calibration_seconds: one-off cost of the profile; 0 if none was needed or it came with the model.
        shadow: :meth:`tenuto.bench.diffusion.shadow.Shadow.row`, true errors beside the budget; empty if not asked for.
        images: file names of pictures (of clips: animated PNG), relative to the record's folder: "grid", "difference".
    """

    family: str = "diffusion"
    policy: str
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
    frame_psnr: list[float] = field(default_factory=list)
    motion_error: float | None = None
    fid: float | None = None
    class_accuracy: float | None = None
    reuse_ratio: float = 0.0
    cache_bytes: int = 0
    peak_bytes: int | None = None
    calibration_seconds: float = 0.0
    shadow: dict[str, Any] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)

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


KIND = Kind("diffusion", Run, lambda run: (run.policy != "none", run.policy))


def read_runs(folder: Path) -> list[Run]:
    """All Runs in a folder, the baseline first, then by name; none if it holds none.

    Raises:
        InputError: the folder does not exist, or a record is damaged.
    """
    return read_kind(folder, KIND)
