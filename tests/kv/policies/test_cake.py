"""CAKE: mean and variance score a token, entropy times variance a layer."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from views import scored_of, view_of

from tenuto.errors import PolicyError
from tenuto.kv.policies.cake import Cake, LayerPreference, MeanAndVariance
from tenuto.kv.policy import Scored

KEYS = torch.tensor([[[math.log(2.0)], [0.0], [0.0]]])
"""With queries of one: attention (2, 1, -)/3 of the second token and (2, 1, 1)/4 of the third."""


def test_the_score_of_a_small_case() -> None:
    scores = MeanAndVariance(probes=2, kernel=1, gamma=10.0).score(view_of(KEYS, torch.ones(1, 2, 1)))
    expected = [7 / 12 + 10 * (1 / 12) ** 2, 7 / 24 + 10 * (1 / 24) ** 2, 1 / 8 + 10 * (1 / 8) ** 2]
    torch.testing.assert_close(scores, torch.tensor([expected]))


def test_scores_are_pooled_before_the_window_and_averaged_over_the_group() -> None:
    keys = torch.tensor([[[0.0], [math.log(3.0)], [0.0], [0.0]]])
    queries = torch.tensor([[[1.0]], [[0.0]]])
    first, second = [1 / 6, 3 / 6, 1 / 6, 1 / 6], [1 / 4] * 4
    mean = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
    expected = [(mean[0] + mean[1]) / 3, sum(mean[:3]) / 3, (mean[1] + mean[2]) / 3, mean[3]]
    scores = MeanAndVariance(probes=1, kernel=3).score(view_of(keys, queries))
    torch.testing.assert_close(scores, torch.tensor([expected]))


def test_the_preference_of_a_small_case() -> None:
    """Only the first entry is not protected: it gets 2/3 and 1/2."""
    view = view_of(KEYS, torch.ones(1, 2, 1))
    scored = Scored(view, torch.zeros(1, 3), torch.tensor([[False, True, True]]))
    entropy, variance = -(2 / 3 * math.log(2 / 3) + 1 / 2 * math.log(1 / 2)), (1 / 12) ** 2
    assert float(LayerPreference().preference(scored)) == pytest.approx(entropy * variance)
    assert float(LayerPreference(0.5, 2.0).preference(scored)) == pytest.approx(entropy**2 * variance**0.5)


def layer(seed: int, sharpness: float) -> Scored:
    """Two KV heads, four query heads, twelve entries of which the last three are protected, three queries."""
    made = torch.Generator().manual_seed(seed)
    view = view_of(torch.randn(2, 12, 4, generator=made) * sharpness, torch.randn(4, 3, 4, generator=made))
    return replace(scored_of([[0.0] * 12] * 2, protected=3), view=view)


def preference(scored: Scored) -> float:
    """H times V, one number at a time."""
    entropy = variance = 0.0
    view = scored.view
    for head in range(4):
        rows: list[list[float]] = []
        for query, last in zip(view.queries[head].double(), (9, 10, 11), strict=True):
            weights = [math.exp(float(query @ key)) for key in view.keys[head // 2].double()[: last + 1]]
            rows.append([weight / sum(weights) for weight in weights])
        for entry in range(9):
            column = [row[entry] for row in rows]
            entropy -= sum(a * math.log(a) for a in column)
            variance += sum((a - sum(column) / 3) ** 2 for a in column) / 3
    return entropy * variance


def test_layers_share_in_proportion() -> None:
    """24 entries, twelve of them protected; of the other twelve the layers get what they want, evenly over heads."""
    layers = [layer(0, 0.4), layer(1, 0.3)]
    wanted = [preference(scored) for scored in layers]
    shares = [12 * want / sum(wanted) for want in wanted]
    counts = LayerPreference().allocate(layers, 24)
    for count, share in zip(counts, shares, strict=True):
        assert count.tolist() == [3 + round(share) // 2] * 2
    assert counts[0][0] != counts[1][0]


def test_what_a_layer_cannot_hold_goes_to_the_others() -> None:
    layers = [layer(0, 1.5), layer(1, 0.001)]
    assert preference(layers[0]) > 100 * preference(layers[1])
    assert [c.tolist() for c in LayerPreference().allocate(layers, 40)] == [[12, 12], [8, 8]]
    assert [c.tolist() for c in LayerPreference().allocate(layers, 99)] == [[12, 12], [12, 12]]


def test_what_is_refused() -> None:
    with pytest.raises(PolicyError, match="kernel odd"):
        Cake(kernel=2)
    with pytest.raises(PolicyError, match="tau1=0"):
        Cake(tau1=0)
    with pytest.raises(PolicyError, match="combine it with a scorer that does so too"):
        LayerPreference().allocate([scored_of([[1.0, 2.0]])], 1)
