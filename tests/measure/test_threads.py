"""The number of threads is the smallest that no larger one clearly beats, measured in turns, or the one asked for."""

from __future__ import annotations

import time
from collections.abc import Iterator

import click
import pytest
import torch
from click.testing import CliRunner

from tenuto.cli import main
from tenuto.measure import threads
from tenuto.measure.threads import fastest, numbers, seconds_of, settle


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_numbers_to_try() -> None:
    assert [numbers(most) for most in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({1: 1.0}, 1),
        ({1: 1.0, 2: 0.55}, 2),
        ({1: 1.0, 2: 0.95}, 1),
        ({1: 0.13, 2: 0.9}, 1),
        ({1: 1.0, 2: 0.6, 4: 0.4, 8: 0.38}, 4),
    ],
)
def test_more_threads_must_be_worth_it(seconds: dict[int, float], chosen: int) -> None:
    assert fastest(seconds) == chosen


def test_every_number_is_measured_in_turn_and_the_number_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    clock, used = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def work() -> None:
        used.append(torch.get_num_threads())
        clock[0] += 1.0 / used[-1]

    assert seconds_of(work, [1, 2]) == {1: 1.0, 2: 0.5}
    assert used[::2] == [1, 2] * threads.ROUNDS, "a warm-up and one that counts"
    assert torch.get_num_threads() == 1


def test_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)
    monkeypatch.setattr(threads, "seconds_of", lambda work, given: {number: 0.001 * number for number in given})
    assert settle() == (
        "Threads: 1, the fastest now (a piece of work takes 1.0 ms with 1, 2.0 ms with 2; --threads N sets another)."
    )
    assert torch.get_num_threads() == 1
    assert settle() == "", "one is all there is"
    assert settle(2) == "Threads: 2, as asked for." and torch.get_num_threads() == 2


def test_the_piece_of_work_is_measured() -> None:
    found = seconds_of(threads._like_models(), [1])
    assert list(found) == [1] and found[1] > 0


def test_every_bench_and_the_demo_take_threads(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    bench = main.commands["bench"]
    assert isinstance(bench, click.Group) and bench.commands
    for command in (main.commands["demo"], *bench.commands.values()):
        assert "--threads" in command.get_help(click.Context(command)), command.name
    asked = []
    monkeypatch.setattr(threads, "settle", lambda number: asked.append(number) or "Threads: told.")
    (tmp_path / "file").touch()
    for words in (["demo"], ["demo", "--threads", "3"]):
        result = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "file" / "below")])
        assert result.exit_code == 2 and result.stderr.splitlines()[0] == "Threads: told.", result.output
    assert asked == [None, 3]
