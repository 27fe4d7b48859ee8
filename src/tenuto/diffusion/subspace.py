"""Fits for wide models: a span's streams are seen through a basis, and maps are solved in its coordinates.

A map of ``3 channels + 1`` inputs needs a Gram matrix of that size squared, which no one has for 3,072 channels. Hidden
states and residuals move in few directions, though. Per span and stream, ``WIDTH`` of them are found on the first
generation by a randomised range finder (Halko, Martinsson, Tropp 2011, https://arxiv.org/abs/0909.4061, section 4.1)
and serve all steps and gaps; what lies outside is repeated, as the residual of the last computed step was.

So that errors outside are counted too, ``SKETCH`` random directions of the rest stand beside the basis, scaled to keep
squared lengths on average (Johnson and Lindenstrauss). A stream that was *seen* has ``WIDTH + SKETCH`` columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from tenuto.diffusion.ladder import Ladder
from tenuto.diffusion.policy import Estimator, Step, Streams
from tenuto.diffusion.trajectory import Past, follow

__all__ = [
    "WIDE",
    "WIDTH",
    "Bases",
    "Inside",
    "ProjectedLadder",
    "RangeFinder",
    "SeenSteps",
    "narrow",
    "narrowed",
    "see",
]

WIDE = 256
"""Channels above which a model is fitted in a subspace."""
WIDTH, SKETCH, SPARE = 128, 32, 16
Bases = Mapping[tuple[int, int], torch.Tensor]
"""Span and stream -> ``[channels, WIDTH + SKETCH]``."""


class RangeFinder:
    """The leading directions of streamed rows, in one pass and ``[channels, WIDTH + SPARE]`` numbers.

    Args:
        channels: of the rows; device: where they are.
    """

    def __init__(self, channels: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(channels)
        self.probes = torch.randn(channels, WIDTH + SPARE, generator=generator).to(device)
        self.rest = torch.randn(channels, SKETCH, generator=generator).to(device) / SKETCH**0.5
        self.image = torch.zeros_like(self.probes)

    def add(self, rows: torch.Tensor) -> None:
        """Rows ``[..., channels]``; together they weigh as much as any other call's."""
        flat = rows.detach().float().reshape(-1, len(self.probes))
        self.image += flat.T @ (flat @ self.probes) / flat.square().sum().clamp_min(1e-30)

    def basis(self) -> torch.Tensor:
        """``[channels, WIDTH + SKETCH]``: orthonormal columns, then the sketch of the rest; in half precision."""
        leading = torch.linalg.svd(self.image, full_matrices=False)[0][:, :WIDTH]
        return torch.cat([leading, self.rest - leading @ (leading.T @ self.rest)], 1).to(torch.float16).cpu()


def see(bases: Bases, span: int, streams: Streams) -> Streams:
    """The streams as they are seen: ``[..., WIDTH + SKETCH]`` each."""
    return tuple(None if s is None else s @ bases[span, i].to(s.device, s.dtype) for i, s in enumerate(streams))


def narrow(streams: Streams) -> Streams:
    """The columns of seen streams that lie in the basis."""
    return tuple(None if s is None else s[..., :WIDTH] for s in streams)


def narrowed(past: Past) -> Past:
    """A seen past, inside the basis."""
    return Past(past.index, narrow(past.hidden), narrow(past.residual), narrow(past.slope))


@dataclass(frozen=True, slots=True)
class Inside(Estimator):
    """A ladder on seen streams: fitted inside the basis, repeated outside."""

    ladder: Ladder

    def init(self) -> Past | None:
        return None

    def ready(self, state: Past | None, step: Step) -> bool:
        return state is not None

    def estimate(self, state: Past, step: Step) -> Streams:
        inner = self.ladder.estimate(narrowed(state), replace(step, hidden=narrow(step.hidden)))
        pairs = zip(inner, state.residual, strict=True)
        return tuple(None if i is None or r is None else torch.cat([i, r[..., WIDTH:]], -1) for i, r in pairs)

    def observe(self, state: Past | None, step: Step, residual: Streams) -> Past:
        return follow(state, step.index, step.hidden, residual)

    def nbytes(self) -> int:
        return self.ladder.nbytes()


@dataclass(frozen=True, slots=True)
class SeenSteps:
    """The last computed steps as they were seen, and the last residual in full."""

    past: Past
    residual: Streams


@dataclass(frozen=True, slots=True)
class ProjectedLadder(Estimator):
    """``r_b`` plus what a ladder in the basis says has changed: two thin products beside the map.

    The bases are moved to the model's device and dtype once.
    """

    ladder: Ladder
    bases: Bases = field(hash=False)
    _placed: dict[Any, torch.Tensor] = field(default_factory=dict, hash=False, compare=False, repr=False)

    def init(self) -> SeenSteps | None:
        return None

    def ready(self, state: SeenSteps | None, step: Step) -> bool:
        return state is not None

    def see(self, span: int, streams: Streams) -> Streams:
        """``see``, with bases that are in place."""
        return see({(span, i): self._basis(span, i, s) for i, s in enumerate(streams) if s is not None}, span, streams)

    def _basis(self, span: int, stream: int, like: torch.Tensor) -> torch.Tensor:
        key = (span, stream, like.device, like.dtype)
        if key not in self._placed:
            self._placed[key] = self.bases[span, stream].to(like.device, like.dtype)
        return self._placed[key]

    def estimate(self, state: SeenSteps, step: Step) -> Streams:
        span, inside = step.span.index, narrow(self.see(step.span.index, step.hidden))
        guesses = self.ladder.estimate(narrowed(state.past), replace(step, hidden=inside))
        found: list[torch.Tensor | None] = []
        for i, (guess, seen, whole) in enumerate(zip(guesses, state.past.residual, state.residual, strict=True)):
            if guess is None or seen is None or whole is None:
                found.append(None)
            else:
                found.append(whole + (guess - seen[..., :WIDTH]) @ self._basis(span, i, whole)[:, :WIDTH].T)
        return tuple(found)

    def observe(self, state: SeenSteps | None, step: Step, residual: Streams) -> SeenSteps:
        span = step.span.index
        seen = self.see(span, step.hidden), self.see(span, residual)
        return SeenSteps(follow(state.past if state else None, step.index, *seen), residual)

    def flops(self, state: SeenSteps, step: Step) -> float:
        thin = sum(2.0 * s.numel() * (2 * WIDTH + SKETCH) for s in step.hidden if s is not None)
        return thin + self.ladder.flops(state.past, step)

    def flops_observed(self, state: SeenSteps | None, step: Step) -> float:
        return sum(4.0 * s.numel() * (WIDTH + SKETCH) for s in step.hidden if s is not None)

    def nbytes(self) -> int:
        return self.ladder.nbytes() + sum(basis.numel() * basis.element_size() for basis in self.bases.values())
