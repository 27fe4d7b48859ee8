"""AdaKV: the best entries of a layer decide how much each head gets; every head is sure of its part."""

from __future__ import annotations

import pytest
import torch
from views import scored_of

from tenuto.errors import PolicyError
from tenuto.kv.policies.adakv import AdaKV, JointHeads, whole

SCORES = [[9.0, 8.0, 7.0, 6.0, 0.0], [1.0, 5.0, 2.0, 3.0, 0.0]]


def test_the_layer_shares_its_budget() -> None:
    """Six entries: one of each head is protected, four are free; the four best are all of head 0."""
    counts = JointHeads(0.0).allocate([scored_of(SCORES, protected=1)], 6)
    assert counts[0].tolist() == [5, 1]


def test_every_head_is_sure_of_its_part() -> None:
    """Half of the even share of four: 0.5 * (4, 0) + 0.5 * (2, 2)."""
    assert JointHeads(0.5).allocate([scored_of(SCORES, protected=1)], 6)[0].tolist() == [4, 2]
    assert JointHeads(1.0).allocate([scored_of(SCORES, protected=1)], 6)[0].tolist() == [3, 3]


def test_a_minimum_is_part_of_what_a_head_wins() -> None:
    """Of six, int(0.7 * 3) = 2 are sure for each head, the protected one among them; the two best others are head 0's:
    7 and 6 (0.7 * (4, 0) + 0.3 * (2, 2) + 1 each would be 4.4 and 1.6)."""
    assert JointHeads(0.7, minimum=True).allocate([scored_of(SCORES, protected=1)], 6)[0].tolist() == [4, 2]
    assert JointHeads(0.0, minimum=True).allocate([scored_of(SCORES, protected=1)], 6)[0].tolist() == [5, 1]
    assert JointHeads(1.0, minimum=True).allocate([scored_of(SCORES, protected=1)], 6)[0].tolist() == [3, 3]
    assert JointHeads(0.5, minimum=True).allocate([scored_of(SCORES)], 50)[0].tolist() == [5, 5]


def test_a_budget_above_all_entries_gives_all() -> None:
    assert JointHeads(0.0).allocate([scored_of(SCORES)], 50)[0].tolist() == [5, 5]


def test_shares_become_whole_numbers_of_the_same_sum() -> None:
    assert whole(torch.tensor([1.6, 1.7, 0.7]), 4).tolist() == [1, 2, 1]


@pytest.mark.parametrize("options", [{"safeguard": 1.5}, {"window": 0}, {"kernel": 2}])
def test_what_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(PolicyError, match="safeguard must be from 0 to 1"):
        AdaKV(**options)  # type: ignore[arg-type]
