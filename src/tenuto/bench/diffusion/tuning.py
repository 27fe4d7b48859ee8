"""Measure one setting after another on the same seeds, cheaply enough to search: what ``tenuto tune`` looks at.

The uncached pictures are drawn once and kept for all settings. Beside every setting one batch of the baseline is drawn
again and timed, so that a slow minute of the machine slows both. This is for choosing only; what is chosen is measured
by :func:`tenuto.bench.diffusion.bench.bench` on other seeds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tenuto.bench.diffusion.contender import Calls, Contender
from tenuto.bench.diffusion.job import Job
from tenuto.bench.diffusion.rows import ImageEntry, cached
from tenuto.bench.diffusion.scores import WINDOW, psnr, ssim
from tenuto.calibration import Profile
from tenuto.diffusion.policy import FeaturePolicy
from tenuto.zoo.pipelines import ImageModel

__all__ = ["TrialOutcome", "Trials"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialOutcome:
    """One setting on the seeds of a search.

    Attributes:
        psnr, ssim: per picture, against the uncached one; ``ssim`` is empty for pictures smaller than its window.
        flops_speedup: operations without caching over operations executed; None if nothing was reused.
        speedup: wall clock, of the one batch that was timed beside the baseline.
    """

    psnr: tuple[float, ...]
    ssim: tuple[float, ...] = ()
    flops_speedup: float | None
    speedup: float

    @property
    def overhead(self) -> float:
        """What the operations do not explain of the time, as a fraction of the uncached time (0 if none were saved)."""
        return 1 / self.speedup - 1 / self.flops_speedup if self.flops_speedup else 0.0


class Trials:
    """The uncached pictures of a job, and settings measured against them."""

    def __init__(self, model: ImageModel, job: Job) -> None:
        self.model, self.job = model, job
        self._baseline = Contender(ImageEntry(name="none"), model, job)
        with Calls(model, (1 + len(job.batches)) * self._baseline.expected_calls, "uncached pictures"):
            self._baseline.probe()
            for batch in range(len(job.batches)):
                self._baseline.work(batch)
        self._reference = torch.cat(self._baseline.pictures)
        self._measured = 0

    def measure(self, policy: FeaturePolicy, profile: Profile | None, title: str = "") -> TrialOutcome:
        """Draw the job's pictures under a policy. ``title`` goes before the policy's text on the progress bar."""
        row = Contender(cached(policy, profile), self.model, self.job)
        batches = len(self.job.batches)
        timed, seconds, beside = self._measured % batches, 1.0, 1.0
        self._measured += 1
        with Calls(self.model, batches * row.expected_calls + self._baseline.expected_calls, f"{title}{row.name}"):
            for batch in range(batches):
                spent = row.work(batch)
                if batch == timed:
                    seconds, beside = spent, self._baseline.work(batches + batch)
        pictures, book = torch.cat(row.pictures), row.telemetry()
        saved = book.reuse_ratio > 0 and (policy.exact or not torch.equal(pictures, self._reference))
        large = min(pictures.shape[-2:]) >= WINDOW
        return TrialOutcome(
            psnr=tuple(psnr(pictures, self._reference).tolist()),
            ssim=tuple(ssim(pictures, self._reference).tolist()) if large else (),
            flops_speedup=book.flops_speedup if saved else None,
            speedup=beside / seconds,
        )
