"""The engine of the diffusion family: which generations are remembered, and the books.

It knows tensors and policies, not modules. Every call of a denoiser gets a :class:`tenuto.diffusion.call.Call` of its
own (:meth:`FeatureCache.begin`), which decides and estimates; :meth:`FeatureCache.end` puts what it did into the books.
Calls of several threads may be under way at once, each of another generation.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch

from tenuto.diffusion.branch import Branch
from tenuto.diffusion.call import Call
from tenuto.diffusion.policy import Composition, Recorder, Span, alone
from tenuto.errors import AttachError
from tenuto.telemetry import Telemetry

__all__ = ["FeatureCache", "cut"]


def cut(lists: Iterable[int], after: Iterable[int]) -> tuple[int, ...]:
    """Lengths of block lists that are also divided after each of the blocks ``after`` (counted over all lists)."""
    ends, total = set(after), 0
    for length in lists:
        total += length
        ends.add(total - 1)
    starts = [-1, *sorted(end for end in ends if 0 <= end < total)]
    return tuple(end - start for start, end in pairwise(starts))


class FeatureCache:
    """State and books of one denoiser.

    Args:
        composition: the policy's choices.
        lists: lengths of the denoiser's block lists.
        warmup: steps at the start of every generation that always compute (at least 1).
        telemetry: where events and totals go.
        reduce: as in ``Step``.
        watcher: is shown every estimate whose truth is known (closed-loop calibration).
    """

    def __init__(
        self,
        composition: Composition,
        lists: tuple[int, ...],
        warmup: int,
        telemetry: Telemetry,
        reduce: Callable[[torch.Tensor], torch.Tensor] = alone,
        watcher: Recorder | None = None,
    ) -> None:
        self.composition, self.lists = composition, lists
        self.warmup = max(warmup, 1)
        self.telemetry = telemetry
        self.reduce, self.watcher = reduce, watcher
        self.totals: dict[Hashable, int] = {}
        self.generations = 0
        self.lock = threading.RLock()
        self.cuts: frozenset[int] = frozenset()
        self.spans: tuple[Span, ...] = composition.scope.spans(lists)
        self._busy: set[Hashable] = set()
        self._branches: dict[tuple[Hashable, str], Branch] = {}
        self._paths: dict[str, tuple[int, ...]] = {}
        telemetry.hold(composition.estimator.nbytes())

    def reset(self, session: Hashable = None, total: int | None = None) -> None:
        """Forget everything (or one session): the next step of every branch starts cold."""
        with self.lock:
            for key in [key for key in self._branches if session in (None, key[0])]:
                self._forget(key)
            if session is None:
                self.totals.clear()
            elif total is None:
                self.totals.pop(session, None)
            else:
                self.totals[session] = total

    def _forget(self, key: tuple[Hashable, str]) -> None:
        self.telemetry.hold(-self._branches.pop(key).forget())

    def sessions(self) -> set[Hashable]:
        """Names of the generations that something is remembered of."""
        with self.lock:
            return {session for session, _ in self._branches}

    @contextmanager
    def claimed(self, session: Hashable) -> Iterator[None]:
        """Around one call of a generation.

        Raises:
            AttachError: another call of the same generation is under way, in another thread.
        """
        with self.lock:
            if session in self._busy:
                raise AttachError(
                    "Two calls of one generation are under way at once, in two threads, and would share its state. "
                    "Give each generation a name of its own: with run.generation(name): ..."
                )
            self._busy.add(session)
        try:
            yield
        finally:
            with self.lock:
                self._busy.discard(session)

    def divide(self, after: Iterable[int]) -> None:
        """Divide spans after these blocks too, because something besides the next block uses what they return; all that
        was remembered is dropped."""
        with self.lock:
            self.cuts = self.cuts | frozenset(after)
            self.spans = self.composition.scope.spans(cut(self.lists, self.cuts))
            for key, branch in self._branches.items():
                self.telemetry.hold(-branch.forget())
                self._branches[key] = branch.renewed()

    def begin(
        self,
        session: Hashable,
        branch: str,
        timestep: float,
        signature: Any,
        fresh: bool,
        *,
        again: bool = False,
    ) -> Call:
        """A denoiser call starts. A new shape, or ``fresh``, starts the branch cold; ``again``: the call just made is
        repeated, and computes everything."""
        key = (session, branch)
        with self.lock:
            held = self._branches.get(key)
            if held is None or (not again and (fresh or held.signature != signature)):
                latest = max((b.generation for (name, _), b in self._branches.items() if name == session), default=-1)
                if held:
                    self._forget(key)
                if latest < 0 or (held and held.generation == latest):  # else another branch has begun it already
                    latest, self.generations = self.generations, self.generations + 1
                held = self._branches[key] = Branch(latest, signature, path=self._paths.get(branch))
            held.index += not again
            held.timestep = timestep
            return Call(self, held, self.totals.get(session), branch, self.spans, closed=again)

    def end(self, call: Call) -> None:
        """A denoiser call is over: its events go into the books. After its last step a generation lets its state go."""
        branch = call.branch
        with self.lock:
            if call.wandered:  # other blocks ran than in the calls before: what was remembered is of another path
                self.telemetry.hold(-branch.drop())
            branch.path = self._paths[call.name] = tuple(call.path)
            if call.total is not None and branch.index >= call.total - 1:
                self.telemetry.hold(-branch.drop())
            self.telemetry.flops += call.flops
            self.telemetry.full_flops += call.whole
            for event in call.events():
                self.telemetry.record(event)

    def hold(self, branch: Branch, span: int, judged: Any) -> None:
        """Count what a span's states hold now."""
        with self.lock:
            if not branch.forgotten:
                self.telemetry.hold(branch.hold(span, judged))
