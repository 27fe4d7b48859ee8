"""A sharded cache is DynamicCache: every placement, architecture and number of shards, rows padded on the left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures_kv import MODELS
from transformers import DynamicCache

from tenuto import catalog
from tenuto.errors import AttachError, InputError
from tenuto.shards import Expert, RoundRobin, shard
from tenuto.testing.kv import TOLERANCE, TinyLM, follow, tokens

pytestmark = pytest.mark.usefixtures("one_thread")
MOE = ("olmoe", "mixtral", "qwen3_moe")
METHODS = [
    catalog.parse(text, "shards")
    for info in catalog.methods("shards").values()
    for text in info.cls.trials or (info.name,)
    if "+" not in text
]
PLACEMENTS = list(dict.fromkeys(part for method in METHODS if (part := method.compose().placement) is not None))


def padded(rows: int = 4, width: int = 41) -> dict[str, torch.Tensor]:
    ids, mask = tokens(width, rows=rows), torch.ones(rows, width, dtype=torch.int64)
    for row in range(rows):
        ids[row, : 7 * row], mask[row, : 7 * row] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def written(model: Any, given: dict[str, torch.Tensor], count: int = 64, **options: Any) -> tuple[Any, Any]:
    out = model.generate(
        **given, max_new_tokens=count, do_sample=False, return_dict_in_generate=True, output_logits=True, **options
    )
    return out.sequences, torch.stack(out.logits)


def mild(name: str) -> Any:
    """A tiny model with logits of about 4. (At the builders' weights they are 8, and transformers' own eager and SDPA
    attention differ by 1e-5 to 3e-5 already.)"""
    model = MODELS[name]()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.5 if weight.dim() > 1 else 1)
    return model


@pytest.fixture(scope="module", params=MOE)
def moe(request: pytest.FixtureRequest) -> tuple[Any, Any, Any]:
    model = mild(request.param)
    return model, *written(model, padded())


CASES = [(RoundRobin(page=4), 1), (RoundRobin(page=4), 2), (Expert(page=4), 2), *((each, 4) for each in PLACEMENTS)]


@pytest.mark.slow
@pytest.mark.parametrize(("placement", "shards"), CASES)
def test_generate_is_exact(moe: tuple[Any, Any, Any], placement: Any, shards: int) -> None:
    model, said, logits = moe
    with shard(model, placement, shards=shards) as run:
        ids, found = written(model, padded())
        facts = run.summary()
    assert torch.equal(ids, said)
    assert (found - logits).abs().max() <= TOLERANCE
    assert facts["tokens_read"] == facts["tokens_held"] > 0 and facts["dropped_mass"] == 0
    assert facts["bytes_sent"] == 0, "one process sends nothing"
    held = [facts["bytes_by_shard"][s] for s in range(shards)]
    rows, layers, each = 4, 3, 2 * 2 * 16 * 4
    assert sum(held) == facts["bytes_held"] >= facts["bytes_full"]
    if isinstance(placement, RoundRobin):
        assert all(abs(b - facts["bytes_full"] / shards) <= rows * layers * 4 * each for b in held)
    if isinstance(placement, Expert):
        assert facts["balance"] <= 1.25 + shards / 90, "the cap holds, but for rounding"


@pytest.mark.slow
@pytest.mark.parametrize("placement", PLACEMENTS, ids=lambda p: type(p).__name__)
def test_turns_chunks_beams_and_crops(placement: Any) -> None:
    model = mild("olmoe")
    prompt, steps = tokens(50, rows=2), tokens(10, 1, rows=2)
    plain = DynamicCache(config=model.config)
    wanted = [follow(model, plain, prompt, steps), follow(model, plain, tokens(13, 2, rows=2), steps)]
    with shard(model, placement, shards=4) as run:
        cache = run.cache()
        found = [follow(model, cache, prompt, steps), follow(model, cache, tokens(13, 2, rows=2), steps)]
    for got, want in zip(found, wanted, strict=True):
        assert (got - want).abs().max() <= TOLERANCE
    one = {"input_ids": torch.cat([tokens(20)] * 3, 1), "attention_mask": torch.ones(1, 60, dtype=torch.int64)}
    ways: list[dict[str, Any]] = [{"num_beams": 3}, {"prompt_lookup_num_tokens": 4}, {"prefill_chunk_size": 7}]
    for way in ways:
        said = model.generate(**one, max_new_tokens=24, do_sample=False, **way)
        with shard(model, placement, shards=4):
            assert torch.equal(model.generate(**one, max_new_tokens=24, do_sample=False, **way), said), way


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma3", "phi3"])
def test_dense_models_and_layers_that_slide(name: str) -> None:
    model = mild(name)
    said, logits = written(model, padded(), 24)
    for placement in (RoundRobin(page=4), Expert(page=4)):  # no router: experts fall back to round robin
        with shard(model, placement, shards=2):
            ids, found = written(model, padded(), 24)
        assert torch.equal(ids, said) and (found - logits).abs().max() <= TOLERANCE


def test_past_matters_and_the_future_does_not() -> None:
    model, ids = mild("olmoe"), tokens(40)
    with shard(model, Expert(page=4), shards=4) as run:
        logits = model(ids).logits
        other = ids.clone()
        other[:, 30:] = 5
        assert torch.equal(model(other).logits[:, :30], logits[:, :30])
        swapped = ids.clone()
        swapped[0, [3, 11]] = ids[0, [11, 3]]
        follow_on = [model(x, past_key_values=run.cache()).logits[:, -1] for x in (ids, swapped)]
        assert (follow_on[0] - follow_on[1]).abs().max() > 1e-3


def test_shards_without_pages() -> None:
    model = mild("llama")
    wanted = follow(model, DynamicCache(config=model.config), tokens(5), tokens(3, 1))
    with shard(model, RoundRobin(page=64), shards=8) as run:
        assert (follow(model, run.cache(), tokens(5), tokens(3, 1)) - wanted).abs().max() <= TOLERANCE
        assert [run.summary()["bytes_by_shard"][s] > 0 for s in range(8)] == [True] + [False] * 7


def test_what_cannot_be_is_said() -> None:
    model, other = TinyLM(), TinyLM(seed=1)
    with shard(model, RoundRobin(), shards=2) as run, shard(other, RoundRobin(), shards=2) as second:
        with pytest.raises(AttachError, match="another model"):
            model(tokens(4), past_key_values=second.cache())
        with pytest.raises(AttachError, match="DynamicCache was passed"):
            model(tokens(4), past_key_values=DynamicCache())
        cache = run.cache()
        model(tokens(4, rows=2), past_key_values=cache)
        with pytest.raises(AttachError, match="holds 2 rows"):
            model(tokens(1), past_key_values=cache)
        with pytest.raises(AttachError, match="attached already"):
            with shard(model, RoundRobin()):
                pass
        with pytest.raises(InputError, match="at most 4"):
            cache.crop(-5)
    with shard(model, RoundRobin(), shards=2):
        with pytest.raises(AttachError, match="another `with"):
            model(tokens(1, rows=2), past_key_values=cache)
    with pytest.raises(InputError, match="multiple of the ranks"):
        with shard(model, RoundRobin(), shards=0):
            pass
    assert model(tokens(4)).past_key_values.__class__ is DynamicCache
