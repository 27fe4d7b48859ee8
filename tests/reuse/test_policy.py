"""Assemblers as text."""

from __future__ import annotations

import pytest

from tenuto import catalog
from tenuto.errors import PolicyError
from tenuto.reuse.policies.cacheblend import CacheBlend
from tenuto.reuse.policies.cachecraft import CacheCraft
from tenuto.reuse.policies.concatenate import Concatenate
from tenuto.reuse.policies.full import FullRecompute
from tenuto.reuse.policy import Assembler

GIVEN: dict[str, Assembler] = {
    "full": FullRecompute(),
    "concatenate": Concatenate(),
    "concatenate:rotate=false": Concatenate(rotate=False),
    "cacheblend:recompute=0.3,check=2": CacheBlend(recompute=0.3, check=2),
    "cachecraft:overhead=0.05": CacheCraft(overhead=0.05),
}


@pytest.mark.parametrize("given", GIVEN)
def test_text_and_back(given: str) -> None:
    assert catalog.parse(given, "reuse") == GIVEN[given]
    assert catalog.text(GIVEN[given]) == given


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("cachblend", "Did you mean 'cacheblend'"),
        ("cacheblend:recomput=0.1", "Did you mean 'recompute'"),
        ("cacheblend:check=one", "give a whole number"),
        ("concatenate:rotate=2", "give true or false"),
        ("cacheblend:check=1,check=2", "once"),
        ("cacheblend:recompute=2", "from 0 to 1"),
    ],
)
def test_mistakes_are_told(given: str, words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        catalog.parse(given, "reuse")
