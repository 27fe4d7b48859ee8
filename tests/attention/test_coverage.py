from __future__ import annotations

import pytest
import torch
from retrofitted import plain, tokens

from tenuto.attention import PiAttention, retrofit
from tenuto.attention.coverage import coverage, guaranteed, reachable
from tenuto.errors import PolicyError

SMALL = [
    PiAttention(window=4, stride=7),
    PiAttention(window=3, stride=5, last=2),
    PiAttention(window=3, stride=2, variant="log"),
    PiAttention(window=3, stride=6, variant="log", phases=True),
    PiAttention(window=4, stride=9, variant="single"),
    PiAttention(window=2, stride=9, coprime=True),
    PiAttention(window=1, stride=5),
    PiAttention(window=1, stride=1, variant="log"),
]


@pytest.mark.parametrize("attention", SMALL, ids=str)
def test_coverage_is_what_brute_force_finds(attention: PiAttention) -> None:
    patterns, context = [attention.pattern(3, layer) for layer in range(4)], 97
    reached = {0}
    for pattern, row, bits in zip(patterns, coverage(patterns, context), reachable(patterns, context), strict=True):
        seen = pattern.mask_fn()
        last = torch.tensor(200)  # far from the sinks
        sees = [d for d in range(context) if any(bool(seen(0, head, last, last - d)) for head in range(3))]
        reached = {a + b for a in reached for b in sees if a + b < context}
        assert reached == {d for d in range(context) if bits >> d & 1}
        assert (row.distances, row.farthest) == (len(reached), max(reached))
        assert row.gap == min(set(range(context + 1)) - reached)
        assert row.guarantee is None or row.guarantee < row.gap


def test_the_figures_of_the_paper_s_own_setting() -> None:
    """Window 8, stride 64, 4,096 tokens, against an independent count."""
    context, sizes = 4096, {"single": (261, 512), "multiples": (3207, 4081), "log": (2304, 4046)}
    for variant, (distances, farthest) in sizes.items():
        rows = coverage([PiAttention(window=8, stride=64, variant=variant).pattern(1)] * 8, context)
        assert (rows[-1].distances, rows[-1].farthest) == (distances, farthest)
        assert [row.paper for row in rows][:4] == [8, 80, 152, 160] and rows[-1].paper == 256
        assert rows[3].farthest > rows[3].paper
    ten = coverage([PiAttention(window=8, stride=64).pattern(1)] * 10, context)
    assert ten[8].distances < context == ten[9].distances == ten[9].gap


@pytest.mark.parametrize("variant", ["single", "multiples", "log"])
def test_what_is_guaranteed_is_reached(variant: str) -> None:
    for window in (1, 2, 3, 8, 17):
        for stride in (1, 2, 7, 17, 40):
            if variant != "single" or stride >= window:
                pattern = PiAttention(window=window, stride=stride, variant=variant, sinks=0).pattern(2)
                for layers, bits in enumerate(reachable([pattern] * 12, 300), 1):
                    limit = guaranteed(pattern, layers, 300)
                    assert limit is not None and bits & (2 << limit) - 1 == (2 << limit) - 1


@pytest.mark.parametrize("coprime", [False, True])
def test_gradients_flow_from_the_distances_that_are_reached_and_no_others(coprime: bool) -> None:
    attention = PiAttention(window=4, stride=11, sinks=0, coprime=coprime)
    model, ids, length = retrofit(plain(), attention), tokens(1, 120), 120
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    model(inputs_embeds=embedded, use_cache=False).logits[0, -1].square().sum().backward()
    moved = embedded.grad[0].abs().sum(-1).flip(0) > 0
    bits = reachable([attention.pattern(6, layer) for layer in range(2)], length)[-1]
    assert moved.tolist() == [bool(bits >> distance & 1) for distance in range(length)]
    assert moved.all() == coprime


def test_nothing_to_cover_is_refused() -> None:
    with pytest.raises(PolicyError, match="give 1 or more"):
        coverage([], 5)
