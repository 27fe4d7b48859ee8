"""Scissorhands: queries that gave less than 1/t are counted; later layers get more, in all no more than the budget."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from views import layer_of, view_of

from tenuto.errors import PolicyError
from tenuto.kv.policies.scissorhands import LaterMore, Neglect, Scissorhands, on_line


def test_the_score_of_a_small_case() -> None:
    """Attention of the first query head: (4, 1)/5 and (4, 1, 3)/8; of the second: (1, 4)/5 and (3, 12, 4)/19. Even
    shares are 1/2 and 1/3; the first query does not see the last entry."""
    keys = torch.tensor([[[math.log(4.0)], [0.0], [math.log(3.0)]]])
    queries = torch.tensor([[[1.0], [1.0]], [[-1.0], [-1.0]]])
    scores = Neglect(2).score(view_of(keys, queries))
    torch.testing.assert_close(scores, torch.tensor([[-(0 + 2) / 2, -(2 + 0) / 2, -(0 + 1) / 2]]))


def test_t_is_the_position_of_the_query() -> None:
    """Far on in a sequence, a quarter of the attention is far above the even share."""
    view = view_of(torch.zeros(1, 4, 1), torch.zeros(1, 1, 1))
    assert Neglect(1).score(replace(view, query_positions=torch.tensor([2]))).tolist() == [[-1.0] * 4]
    assert Neglect(1).score(replace(view, query_positions=torch.tensor([99]))).tolist() == [[0.0] * 4]


def test_a_line_never_gives_more_than_its_mean() -> None:
    assert [on_line(1, 4, layer, 3) for layer in range(3)] == [1, 2, 4]
    assert [on_line(4, 1, layer, 3) for layer in range(3)] == [4, 2, 1]
    assert on_line(5, 5, 0, 1) == 5


@pytest.mark.parametrize(
    ("seen", "expected"),
    [(20, [5, 8, 11]), (9, [7, 8, 9]), (8, [8, 8, 8]), (5, [8, 8, 8])],
    ids=["tilted", "the last keeps all", "all fit", "all fit well"],
)
def test_later_layers_get_more(seen: int, expected: list[int]) -> None:
    """Eight per head, two protected; half more than the even share of six in the last layer, half less in the first."""
    layers = [layer_of(seen, layer, 3, protected=2) for layer in range(3)]
    assert [LaterMore(0.5).allocate([scored], 16)[0].tolist() for scored in layers] == [[n, n] for n in expected]


@pytest.mark.parametrize("options", [{"history": 0}, {"window": -1}, {"drop": 0}, {"tilt": 1.0}])
def test_what_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(PolicyError, match="tilt from 0 to below 1"):
        Scissorhands(**options)  # type: ignore[arg-type]
