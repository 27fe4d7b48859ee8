"""SemToken's choices: what is merged first, and what is not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tenuto import catalog
from tenuto.errors import PolicyError
from tenuto.prompt.policies.semtoken import SemToken, before, information, lost
from tenuto.prompt.policy import Look
from tenuto.texts.redundant import KINDS, compose

TABLE = torch.randn(256, 24, generator=torch.Generator().manual_seed(0))


def look(ids: torch.Tensor, marks: torch.Tensor | None = None) -> Look:
    states = TABLE[ids]
    return Look(
        ids=ids,
        embeddings=states,
        states=states,
        marks=torch.zeros(len(ids)) if marks is None else marks,
        surprise=None,
        layers=30,
        vocabulary=256,
    )


def letters(kind: str, tokens: int) -> torch.Tensor:
    """A text of this kind, one token a byte."""
    return torch.tensor(list("".join(compose(kind, 0)[0]).encode())[:tokens])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ratio", [0.75, 0.5, 0.33])
def test_the_ratio_is_met_on_every_kind_of_text(kind: str, ratio: float) -> None:
    ids = letters(kind, 1500)
    spans = SemToken(ratio=ratio, layer=0).choose(look(ids))
    assert abs(len(spans) - ratio * 1500) <= 1
    assert int(spans.sizes.sum()) == 1500
    assert torch.equal(spans.starts[1:], spans.ends[:-1] + 1)


def test_what_was_read_before_is_merged_first() -> None:
    page = torch.randint(0, 250, (120,), generator=torch.Generator().manual_seed(1))
    other = torch.randint(0, 250, (120,), generator=torch.Generator().manual_seed(2))
    spans = SemToken(ratio=0.75, layer=0).choose(look(torch.cat([page, other, page, other[:60]])))
    first = int((spans.sizes[spans.ends < 240] > 1).sum())
    again = int((spans.sizes[(spans.starts >= 240) & (spans.ends < 360)] > 1).sum())
    assert first <= 2
    assert again >= 5


def test_what_changes_in_a_wording_stays() -> None:
    """Twelve letters of one wording; after the second, what stays by itself is what a letter does not share."""
    wording = torch.randint(0, 200, (60,), generator=torch.Generator().manual_seed(1))
    letters = wording.repeat(12, 1)
    letters[:, 30] = torch.arange(201, 213)
    spans = SemToken(ratio=0.3, layer=0).choose(look(letters.flatten()))
    heaviest = spans.weight
    assert heaviest is not None
    for letter in range(2, 11):
        at = 60 * letter + 30
        assert heaviest[at] > 20 * heaviest[at - 10 : at].max()
        (mine,) = ((spans.starts <= at) & (at <= spans.ends)).nonzero().flatten().tolist()
        kept = heaviest[spans.starts[mine] : spans.ends[mine] + 1]
        assert float(kept.max() / kept.sum()) > 0.8


def test_both_ends_and_marked_tokens_stay() -> None:
    ids = torch.randint(0, 250, (300,), generator=torch.Generator().manual_seed(1))
    marks = torch.zeros(300)
    marks[100:130] = 4.0
    spans = SemToken(ratio=0.5, layer=0, sinks=4, recent=32).choose(look(ids, marks))
    alone = set(spans.ends[spans.sizes == 1].tolist())
    assert set(range(4)) | set(range(268, 300)) <= alone
    assert len(set(range(100, 130)) & alone) >= 29
    assert len(set(range(140, 170)) & alone) < 20
    unmarked = SemToken(ratio=0.5, layer=0, protect=0).choose(look(ids, marks))
    assert len(set(range(100, 130)) & set(unmarked.ends[unmarked.sizes == 1].tolist())) < 29


def test_where_too_much_is_protected_the_ratio_wins() -> None:
    ids = torch.randint(0, 250, (60,), generator=torch.Generator().manual_seed(1))
    assert len(SemToken(ratio=0.2, layer=0).choose(look(ids, torch.full((60,), 4.0)))) == 12


def test_information_is_that_of_the_n_grams_before() -> None:
    told = information([7, 8, 7, 8, 7, 9], 2, 16) * math.log(16)
    first = (1 * 0 + 1 / 16) / 2  # 8 after one 7: half of the mass is for what was not seen
    assert float(told[0]) == pytest.approx(math.log(16), rel=1e-5)
    assert float(told[1]) == pytest.approx(-math.log(first), rel=1e-5)
    alone = (1 + 2 / 16) / (3 + 2)  # 8 is one of three tokens so far, two of them different
    after = (1 + 1 * alone) / (1 + 1)  # and the only one that followed a 7
    assert float(told[3]) == pytest.approx(-math.log(after), rel=1e-5)


def test_information_falls_with_every_repetition_and_not_before() -> None:
    page = torch.randint(0, 250, (50,), generator=torch.Generator().manual_seed(3)).tolist()
    told = information(page * 3, 8, 256)
    assert float(told[:50].mean()) > 0.8
    assert float(told[58:100].max()) < 0.1
    assert float(told[108:].mean()) < float(told[58:100].mean())
    assert torch.equal(information((page * 3)[:70], 8, 256), told[:70])
    for tokens in (0, 1, 2, 200):
        assert information([5] * tokens, 3, 256).shape == (tokens,)
    assert float(information([5] * 200, 3, 256)[-1]) < 0.01


@pytest.mark.parametrize(
    ("fingerprint", "where"), [("states", "states"), ("embeddings", "embeddings"), ("sentences", "meaning")]
)
def test_coherence_joins_tokens_with_neighbours_of_like_fingerprints(fingerprint: str, where: str) -> None:
    """Every third token was read before and is like the one behind it, or like the one before it."""
    ids = torch.randint(0, 250, (60,), generator=torch.Generator().manual_seed(5))
    new = torch.arange(60) % 3 != 1
    ids[~new] = 255
    for shift in (-1, 1):
        seen = look(ids)
        states = TABLE[ids].clone()
        states[~new] = states[(torch.arange(60)[~new] + shift).clamp(max=59)]
        method = SemToken(ratio=0.7, layer=0, coherence=1.0, fingerprint=fingerprint, order=0, sinks=0, recent=0)
        spans = method.choose(replace(seen, **{where: states}))
        pairs = [int(start) for start, size in zip(spans.starts, spans.sizes, strict=True) if size == 2]
        assert sum(at % 3 == (1 if shift == 1 else 0) for at in pairs) > 0.8 * len(pairs) > 8


def test_a_span_costs_all_but_its_heaviest_token() -> None:
    weight = torch.tensor([1.0, 3.0, 2.0, 0.5])
    table = lost(weight, 3)
    assert table.tolist() == [[0, 0, 0, 0], [1, 2, 0.5, math.inf], [3, 2.5, math.inf, math.inf]]


def test_the_weight_before_a_token() -> None:
    assert before(torch.tensor([4.0, 2.0, 6.0, 1.0]), 2).tolist() == [1.0, 4.0, 3.0, 4.0]
    assert before(torch.tensor([4.0]), 2).tolist() == [1.0]


def test_settings_as_text() -> None:
    assert catalog.parse("semtoken:ratio=0.33,layer=2", "prompt") == SemToken(ratio=0.33, layer=2)
    assert catalog.parse("semtoken", "prompt") == SemToken()
    assert str(SemToken(ratio=0.33, sinks=2)) == "semtoken:ratio=0.33,sinks=2"
    for wrong, told in (
        ("ratoi=1", "Did you mean 'ratio'"),
        ("layer=x", "give a whole number"),
        ("ratio=0", "more than 0"),
    ):
        with pytest.raises(PolicyError, match=told):
            catalog.parse(f"semtoken:{wrong}", "prompt")
    with pytest.raises(PolicyError, match="most is 2 or more"):
        SemToken(most=1)
