"""Which setting to try next: a function of what was tried, so that a search can be tested without a model.

One number, on which speed and loss of quality both grow: the root of the margin (where the target is just met) is
bracketed and closed in on by interpolation. More numbers: the tree-structured Parzen estimator of Optuna (Bergstra et
al. 2011), which maximises the gain among settings that meet the target, and the margin among those that do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tenuto.tuner.space import Axis, Space

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

__all__ = ["Tried", "propose"]

FIRST_STEP = 0.25
SHORTEST, LONGEST = 0.05, 0.5
CLOSE = 0.01
EDGE = 0.1
ASKED = 20
UNMET = -1e6


@dataclass(frozen=True, slots=True)
class Tried:
    """A setting, by how much it meets the target (negative: it does not), and what is worth having of it."""

    values: dict[str, float]
    margin: float
    gain: float


def propose(space: Space, tried: Sequence[Tried], *, harder: bool, seed: int = 0) -> dict[str, float] | None:
    """The next setting of a policy, None if there is nothing left worth trying.

    Args:
        space: what is searched; tried: all settings of it so far.
        harder: True if a stronger setting is farther from the target (quality), False if nearer (speed).
        seed: of the random part of a search over more than one number.
    """
    if not tried:
        return space.start()
    if not space.axes:
        return None
    if len(space.axes) > 1:
        return _parzen(space, tried, seed)
    (axis,) = space.axes
    signs = 1 if harder else -1
    found = _root(axis, sorted((axis.position(it.values[axis.option]), signs * it.margin) for it in tried))
    return None if found is None or {axis.option: found} in [it.values for it in tried] else {axis.option: found}


def _root(axis: Axis, points: Sequence[tuple[float, float]]) -> float | None:
    """The value to try next from sorted ``(position, margin)``, the margin falling; None if the root is found.

    Noise may make the margin rise in places: the root looked for is the first from the mild end.
    """
    right = next((point for point in points if point[1] < 0), None)
    before = [point for point in points if right is None or point[0] < right[0]]
    left = before[-1] if before else None
    if right is None:
        position = _outward(points[-1], points[-2:])
    elif left is None:
        position = _outward(right, points[:2])
    elif right[0] - left[0] < CLOSE:
        return None
    else:
        share = 0.5 if len(points) % 3 == 0 else left[1] / (left[1] - right[1])
        position = left[0] + (right[0] - left[0]) * min(max(share, EDGE), 1 - EDGE)
    if not axis.whole:
        return axis.value(min(max(position, 0.0), 1.0))
    start, end = (left or (-1.0,))[0], (right or (2.0,))[0]
    inside = [v for v in range(round(axis.low), round(axis.high) + 1) if start < axis.position(v) < end]
    return min(inside, key=lambda v: abs(axis.position(v) - position), default=None)


def _outward(last: tuple[float, float], points: Sequence[tuple[float, float]]) -> float:
    """A position farther out than ``last`` (stronger if its margin is positive), along the line through ``points``."""
    side, length = (1.0 if last[1] >= 0 else -1.0), FIRST_STEP
    if len(points) == 2 and points[0][1] > points[1][1]:
        slope = (points[0][1] - points[1][1]) / (points[1][0] - points[0][0])
        length = min(max(1.1 * abs(last[1]) / slope, SHORTEST), LONGEST)
    return last[0] + side * length


def _parzen(space: Space, tried: Sequence[Tried], seed: int) -> dict[str, float] | None:
    import optuna
    from optuna.distributions import FloatDistribution, IntDistribution
    from optuna.trial import create_trial

    distributions: dict[str, BaseDistribution] = {
        axis.option: IntDistribution(round(axis.low), round(axis.high), log=axis.logarithmic)
        if axis.whole
        else FloatDistribution(axis.low, axis.high, log=axis.logarithmic)
        for axis in space.axes
    }
    sampler = optuna.samplers.TPESampler(n_startup_trials=2 * len(space.axes), seed=seed + len(tried))
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="maximize", sampler=sampler)
    finally:
        optuna.logging.set_verbosity(before)
    whole = {axis.option for axis in space.axes if axis.whole}
    for it in tried:
        params = {key: int(value) if key in whole else value for key, value in it.values.items()}
        score = it.gain if it.margin >= 0 else UNMET + it.margin
        study.add_trial(create_trial(params=params, distributions=distributions, value=score))
    for _ in range(ASKED):
        asked = study.ask(distributions).params
        values = {axis.option: axis.rounded(asked[axis.option]) for axis in space.axes}
        if values not in [it.values for it in tried]:
            return values
    return None
