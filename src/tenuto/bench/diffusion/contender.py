"""Contender: one row of a benchmark while it is measured."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from tqdm import tqdm

from tenuto.bench.diffusion.job import Job, labels_of
from tenuto.bench.diffusion.rows import ImageEntry
from tenuto.errors import AttachError
from tenuto.measure.speed import PeakMemory, timed
from tenuto.telemetry import Telemetry
from tenuto.zoo.pipelines import ImageModel

__all__ = ["Calls", "Contender", "Piece", "merged"]


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
        whole.cached = part.cached
    return whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one piece of work gave.

    Attributes:
        seconds: of wall clock; pictures: as the model draws them, None where they were drawn before.
        calls: of the denoiser; book: what happened in them.
    """

    seconds: float
    pictures: torch.Tensor | None
    calls: int
    book: Telemetry


class Contender:
    """An :class:`ImageEntry` while it is measured.

    Attributes:
        entry: what is measured; name: its policy text; steps: its denoising steps.
        pieces: the work done so far, one per repeat; ``peak_bytes``: memory growth of the probe.
        counter: counts the denoiser's calls, if there is one.
        refused: why the method does not work on this model, None where it does.
    """

    def __init__(self, entry: ImageEntry, model: ImageModel, job: Job) -> None:
        self.entry, self.name, self.model, self.job = entry, entry.name, model, job
        self.steps = entry.steps or job.steps
        self.pieces: list[Piece] = []
        self.peak_bytes: int | None = None
        self.counter: Calls | None = None
        self.refused: str | None = None
        self._batches = job.batches
        self._calls = model.calls(job.guidance)

    @property
    def expected_calls(self) -> int:
        """Denoiser calls of one piece of work, the rehearsal included."""
        return (self.steps + (self.entry.attach is not None)) * self._calls

    @property
    def pictures(self) -> list[torch.Tensor]:
        """Drawn so far, per batch."""
        return [piece.pictures for piece in self.pieces if piece.pictures is not None]

    @property
    def calls(self) -> int:
        """Denoiser calls for those pictures."""
        return sum(piece.calls for piece in self.pieces if piece.pictures is not None)

    def probe(self) -> Telemetry:
        """The first batch once, untimed: the warm-up, in which memory is watched. Gives back its book.

        Raises:
            AttachError: the method does not work on this model, unless the entry is optional: see ``refused``.
        """
        try:
            with self._attached(self._batches[0]) as book, PeakMemory(self.model.device) as memory:
                self._draw(self._batches[0], self.steps)
        except AttachError as error:
            if not self.entry.optional:
                raise
            self.refused = str(error)
            return Telemetry()
        self.peak_bytes = memory.grown
        return book

    def work(self, repeat: int) -> float:
        """Generate one batch and return its seconds; the first time round the pictures are kept."""
        samples = self._batches[repeat % len(self._batches)]
        drawn: list[torch.Tensor] = []
        with self._attached(samples) as book:
            before = self.counter.count if self.counter else 0
            seconds = timed(lambda: drawn.append(self._draw(samples, self.steps)), self.model.device)
            calls = self.counter.count - before if self.counter else 0
        first = repeat < len(self._batches)
        self.pieces.append(Piece(seconds=seconds, pictures=drawn[0] if first else None, calls=calls, book=book))
        return seconds

    def telemetry(self) -> Telemetry:
        """What happened in the batches whose pictures were kept."""
        return merged([piece.book for piece in self.pieces if piece.pictures is not None])

    def _draw(self, samples: range, steps: int) -> torch.Tensor:
        return self.model.draw(
            labels_of(samples, self.model.prompts), self.job.seeds(samples), steps, self.job.guidance
        )

    def _rehearse(self, samples: range) -> None:
        """Begin a generation and break off after its first denoising step."""
        seen = 0

        def stop(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
            nonlocal seen
            seen += 1
            if seen > self._calls:
                raise _EnoughError

        handle = self.model.pipe.transformer.register_forward_pre_hook(stop, prepend=True)
        try:
            self._draw(samples, self.steps)
        except _EnoughError:
            return
        finally:
            handle.remove()

    def _attached(self, samples: range) -> AbstractContextManager[Telemetry]:
        if self.entry.attach is None:
            return nullcontext(Telemetry())
        return self.entry.attach(self.model, partial(self._rehearse, samples))
