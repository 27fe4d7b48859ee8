"""Job: what one benchmark generates, and in which pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tenuto.errors import InputError

__all__ = ["CALIBRATION_OFFSET", "CLASSES", "MIN_REPEATS", "Job", "labels_of"]

CLASSES = 10
MIN_REPEATS = 5
MOST_BATCH = 32
CALIBRATION_OFFSET = 1_000_000
"""A benchmark calibrates on seeds from here on, so it judges at most this many samples."""


def labels_of(samples: Sequence[int], prompts: int = CLASSES) -> list[int]:
    """Labels in turn, so that every class (of a video model: every prompt) is asked for equally often."""
    return [sample % prompts for sample in samples]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Sample number i has the label i modulo the number of prompts and the seed ``seed + i``, whatever the batch.

    Attributes:
        steps: denoising steps; samples: pictures per policy; guidance: guidance scale, 1 for none.
        seed: of the first sample; batch: most pictures generated at once, chosen for five or more batches if None.

    Raises:
        InputError: a number is out of its range.
    """

    steps: int = 50
    samples: int = 64
    guidance: float = 1.5
    seed: int = 0
    batch: int | None = None

    def __post_init__(self) -> None:
        ranges = {"steps": (1, None), "samples": (1, CALIBRATION_OFFSET), "seed": (0, 2**62), "batch": (1, None)}
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if value is not None and not (least <= value and (most is None or value <= most)):
                allowed = f"{least} or more" if most is None else f"{least} to {most}"
                raise InputError(f"{name}={value} is not allowed: give {allowed}.")

    @property
    def batches(self) -> list[range]:
        """Sample numbers in batches of sizes as equal as can be."""
        wanted = self.batch or min(MOST_BATCH, -(-self.samples // MIN_REPEATS))
        count = -(-self.samples // wanted)
        edges = [self.samples * i // count for i in range(count + 1)]
        return [range(a, b) for a, b in pairwise(edges)]

    @property
    def repeats(self) -> int:
        """How often time is measured: once per batch, but five times at least."""
        return max(len(self.batches), MIN_REPEATS)

    def seeds(self, samples: Sequence[int]) -> list[int]:
        """The seed of each sample number."""
        return [self.seed + sample for sample in samples]
