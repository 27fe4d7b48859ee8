"""Which guidance branch a denoiser call belongs to, and whether a new generation has begun."""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["Clock", "Tick"]

CALLS_PER_STEP = 4
_LOST = (
    f"More than {CALLS_PER_STEP} denoiser calls at one timestep: which generation they belong to cannot be told, so "
    "nothing is reused from here on. Use `with run.generation(name):` around the calls of each."
)
BOTH = "both"


@dataclass(frozen=True, slots=True)
class Tick:
    """One denoiser call: its branch, its timestep (0.0 if the model takes none), and whether it starts cold."""

    branch: str
    timestep: float
    fresh: bool


@dataclass(slots=True)
class _Hand:
    """The last timestep of one branch, the direction it moves in (0: not known yet), and whether it was taken for the
    first one of a generation because the one before it lay the unusual way."""

    timestep: float
    direction: int = 0
    doubted: bool = False


@dataclass(slots=True)
class _Session:
    hands: dict[str, _Hand] = field(default_factory=dict)
    timestep: float | None = None
    calls: int = 0
    lost: bool = False
    announced: bool = False


class Clock:
    """Reads timesteps. A branch starts cold when its timestep repeats or turns back.

    After a single call nothing has turned back yet: a timestep that rises then begins another generation, behind one of
    a single step. Of a generation that counts up the second step so starts cold too, unless its start was announced.

    A call made inside diffusers' ``cache_context(name)`` belongs to branch ``name`` ("cond_uncond" is "both").
    Elsewhere the order of calls at one timestep tells: "call0", "call1" and so on, up to four; with more it warns once
    and starts every call cold. A generation that begins at the very timestep where the one before ended, or below it,
    cannot be told from more of that one: a program says so (``run.generation(name)``, ``run.reset()``).
    """

    def __init__(self, usual: int = -1) -> None:
        """``usual``: the direction that timesteps move in where nothing else tells, -1 (down) or 1."""
        self._sessions: dict[Hashable, _Session] = {}
        self._usual = usual
        self._announced: set[Hashable] = set()

    def reset(self, session: Hashable = None, announced: bool = False) -> None:
        """Forget one session, or all; ``announced``: a generation begins now, of one direction, whichever it is."""
        for name in list(self._sessions):
            if session in (None, name):
                del self._sessions[name]
        if session is None:
            self._announced.clear()
        self._announced.discard(session)
        if announced:
            self._announced.add(session)

    def tick(self, session: Hashable, context: str | None, timestep: Any) -> Tick:
        """One call in ``session`` with the ``timestep`` argument the denoiser was given (the largest if a tensor)."""
        now = float(timestep.max()) if isinstance(timestep, torch.Tensor) else float(timestep or 0.0)
        said = not self._announced.isdisjoint((None, session))
        place = self._sessions.setdefault(session, _Session(announced=said))
        place.calls = place.calls + 1 if place.timestep == now else 0
        if context is None and (place.lost or place.calls >= CALLS_PER_STEP):
            if not place.lost:
                warnings.warn(_LOST, stacklevel=2)
            place.lost, place.timestep = True, now
            return Tick("call0", now, True)
        place.timestep = now
        branch = f"call{place.calls}" if context is None else context
        branch = BOTH if branch == "cond_uncond" else branch
        hand = place.hands.get(branch)
        if hand is None:
            place.hands[branch] = _Hand(now)
            return Tick(branch, now, True)
        direction = (now > hand.timestep) - (now < hand.timestep)
        unusual = not hand.direction and not hand.doubted and direction == -self._usual
        if unusual and not place.announced:
            place.hands[branch] = _Hand(now, doubted=True)
            return Tick(branch, now, True)
        fresh = direction == 0 or (hand.direction != 0 and direction != hand.direction)
        place.announced &= not fresh
        place.hands[branch] = _Hand(now, 0 if fresh else direction)
        return Tick(branch, now, fresh)
