"""Which tokens are worth computing at an estimated step, chosen before anything is computed.

:class:`MotionTokens` computes the tokens whose input has moved most since the last computed step; the static ones keep
their estimate. :class:`MergedTokens` computes one representative per cluster of like tokens, and the other members get
the representative's *innovation* (fresh minus estimate). Values are never averaged: merging tokens by their mean, the
training-free form, did not work for the authors of ToCa (https://arxiv.org/abs/2410.05317, their ``token_merge.py``),
since the mean of two tokens is an input that the blocks have never seen; a representative is a real one, and a member
keeps its own estimate. All of it is batched; memory and work are those of one ``[batch, tokens, tokens]`` matrix.

Sources: FastCache, https://arxiv.org/abs/2505.20353; density peaks, https://doi.org/10.1126/science.1242072.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tenuto.diffusion.policy import Corrector, Step, Streams

__all__ = ["LastInput", "MergedTokens", "MotionTokens", "density", "motion", "peaks", "put", "top"]


def motion(hidden: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Saliency ``[batch, tokens]``: ``S_i = ||x_i - reference_i||^2`` (FastCache's token saliency)."""
    return (hidden - reference).float().square().sum(-1)


def top(score: torch.Tensor, fraction: float) -> torch.Tensor:
    """Numbers ``[batch, chosen]`` of the tokens with the highest ``score [batch, tokens]``, at least one."""
    return score.topk(max(round(fraction * score.shape[1]), 1), dim=1).indices


def put(tokens: torch.Tensor, whole: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """``whole [batch, tokens, channels]`` with ``values [batch, chosen, channels]`` at the chosen tokens."""
    return whole.scatter(1, tokens[..., None].expand_as(values), values)


def density(squares: torch.Tensor, neighbours: int) -> torch.Tensor:
    """Spatial density ``[batch, tokens]``: ``exp(-1/K sum_kNN ||h_i - h_j||^2)`` from squared distances ``[batch,
    tokens, tokens]``, in units of their mean, which the paper leaves open."""
    near = squares.topk(min(neighbours + 1, squares.shape[-1]), dim=-1, largest=False).values[..., 1:]
    return torch.exp(-near.mean(-1) / squares.mean((1, 2)).clamp_min(1e-12)[:, None])


def peaks(squares: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
    """How much a token ``[batch, tokens]`` is a centre: its score times the distance to the nearest one of higher score
    (density peaks); the highest has the largest distance of all."""
    order = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    higher = order[:, None, :] < order[:, :, None]
    away = squares.masked_fill(~higher, torch.inf).amin(-1)
    return score * torch.where(order == 0, squares.amax((1, 2))[:, None], away).sqrt()


class LastInput(Corrector):
    """A corrector whose state is the last computed step's input."""

    __slots__ = ()

    def init(self) -> torch.Tensor | None:
        return None

    def observe(self, state: torch.Tensor | None, step: Step, residual: Streams) -> torch.Tensor | None:
        return step.hidden[0]


@dataclass(frozen=True, slots=True)
class MotionTokens(LastInput):
    """Compute the ``fraction`` of the tokens that moved most."""

    fraction: float

    def select(self, state: torch.Tensor | None, step: Step) -> torch.Tensor | None:
        image = step.hidden[0]
        return None if state is None or image is None else top(motion(image, state), self.fraction)

    def correct(
        self, state: torch.Tensor | None, step: Step, tokens: torch.Tensor, estimate: torch.Tensor, fresh: torch.Tensor
    ) -> torch.Tensor:
        return put(tokens, estimate, fresh)


@dataclass(frozen=True, slots=True)
class MergedTokens(LastInput):
    """Compute one representative per cluster of like tokens; its innovation goes to all members.

    ``fraction`` of the tokens represent; density over ``neighbours``; a token's score is its density times
    ``1 + weight * rho_tm``, ``rho_tm`` its distance from the last computed step, in units of the mean over tokens.
    """

    fraction: float
    neighbours: int = 5
    weight: float = 1.0

    def select(self, state: torch.Tensor | None, step: Step) -> torch.Tensor | None:
        image = step.hidden[0]
        if state is None or image is None:
            return None
        squares = torch.cdist(image.float(), image.float()).square()
        moved = motion(image, state).sqrt()
        share = moved / moved.mean(1, keepdim=True).clamp_min(1e-12)
        score = density(squares, self.neighbours) * (1 + self.weight * share)
        return top(peaks(squares, score), self.fraction)

    def correct(
        self, state: torch.Tensor | None, step: Step, tokens: torch.Tensor, estimate: torch.Tensor, fresh: torch.Tensor
    ) -> torch.Tensor:
        image = step.hidden[0]
        if image is None:
            return estimate
        mine = tokens[..., None].expand_as(fresh)
        nearest = torch.cdist(image.float(), image.gather(1, mine).float()).argmin(-1, keepdim=True)
        innovation = (fresh - estimate.gather(1, mine)).take_along_dim(nearest, 1)
        return put(tokens, estimate + innovation, fresh)

    def flops(self, step: Step, chosen: int) -> float:
        """The two matrices of distances."""
        image = step.hidden[0]
        return 0.0 if image is None else 2.0 * image.numel() * (image.shape[1] + chosen)
