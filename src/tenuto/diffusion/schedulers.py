"""The scheduler of a pipeline: it tells when a generation starts, and how long it is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from tenuto.calibration import Profile
from tenuto.diffusion.run import AttachedRun
from tenuto.diffusion.sampling import check_sampling, check_timesteps
from tenuto.restoring import wrap_until

__all__ = ["Watch"]


class Watch:
    """Sees ``set_timesteps`` of the scheduler a pipeline has, also of one put in its place meanwhile.

    A copy of the scheduler is not seen: it is somebody's own (LTX-2's pipelines step their sound by a copy).
    """

    def __init__(self, stack: ExitStack, target: Any, run: AttachedRun) -> None:
        self.target, self.run = target, run
        self.seen: Any = None
        self._looked = False
        self._mine = ExitStack()
        self._lock = threading.RLock()
        stack.callback(self._mine.close)

    def look(self) -> None:
        """Take over the pipeline's scheduler, if it is another than before.

        Raises:
            CalibrationError: the policy's profile was fitted for another kind of sampling.
        """
        scheduler = getattr(self.target, "scheduler", None)
        first, self._looked = not self._looked, True  # at attach
        if scheduler is self.seen:
            return
        with self._lock:
            if self._promises and scheduler is not None:
                check_sampling(self._promises, scheduler)
            self.seen = scheduler
            self._mine.close()
            self.run.sampler = None if scheduler is None else type(scheduler).__name__
            if scheduler is None:
                return
            wrap_until(self._mine, scheduler, "set_timesteps", self._watched)
            if not first:  # its timesteps are set already: a generation begins with this call
                self._start()

    @property
    def _promises(self) -> Profile | None:
        """The profile, where the policy bounds its errors by it."""
        return self.run.profile if self.run.policy.budget is not None else None

    def _watched(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def set_timesteps(*args: Any, **options: Any) -> Any:
            result = original(*args, **options)
            self._start()
            return result

        return set_timesteps

    def _start(self) -> None:
        if self._promises:
            check_timesteps(self._promises, [float(timestep) for timestep in self.seen.timesteps])
        total = len(self.seen.timesteps) if len(self.run.denoisers) == 1 else None
        for denoiser in self.run.denoisers:
            denoiser.displaced()
            denoiser.start(self.run.session, total, announced=True)
