"""How many processor threads torch uses, chosen by a short measurement.

On an idle machine more threads are faster. Beside other work they wait for each other: every operation ends with the
slowest of them, and that one waits for a processor. How it is now is measured on what denoisers and language models do:
products of many rows, and of one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import torch
from torch.nn import functional as F

__all__ = ["fastest", "numbers", "seconds_of", "settle"]

ROUNDS, SECONDS = 5, 0.08
"""Every number of threads is measured so often and so long: longer than a processor stays with one process."""
WORTH = 0.9
"""More threads must take at most this share of the time: they leave less for others."""
ROWS, CHANNELS, NEURONS, STEPS = 64, 576, 1536, 8


def numbers(most: int) -> list[int]:
    """Numbers of threads to try: powers of two, and ``most``."""
    return sorted({most, *(2**n for n in range(most.bit_length()) if 2**n <= most)})


def seconds_of(work: Callable[[], object], threads: Sequence[int]) -> dict[int, float]:
    """Seconds of one ``work`` by the number of threads, median of rounds in turn. The number of threads stays."""
    before, means = torch.get_num_threads(), {number: list[float]() for number in threads}
    try:
        for _ in range(ROUNDS):
            for number in threads:
                torch.set_num_threads(number)
                work()
                start, done = time.perf_counter(), 0
                while done == 0 or time.perf_counter() - start < SECONDS:
                    work()
                    done += 1
                means[number].append((time.perf_counter() - start) / done)
    finally:
        torch.set_num_threads(before)
    return {number: median(each) for number, each in means.items()}


def fastest(seconds: Mapping[int, float]) -> int:
    """The smallest number of threads that no larger one beats clearly."""
    chosen = min(seconds)
    for number in sorted(seconds):
        if seconds[number] <= WORTH * seconds[chosen]:
            chosen = number
    return chosen


def settle(asked: int | None = None) -> str:
    """Set torch's number of threads to ``asked``, or to the fastest of those it may use now.

    It may use as many as there are processors, or as ``OMP_NUM_THREADS`` says.

    Returns:
        Which number it is and why, in one line; empty if there was nothing to choose.
    """
    most = torch.get_num_threads()
    if asked:
        torch.set_num_threads(asked)
        return f"Threads: {asked}, as asked for."
    if most == 1:
        return ""
    seconds = seconds_of(_like_models(), numbers(most))
    torch.set_num_threads(chosen := fastest(seconds))
    times = ", ".join(f"{1000 * each:.1f} ms with {number}" for number, each in seconds.items())
    return f"Threads: {chosen}, the fastest now (a piece of work takes {times}; --threads N sets another)."


@torch.inference_mode()
def _like_models() -> Callable[[], object]:
    """Two layers of a denoiser on a batch, and some of a language model that decodes."""
    up, down = torch.full((NEURONS, CHANNELS), 1e-3), torch.full((CHANNELS, NEURONS), 1e-3)
    many, one = torch.ones(ROWS, CHANNELS), torch.ones(1, CHANNELS)

    def work() -> None:
        F.linear(F.silu(F.linear(many, up)), down)
        for _ in range(STEPS):
            F.linear(F.silu(F.linear(one, up)), down)

    return work
