"""SmolLM2 as a mixture of 16 experts on shards: the same tokens, and logits as near as the precision allows.

What may differ is the order of sums. A logit of size ``s`` goes through ``layers`` layers with sums of at most
``terms`` terms, so at most it changes by about ``layers * terms * eps * s``, and by the root of that number of sums
where errors are independent. In float64 that leaves no near ties: neither the router's choice nor the next token goes
the other way. In float32 they may, so there all experts are chosen and the tokens are given.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tenuto.bench.likelihood import text_of
from tenuto.shards import Expert, RoundRobin, shard
from tenuto.zoo import smollm2
from tenuto.zoo.language import load_language
from tenuto.zoo.mixture import partition

pytestmark = [pytest.mark.smollm2, pytest.mark.usefixtures("one_thread")]
STEPS = 8
PROMPTS = (
    "The capital of France is Paris, and the capital of Italy is",
    "Water boils at",
    "Once upon a time there was a",
    "def add(a, b):",
)
ROOM = 8  # times what independent rounding errors add up to


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


def written(model: Any, given: dict[str, torch.Tensor], cache: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens written greedily ``[batch, STEPS]`` and their logits, which ``generate`` would round to float32."""
    ids, mask, said, logits = given["input_ids"], given["attention_mask"], [], []
    for _ in range(STEPS):
        places = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        with torch.no_grad():
            out = model(ids, attention_mask=mask, position_ids=places, past_key_values=cache, logits_to_keep=1)
        logits.append(out.logits[:, -1])
        said.append(ids := logits[-1].argmax(-1, keepdim=True))
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
    return torch.cat(said, 1), torch.stack(logits, 1)


def norm_in_own_precision(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    """transformers' rounds to float32, whatever the model's precision is."""
    scale: torch.Tensor = norm.weight * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + norm.variance_epsilon)
    return hidden * scale


def sums(model: Any) -> int:
    """Terms added up on the way to a logit: the widest sum of each layer, over all layers."""
    return model.config.num_hidden_layers * max(model.config.hidden_size, model.config.intermediate_size)


def test_in_single_precision_shards_change_what_rounding_may(mixture: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = mixture.model, padded(mixture)
    for block in model.model.layers:
        monkeypatch.setattr(block.mlp.gate, "top_k", block.mlp.gate.num_experts)
    places = (given["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    real = given["attention_mask"].bool()
    with torch.no_grad():
        logits = model(**given, position_ids=places).logits[real]
        limit = ROOM * sums(model) ** 0.5 * torch.finfo(torch.float32).eps * float(logits.abs().max())
        assert 0 < limit < 0.02
        for placement, shards in ((RoundRobin(), 1), (Expert(), 2)):
            with shard(model, placement, shards=shards):
                gap = (model(**given, position_ids=places).logits[real] - logits).abs().max()
            assert float(gap) <= limit, (placement, shards, float(gap), limit)


def test_in_double_precision_shards_change_nothing(mixture: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LlamaRMSNorm, "forward", norm_in_own_precision)
    model, given = deepcopy(mixture.model).double(), padded(mixture)
    said, logits = written(model, given, DynamicCache(config=model.config))
    limit = sums(model) * torch.finfo(torch.float64).eps * float(logits.abs().max())
    assert 0 < limit < 1e-8
    for placement, shards in ((RoundRobin(), 4), (Expert(), 2)):
        with shard(model, placement, shards=shards) as run:
            ids, found = written(model, given, run.cache())
        assert torch.equal(ids, said), (placement, shards)
        assert float((found - logits).abs().max()) <= limit, (placement, shards)
