"""Differential law: a retrofitted model gives a text in pieces what it gives it at once, however its cache is used."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from retrofitted import plain, stir
from test_attention_model import KINDS
from transformers import DynamicCache
from uses_drawn import drawn, uses

from tenuto import catalog
from tenuto.attention import retrofit
from tenuto.testing.uses import Use, law_use

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = (*KINDS, "short_conv+fastmka:horizons=2,shortest=2,longest=9,bottleneck=4", "pi:window=4,stride=3,variant=log")
MODELS = {text: stir(retrofit(plain(), catalog.parse(text, "attention"))) for text in TEXTS}


@drawn
@given(use=uses, text=st.sampled_from(TEXTS))
@example(Use(padding=(0, 5), calls=(("read", 8), ("crop", 6), ("read", 3), ("steps", 9))), TEXTS[4])
@example(Use(padding=(4, 1), calls=(("read", 12), ("copy", 1), ("inference", 9), ("steps", 3))), TEXTS[1])
@example(Use(padding=(4,), right=True, calls=(("read", 8), ("copy", 1), ("reset", 1))), TEXTS[3])
def test_whatever_is_done_to_the_cache(use: Use, text: str) -> None:
    law_use(use, MODELS[text], MODELS[text], DynamicCache)
