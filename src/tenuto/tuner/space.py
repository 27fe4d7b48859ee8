"""Space: which numbers of a policy are searched, and between which ends. Discovered, never listed here.

A policy class may declare it, as ``search: ClassVar[dict[str, tuple[float, float]]]``: per option its mildest and its
strongest value (for a single option, stronger must mean faster). A class that does not is searched over the options
that differ between the texts of its ``sweep``, which run from mild to strong, from half the mildest to twice the
strongest. A class with neither has one setting, its defaults. Ends above zero are searched on a logarithmic scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tenuto import catalog
from tenuto.catalog import MethodInfo
from tenuto.diffusion.policy import FeaturePolicy, WrappingPolicy
from tenuto.errors import PolicyError, TenutoError

__all__ = ["Axis", "Space", "space_of"]

BEYOND = 2
DIGITS = 3


@dataclass(frozen=True, slots=True)
class Axis:
    """One searched option; ``mild`` may be larger than ``strong``."""

    option: str
    mild: float
    strong: float
    whole: bool

    @property
    def low(self) -> float:
        return min(self.mild, self.strong)

    @property
    def high(self) -> float:
        return max(self.mild, self.strong)

    @property
    def logarithmic(self) -> bool:
        return self.low > 0

    def position(self, value: float) -> float:
        """0 at the mild end, 1 at the strong one."""
        if self.logarithmic:
            return math.log(value / self.mild) / math.log(self.strong / self.mild)
        return (value - self.mild) / (self.strong - self.mild)

    def value(self, position: float) -> float:
        """The option's value there, of three digits at most, so that a policy's text stays short."""
        if self.logarithmic:
            exact = self.mild * (self.strong / self.mild) ** position
        else:
            exact = self.mild + (self.strong - self.mild) * position
        return self.rounded(exact)

    def rounded(self, exact: float) -> float:
        near = round(exact) if self.whole else float(f"{exact:.{DIGITS}g}")
        return min(max(near, self.low), self.high)


@dataclass(frozen=True, slots=True)
class Space:
    """The settings of one policy: ``base`` with the options in ``axes`` varied, those of the policy inside a wrapping
    one."""

    name: str
    base: FeaturePolicy
    axes: tuple[Axis, ...]

    @property
    def _varied(self) -> FeaturePolicy:
        return self.base.inner if isinstance(self.base, WrappingPolicy) else self.base

    def start(self) -> dict[str, float]:
        """Where the search begins."""
        return {axis.option: axis.rounded(getattr(self._varied, axis.option)) for axis in self.axes}

    def policy(self, values: Mapping[str, float]) -> FeaturePolicy:
        whole = {axis.option for axis in self.axes if axis.whole}
        given: dict[str, Any] = {key: int(value) if key in whole else value for key, value in values.items()}
        varied: Any = replace(self._varied, **given)  # type: ignore[type-var]  # every policy is a dataclass
        return replace(self.base, inner=varied) if isinstance(self.base, WrappingPolicy) else varied


def space_of(info: MethodInfo) -> Space:
    """What is searched for a method.

    Raises:
        PolicyError: it has an option that must be given but no ``sweep``, or declares a ``search`` of no such number.
    """
    sweep = [catalog.parse(text, "diffusion") for text in info.cls.sweep]
    base = sweep[len(sweep) // 2] if sweep else catalog.parse(info.name, "diffusion")
    if isinstance(base, WrappingPolicy):
        inside = next(it for it in catalog.methods("diffusion").values() if it.cls is type(base.inner))
        return Space(info.name, base, space_of(inside).axes)
    declared = info.cls.search if issubclass(info.cls, FeaturePolicy) else {}
    if declared:
        return Space(info.name, base, tuple(_declared(info, declared)))
    return Space(info.name, base, tuple(_varied(info, base, sweep)))


def _declared(info: MethodInfo, declared: Mapping[str, tuple[float, float]]) -> Iterator[Axis]:
    options = info.options()
    for name, (mild, strong) in declared.items():
        if name not in options or options[name].type not in (int, float) or mild == strong:
            raise PolicyError(f"{info.name} declares a search of {name!r} from {mild} to {strong}: not a range of one.")
        yield Axis(name, mild, strong, options[name].type is int)


def _varied(info: MethodInfo, base: FeaturePolicy, sweep: list[FeaturePolicy]) -> Iterator[Axis]:
    for option in info.options().values():
        values = [getattr(policy, option.name) for policy in sweep]
        if option.type in (int, float) and len(set(values)) > 1:
            yield _widened(option.name, option.type is int, values[0], values[-1], base)


def _widened(option: str, whole: bool, mild: float, strong: float, base: FeaturePolicy) -> Axis:
    """An axis from beyond the mild to beyond the strong end of a sweep, as far as the class allows."""
    ends = [mild, strong]
    if min(ends) > 0:
        for place, (end, larger) in enumerate(((mild, mild > strong), (strong, strong > mild))):
            wider = end * BEYOND if larger else end / BEYOND
            wider = max(int(wider), 1) if whole else wider
            try:
                replace(base, **{option: wider})  # type: ignore[type-var]
            except TenutoError:
                continue
            ends[place] = wider
    return Axis(option, ends[0], ends[1], whole)
