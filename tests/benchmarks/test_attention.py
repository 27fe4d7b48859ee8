"""The recipe's attentions exist, whatever the size."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tenuto.train.minilm import SIZES, canonical

RECIPE = Path(__file__).parents[2] / "benchmarks" / "attention.py"


@pytest.mark.parametrize("size", ["tiny", "cpu", "gpu"])
def test_every_attention_of_the_recipe_is_one(size: str) -> None:
    spec = importlib.util.spec_from_file_location("recipe_attention", RECIPE)
    assert spec and spec.loader
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    names = [canonical(text) for text in recipe.attentions(SIZES[size].context)]
    assert len(set(names)) == len(names) and {"mha", "mla", "short_conv", "short_conv+mqa"} <= set(names)
