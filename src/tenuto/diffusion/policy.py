"""The contract of the diffusion family: what is decided, and what stands in for a computed output.

A policy is three choices: a :class:`Scope` (which blocks are skipped together), a :class:`StepGate` (compute, or
estimate?) and an :class:`Estimator` (what stands in for the output?); a fourth, optional one is a :class:`Corrector`
(which tokens of an estimated step are computed after all?). Each is frozen; its state is created by ``init`` and passed
in and out, so one policy serves any number of generations at once.

Shapes: a *stream* is hidden states ``[batch, tokens, channels]``; a block has one stream (image) or two (image, text).
``Streams`` is a tuple with the image stream first. The *residual* of a span is its output minus its input, per stream.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch

from tenuto.budget import ErrorBudget
from tenuto.diffusion.gate import Verdict
from tenuto.errors import PolicyError
from tenuto.method import Method
from tenuto.paper import Claim, Paper

if TYPE_CHECKING:
    from tenuto.calibration import Profile

__all__ = [
    "Claim",
    "Composition",
    "Corrector",
    "Estimator",
    "FeaturePolicy",
    "Paper",
    "Recorder",
    "Scope",
    "Span",
    "Step",
    "StepGate",
    "Streams",
    "WrappingPolicy",
    "alone",
]

Streams = tuple[torch.Tensor | None, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """Blocks ``first..last`` (both included, counted over all block lists) that are skipped together.

    ``always`` spans are never skipped: their residual is the probe that gates of later spans may look at.
    """

    index: int
    first: int
    last: int
    always: bool = False

    @property
    def blocks(self) -> int:
        return self.last - self.first + 1


def alone(sums: torch.Tensor) -> torch.Tensor:
    """``Step.reduce`` on one device."""
    return sums


@dataclass(frozen=True, slots=True)
class Step:
    """What a decision may look at: one span at one denoising step, before anything of it is computed.

    Attributes:
        index: denoising steps since this generation began, from 0; total: how many there will be, None if unknown.
        timestep: as the model was given it.
        branch: guidance branch.
        span: the span being decided.
        leading: True for the first span of the step that is not ``always``: it may decide for the whole step.
        hidden: the span's input streams.
        probe: residual of the ``always`` span of this step, None if there is none.
        modulated: computes the timestep-modulated input of the span's first attention ``[batch, tokens, channels]``.
        reduce: adds sums over tokens up over the devices that share a sample's tokens (context parallel), so that all
            of them decide alike; on one device it gives back what it is given.
    """

    index: int
    total: int | None
    timestep: float
    branch: str
    span: Span
    leading: bool
    hidden: Streams
    probe: Streams | None
    modulated: Callable[[], torch.Tensor]
    reduce: Callable[[torch.Tensor], torch.Tensor] = alone

    @property
    def last(self) -> bool:
        """True at the last denoising step of a generation whose length is known."""
        return self.total is not None and self.index == self.total - 1


class Scope(ABC):
    """Which blocks are skipped together."""

    __slots__ = ()

    @abstractmethod
    def spans(self, lists: Sequence[int]) -> tuple[Span, ...]:
        """Divide block lists of these lengths into spans. A span never crosses from one list into the next."""


class StepGate(ABC):
    """Compute, or estimate? One decision per step for all spans (``shared``), or one per span."""

    __slots__ = ()
    shared: ClassVar[bool] = True

    @abstractmethod
    def init(self) -> Any:
        """State of a cold start."""

    @abstractmethod
    def judge(self, state: Any, step: Step) -> tuple[Verdict, Any]:
        """Decide before anything is computed. Called at every step, cold ones included, whatever else decides."""

    @abstractmethod
    def settled(self, state: Any, step: Step, verdict: Verdict, computed: bool) -> Any:
        """The state after the span was computed or estimated. ``computed`` can be True against the verdict."""


class Estimator(ABC):
    """What stands in for a span's residual when it is not computed."""

    __slots__ = ()
    kind: ClassVar[Literal["reuse", "forecast"]] = "reuse"

    @abstractmethod
    def init(self) -> Any:
        """State of a cold start."""

    @abstractmethod
    def ready(self, state: Any, step: Step) -> bool:
        """Whether enough was observed to estimate this step."""

    @abstractmethod
    def estimate(self, state: Any, step: Step) -> Streams:
        """The estimated residual of the span, one tensor per stream, same dtype and device as ``step.hidden``."""

    @abstractmethod
    def observe(self, state: Any, step: Step, residual: Streams) -> Any:
        """The state after the span's true residual became known."""

    def flops(self, state: Any, step: Step) -> float:
        """Operations of one estimate (multiply and add count as two); element-wise work counts as zero."""
        return 0.0

    def flops_observed(self, state: Any, step: Step) -> float:
        """Operations of ``observe``."""
        return 0.0

    def nbytes(self) -> int:
        """Bytes of fitted weights the estimator holds besides its state."""
        return 0


