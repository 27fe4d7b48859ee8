"""The engine by itself: decisions, generations and books, without a module in sight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from tenuto.diffusion.branch import tensor_bytes
from tenuto.diffusion.cache import FeatureCache, cut
from tenuto.diffusion.call import Call
from tenuto.diffusion.gate import Verdict
from tenuto.diffusion.policies.every_n import Interval, StoredResidual, WholeStack
from tenuto.diffusion.policies.first_block import AllButFirst, ProbeChange
from tenuto.diffusion.policy import Composition, Scope, Span, Step, StepGate
from tenuto.errors import AttachError
from tenuto.telemetry import Telemetry

RESIDUAL = 2 * 3 * 4 * 4  # bytes of one stream [2, 3, 4] in single precision


def full(value: float) -> torch.Tensor:
    return torch.full((2, 3, 4), float(value))


def every(n: int = 2, warmup: int = 1) -> Composition:
    return Composition(WholeStack(), Interval(n, warmup), StoredResidual())


def engine(composition: Composition | None = None, lists: tuple[int, ...] = (3,), warmup: int = 1) -> FeatureCache:
    return FeatureCache(composition or every(), lists, warmup, Telemetry())


def run(made: Call, span: Span) -> None:
    """All blocks of a span have their turn."""
    for block in range(span.first, span.last + 1):
        made.arrive(block)


def call(
    cache: FeatureCache,
    given: float = 1.0,
    *,
    session: str = "",
    branch: str = "cond",
    signature: Any = "a",
    fresh: bool = False,
    add: float = 10.0,
) -> float:
    """One denoiser call whose every span adds ``add`` to its input; the result, as one number."""
    made = cache.begin(session, branch, 0.0, signature, fresh)
    state = full(given)
    for span in cache.spans:
        run(made, span)
        if made.enter(span.first, (state, None), lambda: full(given)):
            output = made.estimate()[0]
            assert output is not None
            state = output
        else:
            state = state + add
            made.computed((state, None))
    cache.end(made)
    return float(state.mean())


def decisions(cache: FeatureCache) -> list[str]:
    return [event.decision for event in cache.telemetry.events]


def test_the_residual_is_added_to_the_new_input() -> None:
    cache = engine()
    assert call(cache, 1.0, add=10) == 11
    assert call(cache, 2.0, add=99) == 12  # 2 + the residual of the last computed step
    assert call(cache, 3.0, add=20) == 23
    assert call(cache, 4.0, add=99) == 24
    assert decisions(cache) == ["compute", "reuse"] * 2


def test_the_first_steps_compute_whatever_the_gate_says() -> None:
    cache = engine(every(n=5, warmup=1), warmup=3)
    for _ in range(5):
        call(cache)
    assert decisions(cache) == ["compute"] * 3 + ["reuse"] + ["reuse"]
    assert engine(warmup=0).warmup == 1, "nothing can be reused before something was computed"


@pytest.mark.parametrize("change", [{"fresh": True}, {"signature": "b"}])
def test_cold_starts(change: dict[str, Any]) -> None:
    cache = engine()
    for _ in range(2):
        call(cache)
    call(cache, **change)
    assert [(event.generation, event.step) for event in cache.telemetry.events] == [(0, 0), (0, 1), (1, 0)]
    assert decisions(cache)[-1] == "compute"


def test_branches_and_sessions_have_their_own_state() -> None:
    cache = engine()
    for branch, session, add in (("cond", "", 10), ("uncond", "", 20), ("cond", "other", 30)):
        call(cache, 0.0, branch=branch, session=session, add=add)
    for branch, session, add in (("cond", "", 10), ("uncond", "", 20), ("cond", "other", 30)):
        assert call(cache, 1.0, branch=branch, session=session, add=99) == 1 + add


def test_generations_are_counted_once_for_all_branches() -> None:
    cache = engine()
    for generation in range(3):
        for step in range(2):
            for branch in ("cond", "uncond"):
                call(cache, branch=branch, fresh=step == 0 and generation > 0)
    call(cache, session="other")
    found = [event.generation for event in cache.telemetry.events]
    assert found == [0] * 4 + [1] * 4 + [2] * 4 + [3]


def test_reset_forgets_one_session_or_all_and_sets_the_length() -> None:
    cache = engine()
    for session in ("a", "b"):
        call(cache, session=session)
    cache.reset("a", total=7)
    assert cache.totals == {"a": 7}
    call(cache, session="a"), call(cache, session="b")
    assert decisions(cache) == ["compute", "compute", "compute", "reuse"]
    cache.reset()
    assert (cache.totals, cache.telemetry.cache_bytes) == ({}, 0)


def test_bytes_held() -> None:
    cache = engine(lists=(2, 2))
    assert cache.telemetry.cache_bytes == 0
    call(cache)
    assert cache.telemetry.cache_bytes == 2 * RESIDUAL, "one residual per list"
    call(cache), call(cache, branch="uncond")
    assert cache.telemetry.cache_bytes == 4 * RESIDUAL
    cache.reset()
    assert (cache.telemetry.cache_bytes, cache.telemetry.peak_cache_bytes) == (0, 4 * RESIDUAL)


def test_bytes_of_a_shared_gate_are_held_from_the_first_step() -> None:
    cache = engine(Composition(AllButFirst(), ProbeChange(0.1), StoredResidual()))
    call(cache)
    assert cache.telemetry.cache_bytes == 2 * RESIDUAL, "the probe and the residual"


class Weighty(StoredResidual):
    """An estimator with fitted weights and a price."""

    kind: ClassVar[Any] = "forecast"

    def nbytes(self) -> int:
        return 1000

    def flops(self, state: Any, step: Step) -> float:
        return 7.0


def test_an_estimator_s_weights_and_operations_count() -> None:
    cache = engine(Composition(WholeStack(), Interval(3, 1), Weighty()))
    assert cache.telemetry.cache_bytes == 1000
    for _ in range(3):
        call(cache)
    assert cache.telemetry.flops == 14
    assert decisions(cache) == ["compute", "forecast", "forecast"]


@dataclass(frozen=True, slots=True)
class Diary(StepGate):
    """Writes down what it is shown; always for reuse."""

    seen: list[Any]
    shared: ClassVar[bool] = True

    def init(self) -> tuple[str, ...]:
        return ()

    def judge(self, state: tuple[str, ...], step: Step) -> tuple[Verdict, tuple[str, ...]]:
        self.seen.append((step.index, step.span.index, step.leading, step.last, step.probe is not None, state))
        return Verdict(reuse=True, statistic=float(step.index), critical=9.0), state

    def settled(self, state: tuple[str, ...], step: Step, verdict: Verdict, computed: bool) -> tuple[str, ...]:
        return (*state, f"{step.index}.{step.span.index}{'c' if computed else 'r'}")


class Each(Diary):
    shared: ClassVar[bool] = False


class Pieces(Scope):
    """A probe, and two spans."""

    def spans(self, lists: Sequence[int]) -> tuple[Span, ...]:
        return Span(0, 0, 0, always=True), Span(1, 1, 2), Span(2, 3, 3)


def test_a_shared_gate_decides_once_per_step_at_the_leading_span() -> None:
    seen: list[Any] = []
    cache = engine(Composition(Pieces(), Diary(seen), StoredResidual()), lists=(4,))
    cache.reset("", total=3)
    for _ in range(3):
        call(cache)
    assert seen == [
        (0, 1, True, False, True, ()),
        (1, 1, True, False, True, ("0.1c",)),
        (2, 1, True, True, True, ("0.1c", "1.1r")),
    ]
    assert decisions(cache) == ["compute"] * 3 + ["compute", "reuse", "reuse"] * 2
    last = cache.telemetry.events[-1]
    assert (last.first_block, last.last_block, last.statistic, last.critical) == (3, 3, 2.0, 9.0)


def test_a_gate_per_span_decides_for_each() -> None:
    seen: list[Any] = []
    cache = engine(Composition(Pieces(), Each(seen), StoredResidual()), lists=(4,))
    call(cache), call(cache)
    assert [(index, span, state) for index, span, _, _, _, state in seen] == [
        *[(0, 1, ()), (0, 2, ())],
        *[(1, 1, ("0.1c",)), (1, 2, ("0.2c",))],
    ]


def test_a_stream_that_comes_or_goes_has_no_residual() -> None:
    cache = engine()
    span = cache.spans[0]
    for skipped in (False, True):
        made = cache.begin("", "cond", 0.0, "a", False)
        run(made, span)
        assert made.enter(span.first, (full(1), full(2)), lambda: full(0)) == skipped
        if skipped:
            image, text = made.estimate()
        else:
            made.computed((full(4), None))
        cache.end(made)
    assert torch.equal(image, full(4)) and torch.equal(text, full(2))


def test_a_span_that_was_never_opened() -> None:
    cache = engine()
    with pytest.raises(RuntimeError, match="never opened"):
        cache.begin("", "cond", 0.0, "a", False).computed((full(0), None))


def test_spans_are_divided_where_outputs_are_used() -> None:
    assert cut((3, 2), ()) == (3, 2)
    assert cut((3, 2), (0, 3)) == (1, 2, 1, 1)
    cache = engine(lists=(3,))
    call(cache), call(cache)
    cache.divide([0])
    assert [(span.first, span.last) for span in cache.spans] == [(0, 0), (1, 2)]
    assert cache.telemetry.cache_bytes == 0
    call(cache, 0.0), call(cache, 5.0, add=99)
    assert decisions(cache) == ["compute", "reuse", "compute", "compute", "reuse", "reuse"]
    assert {event.generation for event in cache.telemetry.events} == {0}


def test_two_calls_of_one_generation_at_once_are_refused() -> None:
    cache = engine()
    with cache.claimed("a"), cache.claimed("b"):
        with pytest.raises(AttachError, match=r"under way at once.*run\.generation"), cache.claimed("a"):
            pass
    with cache.claimed("a"):
        pass


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_dropped_and_computed(bad: float) -> None:
    cache = engine(every(n=9))
    call(cache, 1.0, add=bad)
    assert call(cache, 2.0, add=5) == 7
    assert call(cache, 3.0, add=99) == 8
    assert decisions(cache) == ["compute", "compute", "reuse"]
    assert call(cache, bad, add=5) != 8, "a bad input is computed too"
    assert decisions(cache)[-1] == "compute"


@dataclass
class Held:
    tensor: torch.Tensor
    rest: Any = None


def test_tensor_bytes() -> None:
    one, other = torch.zeros(10), torch.zeros(3, dtype=torch.float16)
    assert tensor_bytes(None) == tensor_bytes((1, "text", {})) == 0
    assert tensor_bytes((one, [other], {"a": one}, Held(one, Held(other)))) == 40 + 6
    assert tensor_bytes(one[:2]) == 40, "a view keeps its storage alive"
    assert tensor_bytes((one[:2], one[2:])) == 40
