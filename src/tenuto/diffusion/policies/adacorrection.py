"""AdaCorrection: correct what another policy estimates by what its last computed step showed to be wrong with it.

What it does to the cache: at every computed step the inner policy's estimate is compared with the fresh residual of the
span. The difference, the *innovation*, is kept, and at estimated steps it is added to the estimate times a gain and the
progress since then: how far the span's input has moved along the way it went between the last two computed steps. This
is free but for one more estimate per computed step; three more states are held per stream. With ``tokens`` above 0,
that fraction of the tokens, those whose input has drifted most for its spread over channels, is computed at estimated
steps as well (``tenuto.diffusion.saliency``).

Intuition: a trajectory is smooth, so an estimator that was wrong one way will be wrong the same way again, in
proportion to the distance from what it knows. Around plain reuse this is a damped first-order forecast that measures
its steps by the input, not by the clock; around a forecast it corrects the next order.

What it does not do: it does not change the inner gate, whose promise is about the inner estimate. Computing tokens
does not pay on the bundled model: a token's fresh value is only as good as the stale keys and values around it, and
what it shows tells little about its neighbours (LOG.md has the figures). It does not blend fresh values away: where a
token was computed the fresh value stands. ``published`` does what the paper prints instead: all tokens are computed,
then blended with the estimate by a score that is at its limit of 1 where states are of size 1 or more. That saves
nothing, so a Run of it shows no speed-up.

Paper: AdaCorrection, https://arxiv.org/abs/2602.13357 (offset score and weight: offset estimation module).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from tenuto.diffusion.policy import Claim, Composition, Estimator, Paper, Step, Streams, WrappingPolicy
from tenuto.diffusion.saliency import LastInput, put, top
from tenuto.errors import PolicyError

if TYPE_CHECKING:
    from tenuto.calibration import Profile

__all__ = ["AdaCorrection", "BlendAll", "DriftedTokens", "OffsetCorrection", "drift", "offset_weight"]

GAMMA, LAMBDA = 1.0, 1.0  # the paper's
MOST_PROGRESS = 2.0  # times the steps gone


@dataclass(frozen=True, slots=True)
class _Known:
    """The inner state, the last computed step, and what it showed.

    ``change`` and ``innovation`` are those over the ``gap`` steps before it.
    """

    inner: Any
    index: int
    hidden: torch.Tensor | None
    gap: int = 1
    change: torch.Tensor | None = None
    innovation: Streams | None = None


@dataclass(frozen=True, slots=True)
class OffsetCorrection(Estimator):
    """``r = inner + gain * progress * (r_b - inner_b)``, b the last computed step.

    ``progress = <h - h_b, h_b - h_a> / ||h_b - h_a||^2`` per sample, a the computed step before; it lies between 0 and
    twice the steps gone since b over those from a to b.
    """

    inner: Estimator
    gain: float
    kind: ClassVar[Any] = "forecast"

    def init(self) -> _Known | None:
        return None

    def ready(self, state: _Known | None, step: Step) -> bool:
        return state is not None and self.inner.ready(state.inner, step)

    def estimate(self, state: _Known, step: Step) -> Streams:
        estimate = self.inner.estimate(state.inner, step)
        if state.innovation is None:
            return estimate
        weight = self.gain * _progress(state, step)
        return tuple(
            r if r is None or e is None else r + weight.to(r.dtype) * e
            for r, e in zip(estimate, state.innovation, strict=True)
        )

    def observe(self, state: _Known | None, step: Step, residual: Streams) -> _Known:
        image, before = step.hidden[0], self.inner.init() if state is None else state.inner
        known = _Known(self.inner.observe(before, step, residual), step.index, image)
        if state is None or image is None or state.hidden is None or not self.inner.ready(before, step):
            return known
        estimate = self.inner.estimate(before, step)
        innovation = tuple(None if r is None or e is None else r - e for r, e in zip(residual, estimate, strict=True))
        return replace(known, gap=step.index - state.index, change=image - state.hidden, innovation=innovation)

    def expected(self, state: _Known | None) -> torch.Tensor | None:
        return None if state is None else self.inner.expected(state.inner)

    def flops(self, state: _Known, step: Step) -> float:
        return self.inner.flops(state.inner, step)

    def flops_observed(self, state: _Known | None, step: Step) -> float:
        """The inner estimate that a computed step is compared with."""
        ready = state is not None and self.inner.ready(state.inner, step)
        return self.inner.flops(state.inner, step) if state is not None and ready else 0.0

    def nbytes(self) -> int:
        return self.inner.nbytes()


def _progress(state: _Known, step: Step) -> torch.Tensor:
    """``[batch, 1, 1]``, in single precision."""
    image = step.hidden[0]
    if image is None or state.hidden is None or state.change is None:
        return torch.zeros(())
    change = state.change.float()
    along, size = step.reduce(torch.stack([((image - state.hidden) * change).sum((1, 2)), change.square().sum((1, 2))]))
    most = MOST_PROGRESS * (step.index - state.index) / state.gap
    progress: torch.Tensor = (along / size.clamp_min(1e-12)).clamp(0, most)
    return progress[:, None, None]


def drift(hidden: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """How little a token's cached value may be worth, ``[batch, tokens]``: how far its input is from the last computed
    step's (``[batch, tokens, channels]``), over its spread over channels. Free of scale, and never at a limit."""
    distance = (hidden - reference).float().square().mean(-1).sqrt()
    return distance / hidden.float().std(-1).clamp_min(1e-6)


