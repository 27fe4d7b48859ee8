"""Contender: one row of a benchmark while it is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import torch
from tqdm import tqdm

from tenuto.calibration import Profile
from tenuto.diffusion.attach import attach
from tenuto.diffusion.policy import FeaturePolicy
from tenuto.eval.job import Job, labels_of
from tenuto.eval.pipelines import ImageModel
from tenuto.eval.speed import PeakMemory, timed
from tenuto.telemetry import Telemetry

__all__ = ["Calls", "Contender", "merged"]


class Calls:
    """Context manager: counts the denoiser's calls as they are made, and moves a progress bar by them."""

    def __init__(self, model: ImageModel, total: int, title: str) -> None:
        self.count = 0
        self.bar = tqdm(total=total, desc=title, unit="step", mininterval=0.5, leave=False)
        self._module = model.pipe.transformer
        self._handle: Any = None

    def __enter__(self) -> Self:
        self._handle = self._module.register_forward_pre_hook(self._called)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.remove()
        self.bar.close()

    def expect(self, more: int) -> None:
        """The bar's total grows by ``more`` calls."""
        self.bar.total += more
        self.bar.refresh()

    def _called(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        self.count += 1
        self.bar.update(1)


class _EnoughError(Exception):
    """Leaves a generation after its first step."""


def merged(parts: Sequence[Telemetry]) -> Telemetry:
    """One book from several: generations are counted on, operations added, the largest cache kept."""
    whole, begun = Telemetry(), 0
    for part in parts:
        whole.events += [replace(event, generation=event.generation + begun) for event in part.events]
        begun = 1 + max((event.generation for event in whole.events), default=-1)
        whole.flops += part.flops
        whole.full_flops += part.full_flops
        whole.peak_cache_bytes = max(whole.peak_cache_bytes, part.peak_cache_bytes)
    return whole


class Contender:
    """The uncached baseline, a policy, or a run with fewer steps.

    Attributes:
        name: the row's policy text; policy, profile: what is attached, None for the baselines.
        calibration_seconds: what the profile cost just now.
        pictures: drawn so far, one tensor per batch; calls: of the denoiser, for those pictures.
        peak_bytes: memory growth of the probe.
    """

    def __init__(
        self,
        name: str,
        model: ImageModel,
        job: Job,
        *,
        steps: int | None = None,
        policy: FeaturePolicy | None = None,
        profile: Profile | None = None,
        calibration_seconds: float = 0.0,
    ) -> None:
        self.name, self.model, self.job = name, model, job
        self.steps = steps or job.steps
        self.policy, self.profile, self.calibration_seconds = policy, profile, calibration_seconds
        self.pictures: list[torch.Tensor] = []
        self.calls = 0
        self.peak_bytes: int | None = None
        self.counter: Calls | None = None
        self._books: list[Telemetry] = []
        self._batches = job.batches

    @property
    def expected_calls(self) -> int:
        """Denoiser calls of one piece of work, the rehearsal included."""
        return self.steps + (self.policy is not None)

    def probe(self) -> Telemetry:
        """The first batch once, untimed: the warm-up, in which memory is watched. Gives back its book."""
        with self._attached(self._batches[0]) as book, PeakMemory(self.model.device) as memory:
            self._draw(self._batches[0], self.steps)
        self.peak_bytes = memory.grown
        return book

    def work(self, repeat: int) -> float:
        """Generate one batch and return its seconds; the first time round the pictures are kept."""
        samples = self._batches[repeat % len(self._batches)]
        drawn: list[torch.Tensor] = []
        with self._attached(samples) as book:
            before = self.counter.count if self.counter else 0
            seconds = timed(lambda: drawn.append(self._draw(samples, self.steps)), self.model.device)
        if repeat < len(self._batches):
            self.pictures += drawn
            self._books.append(book)
            self.calls += self.counter.count - before if self.counter else 0
        return seconds

    def telemetry(self) -> Telemetry:
        """What happened in the batches whose pictures were kept."""
        return merged(self._books)

    def _draw(self, samples: range, steps: int) -> torch.Tensor:
        return self.model.draw(labels_of(samples), self.job.seeds(samples), steps, self.job.guidance)

    def _rehearse(self, samples: range) -> None:
        """Begin a generation and break off after its first denoising step."""
        seen = 0

        def stop(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
            nonlocal seen
            seen += 1
            if seen > 1:
                raise _EnoughError

        handle = self.model.pipe.transformer.register_forward_pre_hook(stop, prepend=True)
        try:
            self._draw(samples, self.steps)
        except _EnoughError:
            return
        finally:
            handle.remove()

    @contextmanager
    def _attached(self, samples: range) -> Iterator[Telemetry]:
        """The policy attached, and rehearsed for one step, so that measuring operations costs no measured time."""
        if self.policy is None:
            yield Telemetry()
            return
        with attach(self.model.pipe, self.policy, profile=self.profile) as run:
            self._rehearse(samples)
            run.reset()
            book = run.telemetry
            book.events.clear()
            book.flops = book.full_flops = 0.0
            yield book
