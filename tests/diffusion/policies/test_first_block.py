"""FirstBlock: the probe decides; the residual is added after the first block."""

from __future__ import annotations

import math

import pytest
import torch
from stepping import decisions, full, make_step
from torch import nn

import tenuto
from tenuto.diffusion.policies.first_block import AllButFirst, ProbeChange, relative_l1
from tenuto.diffusion.policy import Span
from tenuto.errors import PolicyError

pytestmark = pytest.mark.usefixtures("one_thread")


class Times(nn.Module):
    """Multiplies by a number that the test may change."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states * self.factor


class Stack(nn.Module):
    def __init__(self, *factors: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Times(factor) for factor in factors)

    def forward(self, hidden_states: torch.Tensor, timestep: float) -> torch.Tensor:
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return hidden_states


def test_the_residual_is_added_to_the_state_after_the_first_block() -> None:
    model = Stack(2.0, 3.0, 5.0)
    with torch.no_grad(), tenuto.attach(model, tenuto.FirstBlock(threshold=0.5)) as run:
        assert float(model(full(1), 1000.0).mean()) == 30
        # residual of blocks 1 and 2 at the first step: 30 - 2 = 28; at the second step the first block gives 2.2
        assert float(model(full(1.1), 900.0).mean()) == pytest.approx(2.2 + 28)
        assert float(model(full(2), 800.0).mean()) == 60  # the probe doubled: computed
        assert float(model(full(2), 700.0).mean()) == pytest.approx(4 + 56)
    assert run.telemetry.counts() == {"compute": 4 + 2 * 2, "reuse": 2 * 2, "forecast": 0, "correct": 0}


def test_the_probe_is_compared_with_the_last_computed_step() -> None:
    model = Stack(2.0, 3.0)
    creeping = [1.0, 1.2, 1.4, 1.6]  # each within 25 % of the one before, the third not of the first
    with torch.no_grad(), tenuto.attach(model, tenuto.FirstBlock(threshold=0.25)) as run:
        for step, value in enumerate(creeping):
            model(full(value), 1000.0 - step)
    assert [event.decision for event in run.telemetry.events if event.first_block] == [
        *["compute", "reuse", "compute", "reuse"]
    ]
    assert [event.statistic for event in run.telemetry.events if event.first_block] == [
        None,
        *[pytest.approx(value, rel=1e-5) for value in (0.2, 0.4, 0.2 / 1.4)],
    ]


def test_the_gate_by_itself() -> None:
    gate = ProbeChange(0.5)
    verdict, state = gate.judge(gate.init(), make_step(probe=(full(1), None)))
    assert not verdict.reuse
    state = gate.settled(state, make_step(probe=(full(1), None)), verdict, True)
    verdict, _ = gate.judge(state, make_step(1, probe=(full(1.5), None)))
    assert (verdict.reuse, verdict.statistic, verdict.critical) == (False, 0.5, 0.5), "below the threshold, not at it"
    assert gate.judge(state, make_step(1, probe=(full(1.4), None)))[0].reuse
    kept = gate.settled(state, make_step(1, probe=(full(1.4), None)), verdict, False)
    assert kept is state
    assert not gate.judge(state, make_step(1))[0].reuse, "no probe, no reuse"


def test_relative_l1() -> None:
    assert relative_l1(full(3), full(2)) == 0.5
    assert relative_l1(full(1), full(0)) == math.inf
    assert relative_l1(full(-1), full(1)) == 2


def test_the_first_block_of_the_first_list_is_the_probe() -> None:
    assert AllButFirst().spans((3,)) == (Span(0, 0, 0, True), Span(1, 1, 2))
    assert AllButFirst().spans((2, 2)) == (Span(0, 0, 0, True), Span(1, 1, 1), Span(2, 2, 3))
    assert AllButFirst().spans((1, 2)) == (Span(0, 0, 0, True), Span(1, 1, 2))
    assert AllButFirst().spans((1,)) == (Span(0, 0, 0, True),)


@pytest.mark.parametrize(
    ("policy", "pattern"),
    [
        (tenuto.FirstBlock(threshold=0.0), "c" * 10),
        (tenuto.FirstBlock(threshold=1e9), "c" + "r" * 9),
        (tenuto.FirstBlock(threshold=1e9, warmup=4), "cccc" + "r" * 6),
    ],
    ids=repr,
)
def test_thresholds_of_nothing_and_of_everything(policy: tenuto.FirstBlock, pattern: str) -> None:
    assert decisions(policy) == pattern


def test_a_larger_threshold_reuses_more() -> None:
    counts = [decisions(tenuto.FirstBlock(threshold=value), 30).count("r") for value in (0.0, 0.03, 0.1, 0.3, 9.0)]
    assert counts == sorted(counts) and len(set(counts)) > 2, counts


@pytest.mark.parametrize("numbers", [{"threshold": -0.1}, {"warmup": 0}])
def test_numbers_it_refuses(numbers: dict[str, float]) -> None:
    with pytest.raises(PolicyError, match=r"^first_block: .*threshold must be zero or more, warmup at least 1\.$"):
        tenuto.FirstBlock(**numbers)  # type: ignore[arg-type]
