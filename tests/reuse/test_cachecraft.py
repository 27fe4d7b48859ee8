"""Cache-Craft: attention to chunks is that of the model, and the budget goes where chunks lean on others."""

from __future__ import annotations

import pytest
import torch

from tenuto.reuse.policies.cachecraft import CacheCraft, attention_to_chunks
from tenuto.reuse.policy import Seen

pytestmark = pytest.mark.usefixtures("one_thread")


def seen(lean: float) -> Seen:
    """Three chunks of 10 tokens; queries of the third look at tokens 3 and 4 of the first, the more the later they
    stand; those of the second at themselves."""
    keys, queries = torch.zeros(1, 30, 4), torch.zeros(2, 20, 4)
    keys[0, 3:5, 0], keys[0, 10:20, 1] = 1, 1
    queries[:, :10, 1] = 9
    queries[:, 10:, 0] = torch.linspace(0, lean, 10)
    blank = torch.zeros(1, 20, 4)
    return Seen(1, 1.0, (0, 10, 20), torch.arange(10, 30), queries, keys[:, 10:], blank, blank, blank, keys)


def test_attention_to_chunks() -> None:
    mass = attention_to_chunks(seen(6.0))
    assert mass.shape == (20, 3)
    assert torch.allclose(mass.sum(-1), torch.ones(20))
    logits = torch.zeros(30)
    logits[3:5] = 6.0
    weights = logits.softmax(-1)
    weights = weights[1:] / weights[1:].sum()
    assert torch.allclose(mass[-1], torch.stack([weights[:9].sum(), weights[9:19].sum(), weights[19:].sum()]))
    assert mass[0, 2] == 0, "nothing looks ahead"


def test_the_chunk_that_leans_on_others_gets_more_and_its_most_contextual_tokens() -> None:
    chosen = CacheCraft(overhead=0.5).choose(seen(9.0))
    assert chosen is not None
    numbers = (chosen + 10).tolist()
    third = [n for n in numbers if n >= 20]
    assert len(numbers) == 10
    assert len(third) > 5
    assert third == list(range(30 - len(third), 30)), "the later ones look outside most"
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("overhead", [0.0, 0.15, 1.0])
def test_exactly_as_many_as_allowed(overhead: float) -> None:
    chosen = CacheCraft(overhead=overhead).choose(seen(9.0))
    assert chosen is not None
    assert len(chosen) == round(20 * overhead)
    assert CacheCraft(check=2).choose(seen(9.0)) is None, "another layer is not asked"
