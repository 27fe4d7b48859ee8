"""How fast, and how much memory: wall clock measured interleaved, and the growth of the peak."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Self

import torch

from tenuto.errors import InputError
from tenuto.records.timing import Timing

__all__ = ["PeakMemory", "Speedup", "Work", "claim", "interleave", "synchronise", "timed"]

Work = Callable[[int], float]
"""One measured piece of work: given the number of the repeat (negative for a warm-up), it returns its seconds."""

STATM = Path("/proc/self/statm")
SAMPLE_SECONDS = 0.002


def synchronise(device: torch.device) -> None:
    """Wait until the accelerator has done what it was asked to; nothing on a processor."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds that ``call`` takes, until the accelerator has finished too."""
    synchronise(device)
    start = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - start


def interleave(baseline: Work, methods: Mapping[str, Work], repeats: int = 5, warmup: int = 1) -> dict[str, Timing]:
    """Measure all methods and the baseline in turn, so that a slow minute of the machine slows all of them.

    In every repeat the baseline and each method run once, in an order that rotates from repeat to repeat.

    Raises:
        InputError: ``repeats`` is below one or ``warmup`` below zero.
    """
    if repeats < 1 or warmup < 0:
        raise InputError(f"repeats={repeats}, warmup={warmup}: give at least one repeat and no negative warm-up.")
    works: list[tuple[str | None, Work]] = [(None, baseline), *methods.items()]
    seconds: dict[str | None, list[float]] = {name: [] for name, _ in works}
    for repeat in range(-warmup, repeats):
        turn = repeat % len(works)
        for name, work in works[turn:] + works[:turn]:
            spent = work(repeat)
            if repeat >= 0:
                seconds[name].append(spent)
    reference = tuple(seconds[None])
    return {name: Timing(seconds=tuple(seconds[name]), baseline_seconds=reference) for name in methods}


@dataclass(frozen=True, slots=True, kw_only=True)
class Speedup:
    """The speed-up that may be claimed, median and range of the pairs; None with the reason in ``withheld``."""

    speedup: float | None = None
    speedup_range: tuple[float, float] | None = None
    withheld: str | None = None


def claim(timing: Timing, *, saved: bool, identical: bool, exact: bool) -> Speedup:
    """The honesty rule: no speed-up where nothing was saved, nor where the output gives the saving the lie.

    Args:
        timing: the measured pairs.
        saved: whether any block execution was left out.
        identical: whether the output equals the baseline's in every bit.
        exact: whether the method claims that it does.
    """
    if not saved:
        return Speedup(withheld="nothing was reused: every block was computed at every step")
    if identical and not exact:
        return Speedup(withheld="the output equals the uncached one, and the policy does not claim to be exact")
    ratios = timing.ratios
    return Speedup(speedup=median(ratios), speedup_range=(min(ratios), max(ratios)))


class PeakMemory:
    """Context manager: by how many bytes the memory in use grew at its peak, in ``grown`` after the block.

    On CUDA this is what torch allocated. Elsewhere it is the resident set of the process, sampled every two
    milliseconds on Linux; memory that the allocator kept from earlier work is handed back to the system first where the
    C library can, else growth would be understated. On other systems it is the growth of the highest mark so far.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.grown = 0
        self._start = 0
        self._peak = 0
        self._stop = threading.Event()
        self._sampler: threading.Thread | None = None

    def __enter__(self) -> Self:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._start = torch.cuda.memory_allocated(self.device)
            return self
        _release_free_memory()
        self._start = self._peak = _resident_bytes()
        if STATM.exists():
            self._sampler = threading.Thread(target=self._sample, name="tenuto-peak-memory", daemon=True)
            self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            self._peak = torch.cuda.max_memory_allocated(self.device)
        else:
            if self._sampler:
                self._stop.set()
                self._sampler.join()
            self._peak = max(self._peak, _resident_bytes())
        self.grown = max(self._peak - self._start, 0)

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self._peak = max(self._peak, _resident_bytes())


def _resident_bytes() -> int:
    if STATM.exists():
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource  # not on Windows

    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else highest * 1024


def _release_free_memory() -> None:
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl does not
        if trim is not None:
            trim(0)
