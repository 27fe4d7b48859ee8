"""Search: try settings of every policy under equal budgets, and choose among them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from tenuto import catalog
from tenuto.bench.diffusion.tuning import TrialOutcome
from tenuto.calibration import Profile
from tenuto.diffusion.policy import FeaturePolicy
from tenuto.records.diffusion import Run
from tenuto.tuner.search import Tried, propose
from tenuto.tuner.space import Space
from tenuto.tuner.target import Target, predicted_speedup

__all__ = ["FRONT", "Search", "Setting"]

FRONT = 8
"""Most settings that are measured again on held-out seeds."""

Measure = Callable[[FeaturePolicy, "Profile | None", str], TrialOutcome]


@dataclass(frozen=True, slots=True)
class Setting:
    """A policy with its numbers, as it was tried; ``name`` is the method's, ``values`` the searched numbers."""

    name: str
    values: dict[str, float]
    policy: FeaturePolicy
    profile: Profile | None
    outcome: TrialOutcome

    @property
    def text(self) -> str:
        return catalog.text(self.policy)


class Search:
    """Settings tried so far, and what follows from them.

    Attributes:
        target: what to meet; settings: everything tried, in order.
        shortfall: by how much less than predicted a speed target is met, as a logarithm; 0 until measured.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.settings: list[Setting] = []
        self.shortfall = 0.0

    def run(
        self,
        spaces: Sequence[Space],
        trials: int,
        measure: Measure,
        profile_of: Callable[[str, FeaturePolicy], Profile | None],
        seed: int = 0,
    ) -> None:
        """Try up to ``trials`` more settings of every policy; fewer only where nothing is left worth trying."""
        for number, space in enumerate(spaces):
            for trial in range(trials):
                tried = [self._tried(setting) for setting in self.settings if setting.name == space.name]
                values = propose(space, tried, harder=not self.target.is_speed, seed=seed)
                if values is None:
                    break
                policy = space.policy(values)
                profile = profile_of(space.name, policy)
                title = f"{number * trials + trial + 1}/{len(spaces) * trials} "
                outcome = measure(policy, profile, title)
                self.settings.append(Setting(space.name, values, policy, profile, outcome))

    def predicted(self, setting: Setting) -> float:
        """Wall-clock speed-up, with the overhead pooled over the settings of the same policy."""
        mine = [it.outcome.overhead for it in self.settings if it.name == setting.name and it.outcome.flops_speedup]
        return predicted_speedup(setting.outcome, median(mine) if mine else 0.0)

    def _tried(self, setting: Setting) -> Tried:
        speedup = self.predicted(setting)
        margin = self.target.margin(setting.outcome, speedup) - self.shortfall
        return Tried(setting.values, margin, self.target.gain(setting.outcome, speedup))

    def correct(self, setting: Setting, run: Run) -> None:
        """Learn from a measurement by how much less than predicted a speed target was met."""
        predicted = self.predicted(setting) if self.target.metric == "speedup" else setting.outcome.flops_speedup
        self.shortfall = math.log((predicted or 1.0) / (self.target.measured(run) or 1.0))

    @property
    def useful(self) -> list[Setting]:
        """The settings that reused anything."""
        return [setting for setting in self.settings if setting.outcome.flops_speedup]

    def best(self) -> Setting | None:
        """The useful setting of most gain among those that meet the target, or the nearest to it if none does."""
        scored = [(self._tried(setting), setting) for setting in self.useful]
        met = [(tried.gain, setting) for tried, setting in scored if tried.margin >= 0]
        nearest = [(tried.margin, setting) for tried, setting in scored]
        return max(met or nearest, key=lambda it: it[0])[1] if scored else None

    def front(self, chosen: Setting) -> list[Setting]:
        """At most ``FRONT`` useful settings that none other beats in both speed and quality, and the chosen one."""
        points = [(self.predicted(it), self._quality(it), it) for it in self.useful]
        kept = {
            it.text: it
            for speed, quality, it in sorted(points, key=lambda point: point[0])
            if not any(s >= speed and q >= quality and (s, q) != (speed, quality) for s, q, _ in points)
        }
        others = [it for text, it in kept.items() if text != chosen.text]
        count = min(len(others), FRONT - 1)
        picked = [others[i * (len(others) - 1) // max(count - 1, 1)] for i in range(count)]
        return sorted([*picked, chosen], key=self.predicted)

    def _quality(self, setting: Setting) -> float:
        return fmean(setting.outcome.ssim if self.target.metric == "ssim" else setting.outcome.psnr)
