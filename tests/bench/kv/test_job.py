"""What a KV job may be."""

from __future__ import annotations

from typing import Any

import pytest

from tenuto.bench.kv.job import KVJob, distinct, read_lengths
from tenuto.errors import InputError


def test_rounds_take_the_tasks_in_turn() -> None:
    job = KVJob(contexts=(8, 16), tasks=("a", "b"), examples=2)
    assert job.rounds[:4] == [(8, "a", 0), (8, "b", 0), (8, "a", 1), (8, "b", 1)]
    assert len(set(job.rounds)) == 8


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"examples": 0}, "examples=0"),
        ({"seed": -1}, "seed=-1"),
        ({"contexts": (0,)}, "context=0"),
        ({"contexts": ()}, "at least one"),
        ({"tasks": ()}, "at least one"),
        ({"question": "before"}, "after, inside"),
    ],
)
def test_numbers_out_of_range(numbers: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        KVJob(**numbers)


def test_lengths_and_rows_from_text() -> None:
    assert read_lengths("512,1024,512") == (512, 1024)
    with pytest.raises(InputError, match="Give for example 1024"):
        read_lengths("512,1k")
    distinct(["a", "b"])
    with pytest.raises(InputError, match="b was given twice"):
        distinct(["a", "b", "b"])
