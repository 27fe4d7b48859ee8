"""A contender does the same work every time, counts calls, and leaves the model as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import tenuto
from tenuto.bench.diffusion.contender import Calls, Contender, merged
from tenuto.bench.diffusion.job import Job
from tenuto.bench.diffusion.rows import ImageEntry, cached
from tenuto.errors import AttachError
from tenuto.telemetry import Event, Telemetry
from tenuto.zoo.pipelines import ImageModel, load_model

pytestmark = pytest.mark.usefixtures("one_thread")
JOB = Job(steps=4, samples=6, batch=3)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> ImageModel:
    return load_model(str(tiny_model))


def test_the_rehearsal_is_in_no_book(model: ImageModel) -> None:
    row = Contender(cached(tenuto.EveryN(n=2)), model, JOB)
    with Calls(model, 100, "test") as row.counter:
        for repeat in range(5):
            assert row.work(repeat) > 0
        book = row.telemetry()
        assert row.counter.count == 5 * row.expected_calls == 5 * (4 + 1)
    assert row.calls == 2 * 4
    assert len(book.events) == 2 * 4
    assert [event.decision for event in book.events[:4]] == ["compute", "reuse", "compute", "reuse"]
    assert book.reuse_ratio == 0.5
    assert 1.8 < (book.flops_speedup or 0) < 2.0
    assert sum(len(p) for p in row.pictures) == 6


def test_the_baseline_is_the_plain_pipeline(model: ImageModel) -> None:
    row = Contender(ImageEntry(name="none"), model, JOB)
    row.probe()
    for repeat in range(2):
        row.work(repeat)
    expected = torch.cat([model.draw([0, 1, 2], [0, 1, 2], 4, 1.5), model.draw([3, 4, 5], [3, 4, 5], 4, 1.5)])
    assert torch.equal(torch.cat(row.pictures), expected)
    assert row.peak_bytes is not None
    assert not row.telemetry().events


def test_the_model_is_as_it_was(model: ImageModel) -> None:
    transformer = model.pipe.transformer
    before = dict(vars(transformer))
    row = Contender(cached(tenuto.EveryN(n=2)), model, JOB)
    with Calls(model, 10, "test") as row.counter:
        row.probe()
    assert vars(transformer) == before
    assert not transformer._forward_pre_hooks


def test_one_step_can_be_rehearsed(model: ImageModel) -> None:
    row = Contender(cached(tenuto.EveryN(n=2)), model, Job(steps=1, samples=1))
    assert len(row.probe().events) == 1


def test_a_refusal_is_a_result_only_where_that_was_said(model: ImageModel) -> None:
    @contextmanager
    def refuses(model: ImageModel, rehearse: Callable[[], None]) -> Iterator[Telemetry]:
        rehearse()
        raise AttachError("It wants another model.")
        yield Telemetry()

    entry = ImageEntry(name="peer", attach=refuses)
    with pytest.raises(AttachError, match="another model"):
        Contender(entry, model, JOB).probe()
    row = Contender(replace(entry, optional=True), model, JOB)
    assert not row.probe().events
    assert (row.refused, row.peak_bytes) == ("It wants another model.", None)


def test_books_are_added_up() -> None:
    def book(generations: int, flops: float, held: int) -> Telemetry:
        made = Telemetry(flops=flops, full_flops=10.0, peak_cache_bytes=held)
        for number in range(generations):
            made.record(
                Event(generation=number + 3, step=0, branch="both", first_block=0, last_block=1, decision="reuse")
            )
        return made

    whole = merged([book(2, 4.0, 7), book(1, 6.0, 5)])
    assert (whole.flops, whole.full_flops, whole.peak_cache_bytes) == (10.0, 20.0, 7)
    assert whole.summary()["generations"] == 3
    assert asdict(merged([])) == asdict(Telemetry())
