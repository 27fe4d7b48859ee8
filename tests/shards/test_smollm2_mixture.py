"""SmolLM2 as a mixture of 16 experts on shards: the same tokens, and in float64 the same logits within 1e-5.

Its logits are about 43, so in float32 1e-5 is less than what another order of sums changes. The limit there is what
transformers' eager and SDPA attention differ by on the same input.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tenuto.bench.likelihood import text_of
from tenuto.shards import Expert, RoundRobin, shard
from tenuto.zoo import smollm2
from tenuto.zoo.language import load_language
from tenuto.zoo.mixture import partition

pytestmark = [pytest.mark.smollm2, pytest.mark.usefixtures("one_thread")]
STEPS = 16
PROMPTS = (
    "The capital of France is Paris, and the capital of Italy is",
    "Water boils at",
    "Once upon a time there was a",
    "def add(a, b):",
)


@pytest.fixture(scope="module")
def mixture() -> Any:
    if not smollm2.at_hand():
        pytest.fail("SmolLM2 is not here: run `make test`, or `tenuto models pull smollm2` once.")
    language = load_language("bundled:smollm2", "cpu")
    partition(language.model, text_of(language, 99, 128), experts=16, top_k=8)
    return language


def padded(language: Any) -> dict[str, torch.Tensor]:
    rows = [language.encode(text)[0] for text in PROMPTS]
    width = max(map(len, rows))
    ids = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0)) for row in rows])
    mask = torch.stack([(torch.arange(width) >= width - len(row)).long() for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def written(model: Any, given: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    count = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False}
    out = model.generate(**given, **count, return_dict_in_generate=True, output_logits=True)
    return out.sequences, torch.stack(out.logits, 1)


def between_own_attentions(model: Any, given: dict[str, torch.Tensor], said: torch.Tensor) -> float:
    """The largest difference of a logit, eager against SDPA, over what was written."""
    mask = torch.nn.functional.pad(given["attention_mask"], (0, STEPS), value=1)
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    before, logits = model.config._attn_implementation, []
    for way in ("eager", "sdpa"):
        model.set_attn_implementation(way)
        with torch.no_grad():
            logits.append(
                model(said, attention_mask=mask, position_ids=places, logits_to_keep=STEPS + 1).logits[:, :-1]
            )
    model.set_attn_implementation(before)
    return float((logits[0] - logits[1]).abs().max())


def test_shards_are_as_exact_as_attentions_of_transformers(mixture: Any) -> None:
    model, given = mixture.model, padded(mixture)
    said, logits = written(model, given)
    limit, largest = between_own_attentions(model, given, said), float(logits.abs().max())
    assert largest > 20 and 0 < limit < 1e-2
    for placement, shards in ((RoundRobin(), 1), (Expert(), 2)):
        with shard(model, placement, shards=shards):
            ids, found = written(model, given)
        gap = float((found - logits).abs().max())
        assert torch.equal(ids, said), (placement, shards)
        assert gap <= max(limit, 1e-5), (placement, shards, gap, limit)
        assert gap <= 2e-5 * largest, (placement, shards, gap, largest)


def test_in_double_precision_shards_change_nothing(mixture: Any) -> None:
    model, given = mixture.model.double(), padded(mixture)
    said, logits = written(model, given)
    for placement, shards in ((RoundRobin(), 4), (Expert(), 2)):
        with shard(model, placement, shards=shards):
            ids, found = written(model, given)
        assert torch.equal(ids, said), (placement, shards)
        assert float((found - logits).abs().max()) <= 1e-5, (placement, shards)
    model.float()
