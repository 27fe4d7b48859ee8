"""SemToken's choices: what is merged first, and what is not."""

from __future__ import annotations

import pytest
import torch

from tenuto.errors import PolicyError
from tenuto.eval.tasks.redundant import KINDS, compose
from tenuto.prompt.method import Look
from tenuto.prompt.semtoken import SemToken, novelty, rarity

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


def test_novelty_sees_an_earlier_place_and_not_a_later_one() -> None:
    page = torch.randint(0, 250, (50,), generator=torch.Generator().manual_seed(3))
    new = novelty(TABLE[torch.cat([page, page])], 3)
    assert float(new[:50].mean()) > 0.5
    assert float(new[53:].max()) < 1e-5
    for tokens in (1, 2, 3, 1030):
        found = novelty(TABLE[torch.zeros(tokens, dtype=torch.int64)], 3)
        assert torch.isfinite(found).all()
        assert found.shape == (tokens,)


def test_novelty_in_blocks_is_novelty() -> None:
    states = TABLE[torch.randint(0, 250, (1300,), generator=torch.Generator().manual_seed(4))]
    centred = torch.nn.functional.normalize(states - states.mean(0), dim=-1)
    alike = (centred @ centred.T).clamp(min=0)
    for at in (0, 2, 1023, 1024, 1025, 1299):
        best = max(
            (float(alike[at, j] * sum(alike[at - b, j - b] for b in (1, 2, 3) if j >= b) / 3) for j in range(at)),
            default=0.0,
        )
        assert float(novelty(states, 3)[at]) == pytest.approx(1 - best, abs=1e-4)


def test_rarity() -> None:
    rare = rarity(torch.tensor([5, 5, 5, 9]))
    assert float(rare[3]) == pytest.approx(1.0)
    assert 0 < float(rare[0]) < 0.3
    assert float(rarity(torch.tensor([5, 5])).max()) == 0.0


def test_settings_as_text() -> None:
    assert SemToken.parse("ratio=0.33,layer=2") == SemToken(ratio=0.33, layer=2)
    assert SemToken.parse("") == SemToken()
    assert str(SemToken(ratio=0.33, sinks=2)) == "semtoken:ratio=0.33,sinks=2"
    for wrong, told in (("ratoi=1", "Did you mean 'ratio'"), ("layer=x", "give a number"), ("ratio=0", "more than 0")):
        with pytest.raises(PolicyError, match=told):
            SemToken.parse(wrong)
    with pytest.raises(PolicyError, match="most is 2 or more"):
        SemToken(most=1)
