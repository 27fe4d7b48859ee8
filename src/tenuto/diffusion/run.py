"""AttachedRun: what ``attach`` yields."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tenuto.calibration import Profile
from tenuto.diffusion.policy import FeaturePolicy
from tenuto.diffusion.session import Said, nameless
from tenuto.telemetry import Telemetry

if TYPE_CHECKING:
    from tenuto.diffusion.denoiser import Denoiser

__all__ = ["AttachedRun"]

MOST_NAMED = 32  # named generations of unknown length that are remembered after their `with` blocks were left


class AttachedRun:
    """What ``attach`` yields.

    Attributes:
        policy: the policy attached; profile: its calibration profile, None if it needs none.
        telemetry: decisions and totals so far.
        sampler: class name of the pipeline's scheduler, None for a bare transformer.
        notice: called at the start of every denoiser call: has something changed that calls depend on?
    """

    def __init__(self, policy: FeaturePolicy, profile: Profile | None) -> None:
        self.policy = policy
        self.profile = profile
        self.telemetry = Telemetry()
        self.denoisers: list[Denoiser] = []
        self.sampler: str | None = None
        self.notice: Callable[[], None] = _nothing
        self._home = threading.current_thread()
        self._said: Said[str | None] = Said("generation", None)
        self._inside: Counter[str] = Counter()
        self._left: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def session(self) -> Hashable:
        """The generation that calls made here and now belong to."""
        name = self._said()
        return nameless(self._home) if name is None else ("named", name)

    def summary(self) -> dict[str, Any]:
        """Totals of the run: block executions by decision, reuse ratio, FLOPs, bytes held; and what is cached."""
        self.telemetry.cached = {denoiser.layout.name: denoiser.coverage() for denoiser in self.denoisers}
        return {**self.telemetry.summary(), "conditions": self.conditions}

    @property
    def conditions(self) -> dict[str, Any]:
        """``fitted``: under which sampling the profile was (None without one); ``sampled``: by which scheduler the
        pipeline samples now, None for a bare transformer, which cannot know. Guidance is applied outside of the
        denoiser and cannot be seen."""
        fitted = None if self.profile is None else self.profile.settings
        return {"fitted": fitted, "sampled": self.sampler}

    @contextmanager
    def generation(self, name: str) -> Iterator[None]:
        """Keep the calls made inside, by this thread or task, apart from all others: for generations that are
        interleaved or run in several threads. The block may be left and entered again, step by step.

        State is let go after the last step where the number of steps is known (a pipeline's), after an exception, and
        when 32 other generations were entered since.
        """
        with self._lock:
            self._inside[name] += 1
        try:
            with self._said.being(name):
                yield
        except BaseException:
            self._leave(name)
            self._forget(name)
            raise
        self._leave(name)

    def _leave(self, name: str) -> None:
        with self._lock:
            self._inside[name] -= 1
            if not self._inside[name]:
                del self._inside[name]
            self._left[name] = None
            self._left.move_to_end(name)
            old = list(self._left)[:-MOST_NAMED]
            gone = [each for each in old if each not in self._inside]
            for each in gone:
                del self._left[each]
        for each in gone:
            self._forget(each)

    def _forget(self, name: str) -> None:
        for denoiser in self.denoisers:
            denoiser.start(("named", name), None)

    def reset(self) -> None:
        """Forget everything: the next step starts cold."""
        for denoiser in self.denoisers:
            denoiser.start(None, None, announced=True)


def _nothing() -> None:
    return None