class Corrector(ABC):
    """Which tokens of an estimated step are computed after all, and what they tell about the others.

    Chosen tokens go through the span's real blocks with the keys and values of all tokens. A token that is not chosen
    enters each block as it is, and leaves it with the block's residual of the last computed step.
    """

    __slots__ = ()

    @abstractmethod
    def init(self) -> Any:
        """State of a cold start."""

    @abstractmethod
    def select(self, state: Any, step: Step) -> torch.Tensor | None:
        """Numbers ``[batch, chosen]`` (int64, unique per sample) of the image stream's tokens to compute; None for
        none."""

    @abstractmethod
    def correct(
        self, state: Any, step: Step, tokens: torch.Tensor, estimate: torch.Tensor, fresh: torch.Tensor
    ) -> torch.Tensor:
        """The image stream's residual ``[batch, tokens, channels]`` from the estimated one of all tokens (same shape)
        and the computed one of the chosen tokens ``[batch, chosen, channels]``."""

    def flops(self, step: Step, chosen: int) -> float:
        """Operations of choosing and correcting, the chosen tokens' own apart."""
        return 0.0

    @abstractmethod
    def observe(self, state: Any, step: Step, residual: Streams) -> Any:
        """The state after the span's true residual became known."""


@dataclass(frozen=True, slots=True)
class Composition:
    """A policy's choices, bound to a profile where it needs one."""

    scope: Scope
    gate: StepGate
    estimator: Estimator
    corrector: Corrector | None = None


class Recorder(ABC):
    """Watches uncached generations and turns them into a profile's tensors and numbers (``tenuto calibrate``)."""

    scope: Scope

    @abstractmethod
    def observe(self, step: Step, residual: Streams) -> None:
        """One computed span of one step."""

    @abstractmethod
    def begin(self, generation: int) -> None:
        """A generation starts."""

    least: ClassVar[int] = 1
    """Generations needed for a fit."""

    @abstractmethod
    def fit(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tensors and JSON-ready numbers of the profile."""

    def rehearsals(self) -> tuple[FeaturePolicy, ...]:
        """Policies to run next, in shadow mode and with the profile just fitted, for a closed-loop refit: what they
        estimate is shown to :meth:`estimated`, then ``fit`` is called again. None by default."""
        return ()

    def estimated(self, step: Step, state: Any, residual: Streams) -> None:  # noqa: B027 (open-loop recorders need none)
        """One estimated span of one step of a rehearsal: the estimator's state, and the true residual."""


class FeaturePolicy(Method, ABC):
    """A published method for diffusion transformers: a frozen, keyword-only dataclass of numbers.

    Class attributes: those of :class:`~tenuto.method.Method`; ``search`` (option to its mildest and strongest value,
    for the tuner; without it the tuner varies what the sweep varies).
    """

    __slots__ = ()
    search: ClassVar[Mapping[str, tuple[float, float]]] = {}
    warmup: int

    @property
    def profiled(self) -> FeaturePolicy:
        """The policy whose profile is needed: this one, or the one it wraps."""
        return self

    @property
    def budget(self) -> ErrorBudget | None:
        """What the policy promises about the errors of its estimates, None if nothing; shadow mode checks it."""
        return None

    @abstractmethod
    def compose(self, profile: Profile | None) -> Composition:
        """The policy's scope, gate, estimator and corrector.

        Raises:
            CalibrationError: the policy is ``calibrated`` and ``profile`` is None or lacks what it needs.
        """

    def recorder(self) -> Recorder:
        """What ``tenuto calibrate`` runs beside uncached generations to make this policy's profile."""
        raise PolicyError(f"{type(self).__name__} needs no calibration: use it as it is.")


@dataclass(frozen=True, slots=True, kw_only=True)
class WrappingPolicy(FeaturePolicy):
    """A method around another one: in text it follows the other after a plus, ``every_n:n=3+adacorrection``.

    Attributes:
        inner: the policy inside.
    """

    inner: FeaturePolicy

    linked: ClassVar[str] = "inner"
    follows: ClassVar[bool] = True

    @classmethod
    def after(cls, before: Method | None, values: Mapping[str, Any]) -> Method:
        """Around the policy it follows; see :class:`Method`."""
        if before is None:
            example = f", for example {cls.sweep[0]}" if cls.sweep else ""
            raise PolicyError(f"{cls.name} goes around another policy: write it after one{example}.")
        return cls.of({**values, cls.linked: cast(FeaturePolicy, before)})

    @property
    def chain(self) -> tuple[Method, ...]:
        """The policy inside, then this one."""
        return (*self.inner.chain, self)

    @property
    def warmup(self) -> int:  # type: ignore[override]
        """Steps at the start that always compute: the inner policy's."""
        return self.inner.warmup

    @property
    def profiled(self) -> FeaturePolicy:
        """The policy whose profile is needed: the innermost."""
        return self.inner.profiled