@dataclass(frozen=True, slots=True)
class DriftedTokens(LastInput):
    """Compute the ``fraction`` of the tokens that have drifted most."""

    fraction: float

    def select(self, state: torch.Tensor | None, step: Step) -> torch.Tensor | None:
        image = step.hidden[0]
        return None if state is None or image is None else top(drift(image, state), self.fraction)

    def correct(
        self, state: torch.Tensor | None, step: Step, tokens: torch.Tensor, estimate: torch.Tensor, fresh: torch.Tensor
    ) -> torch.Tensor:
        return put(tokens, estimate, fresh)


def offset_weight(hidden: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """The paper's weight of the fresh value, one for the batch: ``clip(gamma (D_temp^2 + lambda D_spatial), 0, 1)``.

    D_temp is the mean distance of the tokens from the last computed step's, D_spatial their mean standard deviation
    over channels. Neither is normalised: where states are of size 1 or more the weight is 1, and nothing is blended.
    """
    temporal = torch.linalg.vector_norm((hidden - reference).float(), dim=-1).mean()
    spatial = hidden.float().std(-1, correction=0).mean()
    weight: torch.Tensor = (GAMMA * (temporal.square() + LAMBDA * spatial)).clamp(0, 1)
    return weight


@dataclass(frozen=True, slots=True)
class BlendAll(LastInput):
    """The published form: compute all tokens, then blend. It saves nothing."""

    def select(self, state: torch.Tensor | None, step: Step) -> torch.Tensor | None:
        image = step.hidden[0]
        if image is None:
            return None
        return torch.arange(image.shape[1], device=image.device).expand(len(image), -1)

    def correct(
        self, state: torch.Tensor | None, step: Step, tokens: torch.Tensor, estimate: torch.Tensor, fresh: torch.Tensor
    ) -> torch.Tensor:
        image = step.hidden[0]
        if state is None or image is None:
            return fresh
        return torch.lerp(estimate, fresh, offset_weight(image, state).to(fresh.dtype))


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaCorrection(WrappingPolicy):
    """Correct the inner policy's estimates by its last seen error.

    Attributes:
        gain: of the correction: 0 none, 1 all of the error seen, carried on in proportion. Best on the bundled model:
            0.8 around policies that reuse, 0.5 around fastcache.
        tokens: fraction of the tokens computed at estimated steps; 0 none.
        published: the paper's form instead, which computes everything and saves nothing.
    """

    gain: float = 0.6
    tokens: float = 0.0
    published: bool = False

    paper: ClassVar[Paper] = Paper(
        "AdaCorrection: Adaptive Offset Cache Correction for Accurate Diffusion Transformers",
        "Liu, Yu, Lengerich, Wu",
        2026,
        "https://arxiv.org/abs/2602.13357",
    )
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim("FID of FastCache, without and with it", "4.46 to 4.37", "DiT-XL/2, ImageNet 256x256", "authors' docs"),
        Claim("FID of TeaCache, without and with it", "5.09 to 4.54", "DiT-XL/2, ImageNet 256x256", "authors' docs"),
    )
    sweep: ClassVar[tuple[str, ...]] = (
        "every_n:n=2+adacorrection",
        "every_n:n=3+adacorrection",
        "every_n:n=4+adacorrection",
        "every_n:n=6+adacorrection",
    )

    def __post_init__(self) -> None:
        if not 0 <= self.gain < math.inf or not 0 <= self.tokens <= 1:
            raise PolicyError(
                f"adacorrection: gain={self.gain}, tokens={self.tokens}. gain must be zero or more and finite, "
                "tokens a fraction from 0 to 1."
            )
        if isinstance(self.inner, AdaCorrection):
            raise PolicyError("adacorrection goes around another method, not around itself: write it once.")
        if self.published and self.tokens:
            raise PolicyError("adacorrection:published=true computes all tokens: leave tokens out.")

    def compose(self, profile: Profile | None) -> Composition:
        inner = self.inner.compose(profile)
        if (self.published or self.tokens) and inner.corrector is not None:
            raise PolicyError("Only one of the two policies may compute tokens: set tokens=0 in the inner one.")
        if self.published:
            return replace(inner, corrector=BlendAll())
        corrector = DriftedTokens(self.tokens) if self.tokens else inner.corrector
        return replace(inner, estimator=OffsetCorrection(inner.estimator, self.gain), corrector=corrector)
