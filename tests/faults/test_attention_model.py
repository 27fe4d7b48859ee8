"""A retrofitted model is a model of its own: its caches are copied, its folder keeps all, and what training asks for is
given."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from retrofitted import plain, stir, tokens
from transformers import DynamicCache, GenerationConfig

from tenuto import catalog
from tenuto.attention import keep_far, load, retrofit
from tenuto.errors import AttachError, InputError, ModelError

pytestmark = pytest.mark.usefixtures("one_thread")
KINDS = [
    "window:window=8,sinks=2",
    "mka:window=9,sinks=2,chunk=4,recall=2",
    "fastmka:horizons=2,shortest=2,longest=40,bottleneck=8",
    "short_conv:kernel=3+mka:window=8,sinks=1,chunk=4,recall=2,horizons=0",
    "pi:window=8,stride=3,sinks=2",
    "pi:window=6,stride=4,last=3,coprime=true,sinks=2",
]
every = pytest.mark.parametrize("text", KINDS)


def made(text: str, architecture: str = "llama") -> Any:
    return stir(retrofit(plain(architecture), catalog.parse(text, "attention")))


@every
def test_a_prompts_cache_is_copied_and_both_go_on(text: str) -> None:
    model, prompt, cache = made(text), tokens(2, 30), DynamicCache()
    questions = [tokens(2, 7, seed) for seed in (1, 2)]
    for inference in (False, True):
        with torch.inference_mode(inference):
            model(prompt, past_key_values=(cache := DynamicCache()))
        for question in questions:  # two questions on one prompt, and the prompt's own cache stays as it was
            mine = copy.deepcopy(cache)
            with torch.no_grad():
                got = [model(part, past_key_values=mine).logits for part in question.split([1, 5, 1], 1)]
                want = model(torch.cat([prompt, question], 1), use_cache=False).logits[:, -7:]
            assert (torch.cat(got, 1) - want).abs().max() <= 1e-5
            assert cache.get_seq_length() == 30


def test_copies_of_a_cache_whose_chunks_are_in_a_store_share_pages(tmp_path: Path) -> None:
    model, prompt, cache = made(KINDS[1]), tokens(1, 40), DynamicCache()
    keep_far(model, f"disk:{tmp_path}/far")
    with torch.no_grad():
        model(prompt, past_key_values=cache)
        for seed in (1, 2):
            question, mine = tokens(1, 20, seed), copy.deepcopy(cache)
            got = model(question, past_key_values=mine).logits
            want = model(torch.cat([prompt, question], 1), use_cache=False).logits[:, -20:]
            assert (got - want).abs().max() <= 1e-5


@every
def test_a_copy_of_the_model_computes_with_its_own_weights(text: str) -> None:
    model, ids = made(text), tokens(1, 20)
    mine = copy.deepcopy(model)
    with torch.no_grad():
        before = model(ids).logits
        for weight in mine.parameters():
            weight.mul_(0.5)
        assert torch.equal(model(ids).logits, before) and not torch.allclose(mine(ids).logits, before)


def test_the_folder_keeps_how_it_writes(tmp_path: Path) -> None:
    model = made(KINDS[0])
    model.generation_config = GenerationConfig(eos_token_id=[7, 9], repetition_penalty=1.5, max_new_tokens=11)
    for size in ("10MB", "20KB"):  # in one file, and in several
        model.save_pretrained(tmp_path / size, max_shard_size=size)
        again = load(tmp_path / size)
        assert again.generation_config.eos_token_id == [7, 9]
        assert again.generation_config.repetition_penalty == 1.5
        ids = tokens(1, 12)
        with torch.no_grad():
            assert torch.equal(model(ids).logits, again(ids).logits)
        assert torch.equal(model.generate(ids), again.generate(ids))
    assert len(list((tmp_path / "20KB").glob("*.safetensors"))) > 1


def test_tied_weights_another_dtype_and_what_lies_beside(tmp_path: Path) -> None:
    model, ids = plain(), tokens(1, 12)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    retrofit(model, catalog.parse(KINDS[0], "attention")).save_pretrained(tmp_path)
    again = load(tmp_path, dtype=torch.bfloat16)
    assert again.lm_head.weight.data_ptr() == again.model.embed_tokens.weight.data_ptr()
    assert {weight.dtype for weight in again.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        want = model(ids).logits
        assert (again(ids).logits - want).abs().max() <= 0.05 * want.abs().max()  # 8 bits, through two layers
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="adapter"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors"])
def test_a_damaged_folder_is_one_line(name: str, tmp_path: Path) -> None:
    made(KINDS[0]).save_pretrained(tmp_path)
    (tmp_path / name).write_text("{")
    with pytest.raises(ModelError) as found:
        load(tmp_path)
    assert name.split(".")[0].split("_")[0] in str(found.value) or "weights" in str(found.value)
    assert "\n" not in str(found.value)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../a.safetensors"}}))
    (tmp_path / "config.json").write_text(made(KINDS[0]).config.to_json_string())
    with pytest.raises(ModelError, match="outside"):
        load(tmp_path)


def test_two_models_of_one_configuration_do_not_meet() -> None:
    model = plain()
    other = type(model)(model.config).eval()
    ids, mask = tokens(2, 12), torch.ones(2, 12, dtype=torch.int64)
    mask[0, :4] = 0
    with torch.no_grad():
        before = other(ids, attention_mask=mask).logits
        retrofit(model, catalog.parse(KINDS[0], "attention"))
        assert torch.equal(other(ids, attention_mask=mask).logits, before)
    assert other.config._attn_implementation == "sdpa" and not vars(other.config).get("tenuto_attention")


@every
def test_dropout_of_attention_weights_in_training(text: str) -> None:
    model, ids = plain(), tokens(1, 30)
    for block in model.model.layers:
        block.self_attn.attention_dropout = 0.4
    model = stir(retrofit(model, catalog.parse(text, "attention")))
    layer, states = model.model.layers[0].self_attn, model.model.embed_tokens(ids).detach()
    with torch.no_grad():
        sure = layer(states)[0]
        assert torch.equal(layer(states)[0], sure), "not in evaluation"
        layer.train()
        torch.manual_seed(0)
        runs = torch.stack([layer(states)[0] for _ in range(200)])
    spread = runs.std(0)
    assert (spread.mean(-1) > 0).all(), "weights of every query are dropped"
    # the mean of 200 is off by spread / 14: over all numbers, of the order of 1 of these on average
    assert ((runs.mean(0) - sure).abs() / (spread / 200**0.5 + 1e-9)).mean() < 2
    model.train()(ids, labels=ids, use_cache=False).loss.backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters() if weight.grad is not None)


def test_the_plain_attentions_dropout_is_the_models_own() -> None:
    model, ids = plain(), tokens(1, 20)
    for block in model.model.layers:
        block.self_attn.attention_dropout = 0.3
    found = []
    for one in (model, retrofit(copy.deepcopy(model), catalog.parse("short_conv", "attention"))):
        torch.manual_seed(3)
        with torch.no_grad():
            found.append(one.train()(ids, use_cache=False).logits)
    assert torch.equal(*found)


@pytest.mark.parametrize("text", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_steps_are_as_exact_as_the_models_dtype(text: str, dtype: torch.dtype) -> None:
    model, ids, cache = made(text).to(dtype), tokens(2, 40), DynamicCache()
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        steps = torch.cat([model(token, past_key_values=cache).logits for token in ids.split(1, 1)], 1)
    assert steps.dtype == dtype
    room = {torch.float64: 1e-11, torch.bfloat16: 0.25}[dtype]  # of logits of about 1; two layers of 48 channels
    assert (steps - whole).abs().max() <= room * max(1.0, float(whole.abs().max()))


@every
def test_checkpoints_of_gradients_and_autocast(text: str) -> None:
    model, ids = made(text).train(), tokens(2, 30)
    model(ids, labels=ids, use_cache=False).loss.backward()
    want = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    model.activation_checkpointing_enable({"use_reentrant": False})
    model(ids, labels=ids, use_cache=False).loss.backward()
    for name, grad in want.items():
        assert torch.allclose(model.get_parameter(name).grad, grad, atol=1e-6)
    model.activation_checkpointing_disable()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model.eval()(ids, use_cache=False).logits.float()
        cache = DynamicCache()
        steps = torch.cat([model(token, past_key_values=cache).logits for token in ids.split(1, 1)], 1).float()
    assert torch.isfinite(found).all() and (steps - found).abs().max() <= 0.25 * max(1.0, float(found.abs().max()))


@every
def test_attention_weights_are_refused_and_hidden_states_given(text: str) -> None:
    model, ids = made(text), tokens(1, 10)
    assert len(model(ids, output_hidden_states=True).hidden_states) == 3
    with pytest.raises(AttachError, match="output_attentions"):
        model(ids, output_attentions=True)


@every
def test_masks_and_positions_that_would_be_ignored(text: str) -> None:
    model, ids = made(text), tokens(2, 12)
    ones = torch.ones(2, 12, dtype=torch.int64)
    left, right, hole = ones.clone(), ones.clone(), ones.clone()
    left[0, :3], right[0, -3:], hole[0, 4:6] = 0, 0, 0

    def cached(mask: torch.Tensor | None, **more: Any) -> DynamicCache:
        cache = DynamicCache()
        model(ids, attention_mask=mask, past_key_values=cache, **more)
        return cache

    def step(cache: DynamicCache, mask: torch.Tensor | None, **more: Any) -> None:
        seen = None if mask is None else torch.cat([mask, ones[:, :1]], 1)
        model(ids[:, :1], attention_mask=seen, past_key_values=cache, **more)

    with torch.no_grad():
        assert (model(ids, attention_mask=right).logits[0, :9] - model(ids).logits[0, :9]).abs().max() <= 1e-5
        with pytest.raises(InputError, match="Pad on the left"):
            model(ids, attention_mask=hole)
        with pytest.raises(InputError, match="Pad on the left"):
            step(cached(right), right)
        for read, then in ((ones, left), (left, ones), (left, None)):
            with pytest.raises(InputError, match="other tokens than it did"):
                step(cached(read), then)
        with pytest.raises(InputError, match="Positions"):
            step(cached(None), None, position_ids=torch.full((2, 1), 50))
        with pytest.raises(InputError, match="Positions"):
            model(ids, attention_mask=ones, position_ids=torch.arange(12)[None] * 2)
        far = torch.arange(12)[None] + 7  # a shift changes no distance
        cache = cached(None, position_ids=far)
        step(cache, None, position_ids=far[:, -1:] + 1)
        step(cached(left), left)


@every
def test_a_row_of_padding_alone_is_finite(text: str) -> None:
    model, ids = made(text), tokens(2, 12)
    mask = torch.ones_like(ids)
    mask[0] = 0
    asked = {"max_new_tokens": 6, "do_sample": False}
    found = model.generate(ids, attention_mask=mask, output_logits=True, return_dict_in_generate=True, **asked)
    assert all(torch.isfinite(logits).all() for logits in found.logits)
    assert torch.equal(found.sequences[1:], model.generate(ids[1:], attention_mask=mask[1:], **asked))


def test_caches_of_other_kinds_are_refused() -> None:
    model, ids = made(KINDS[0]), tokens(1, 8)
    for kind in ("static", "offloaded"):
        with pytest.raises(AttachError, match="Give an empty DynamicCache"):
            model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, cache_implementation=kind)
