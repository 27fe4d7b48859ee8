"""Entry: one row of a benchmark before it is measured. What is put on the model, by whom, is its own affair.

A policy of ours becomes an Entry with :func:`cached`. Another library's method becomes one with an :class:`Attachment`
of its own; ``benchmarks/peers/`` has examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from tenuto import catalog
from tenuto.calibration import Profile
from tenuto.diffusion.attach import attach
from tenuto.diffusion.policy import FeaturePolicy
from tenuto.telemetry import Telemetry
from tenuto.zoo.pipelines import ImageModel

__all__ = ["Attachment", "ImageEntry", "cached"]


class Attachment(Protocol):
    """Puts a method on a model inside a ``with`` block, and takes it off again, also after an exception."""

    def __call__(self, model: ImageModel, rehearse: Callable[[], None]) -> AbstractContextManager[Telemetry]:
        """One ``with`` block per generation.

        Args:
            model: whose ``pipe`` the method goes on.
            rehearse: draws the first denoising step of the generation to come. Call it once, before yielding: outside
                the measured time it warms up, and operations can be counted in it.

        Returns:
            A context manager that yields the book of this generation, filled when the block is left.

        Raises:
            AttachError: the method does not work on this model; also from inside the block.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageEntry:
    """A row: the uncached baseline (name only), a run with fewer steps (``steps``), or a method (``attach``).

    Attributes:
        name: the policy as text. attach: puts the method on; None for the plain baselines.
        steps: denoising steps; None for those of the job.
        exact: whether the method claims that its output equals the uncached one.
        calibration_seconds: what preparing it cost just now.
        versions: of what it needs besides the task's own, for the record.
        optional: whether a refusal to attach is a result, to be put in the table with its reason, not an error.
    """

    name: str
    attach: Attachment | None = None
    steps: int | None = None
    exact: bool = False
    calibration_seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    optional: bool = False


def cached(policy: FeaturePolicy, profile: Profile | None = None, calibration_seconds: float = 0.0) -> ImageEntry:
    """A policy of ours as an Entry."""

    @contextmanager
    def put(model: ImageModel, rehearse: Callable[[], None]) -> Iterator[Telemetry]:
        with attach(model.pipe, policy, profile=profile) as run:
            rehearse()  # measures operations, so that no measured time goes into it
            run.reset()
            book = run.telemetry
            book.events.clear()
            book.flops = book.full_flops = 0.0
            yield book
            run.summary()  # notes in the book what is cached: spans may have been divided on the way

    return ImageEntry(
        name=catalog.text(policy), attach=put, exact=policy.exact, calibration_seconds=calibration_seconds
    )
