"""What a benchmark generates is fixed by its numbers."""

from __future__ import annotations

import pytest

from tenuto.bench.diffusion.job import MIN_REPEATS, Job, labels_of
from tenuto.errors import InputError


@pytest.mark.parametrize(
    ("samples", "batch", "sizes"),
    [
        (256, None, [32] * 8),
        (64, None, [12, 13, 13, 13, 13]),
        (40, None, [8] * 5),
        (3, None, [1, 1, 1]),
        (64, 32, [32, 32]),
        (65, 32, [21, 22, 22]),
    ],
)
def test_batches_are_even_and_cover_all(samples: int, batch: int | None, sizes: list[int]) -> None:
    job = Job(samples=samples, batch=batch)
    assert sorted(len(b) for b in job.batches) == sorted(sizes)
    assert [i for b in job.batches for i in b] == list(range(samples))
    assert job.repeats == max(len(sizes), MIN_REPEATS)


def test_labels_and_seeds() -> None:
    assert labels_of(range(8, 13)) == [8, 9, 0, 1, 2]
    assert Job(seed=7).seeds(range(2, 4)) == [9, 10]


@pytest.mark.parametrize(
    "numbers", [{"steps": 0}, {"steps": -3}, {"samples": 0}, {"seed": -1}, {"batch": 0}, {"samples": 1_000_001}]
)
def test_numbers_out_of_range(numbers: dict[str, int]) -> None:
    (name, value), *_ = numbers.items()
    with pytest.raises(InputError, match=f"{name}={value} is not allowed: give "):
        Job(**numbers)
