"""What every attention must satisfy, in the settings that it names in ``trials``."""

from __future__ import annotations

import pytest
import torch
from retrofitted import plain, stir, tokens
from transformers import DynamicCache

from tenuto import catalog
from tenuto.attention import Window, held, load, retrofit
from tenuto.attention.attach import Retrofitted
from tenuto.errors import AttachError, InputError, ModelError, PolicyError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
TEXTS = [text for info in catalog.methods("attention").values() for text in info.cls.trials or (info.name,)]
LONG = 61  # tokens: odd, and longer than any window, chunk or stride above

every = pytest.mark.parametrize("text", TEXTS)


def made(text: str, architecture: str = "llama") -> torch.nn.Module:
    return stir(retrofit(plain(architecture), catalog.parse(text, "attention")))


@torch.no_grad()
def logits(
    model: torch.nn.Module, ids: torch.Tensor, cuts: list[int], mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Logits of a sequence given in pieces of ``cuts`` tokens, with a cache."""
    cache, out, start = DynamicCache(config=model.config), [], 0
    for cut in cuts:
        part = slice(start, start + cut)
        positions = None if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)[:, part]
        seen = None if mask is None else mask[:, : start + cut]
        given = {"attention_mask": seen, "position_ids": positions, "past_key_values": cache}
        out.append(model(ids[:, part], **given).logits)
        start += cut
    assert start == ids.shape[1]
    return torch.cat(out, 1)


@every
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_later_tokens_change_nothing(text: str, architecture: str) -> None:
    model, ids = made(text, architecture), tokens(2, LONG)
    changed = ids.clone()
    changed[:, 40:] = tokens(2, LONG - 40, seed=9)
    with torch.no_grad():
        a, b = model(ids, use_cache=False).logits, model(changed, use_cache=False).logits
    assert torch.allclose(a[:, :40], b[:, :40], atol=1e-6)
    assert not torch.allclose(a[:, 40:], b[:, 40:], atol=1e-2)


@every
@pytest.mark.parametrize(
    "cuts", [[LONG], [1] * LONG, [17, 1, 15, 28], [7, 9, 16, 16, 13]], ids=["once", "steps", "a", "b"]
)
def test_in_pieces_as_at_once(text: str, cuts: list[int]) -> None:
    model, ids = made(text), tokens(2, LONG)
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
    assert (logits(model, ids, cuts) - whole).abs().max() <= 1e-5


@every
@pytest.mark.parametrize("cuts", [[LONG], [1] * LONG, [3, 30, 1, 27]], ids=["once", "steps", "pieces"])
def test_a_padded_row_is_the_row_by_itself(text: str, cuts: list[int]) -> None:
    model, ids = made(text, "qwen2"), tokens(3, LONG)
    padding = [0, 5, 19]
    mask = torch.ones_like(ids)
    for row, count in enumerate(padding):
        ids[row, :count], mask[row, :count] = 0, 0
    found = logits(model, ids, cuts, mask)
    for row, count in enumerate(padding):
        with torch.no_grad():
            alone = model(ids[row : row + 1, count:], use_cache=False).logits
        assert (found[row : row + 1, count:] - alone).abs().max() <= 1e-5


@every
@pytest.mark.parametrize("beams", [1, 3])
def test_generate_with_a_cache_as_without(text: str, beams: int) -> None:
    model, ids = made(text), tokens(2, 21)
    mask = torch.ones_like(ids)
    ids[1, :6], mask[1, :6] = 0, 0
    asked = {"attention_mask": mask, "max_new_tokens": 30, "do_sample": False, "num_beams": beams}
    assert torch.equal(model.generate(ids, **asked), model.generate(ids, use_cache=False, **asked))


@every
def test_a_cache_can_be_used_again(text: str) -> None:
    model, ids = made(text), tokens(2, 30)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        first = model(ids, past_key_values=cache).logits
        cache.reset()
        assert cache.get_seq_length() == 0
        assert torch.equal(model(ids, past_key_values=cache).logits, first)
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([3, 0]))
        after = model(tokens(2, 5, seed=4), past_key_values=cache).logits
        both = torch.cat([ids[[1, 0]], tokens(2, 5, seed=4)], 1)
        assert (after - model(both, use_cache=False).logits[:, 30:]).abs().max() <= 1e-5


@every
def test_saved_and_loaded(text: str, tmp_path) -> None:
    model, ids = made(text), tokens(1, 40)
    model.save_pretrained(tmp_path)
    again = load(tmp_path, catalog.parse(text, "attention"))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)
    with pytest.raises(ModelError, match="was trained with"):
        load(tmp_path, Window(window=77))


@every
@pytest.mark.parametrize("length", [1, 7, 23, LONG])
def test_the_formula_gives_the_bytes_held(text: str, length: int) -> None:
    model, cache = made(text), DynamicCache()
    with torch.no_grad():
        for token in tokens(1, length).split(1, dim=1):
            model(token, past_key_values=cache)
    layers = [module.heads for module in model.modules() if isinstance(module, Retrofitted)]
    said: dict[str, int] = {}
    for layer in layers:
        for tier, size in layer.formula(length, 4).items():
            said[tier] = said.get(tier, 0) + size
    assert held(cache) == said


@every
def test_a_model_keeps_its_outputs_where_the_attention_says_so(text: str) -> None:
    attention, ids = catalog.parse(text, "attention"), tokens(2, LONG)
    model = plain()
    with torch.no_grad():
        before, after = model(ids).logits, retrofit(model, attention)(ids).logits
    assert torch.equal(before, after) == attention.identity


@every
def test_all_parameters_learn(text: str) -> None:
    model = made(text).train()
    model(tokens(2, LONG), labels=tokens(2, LONG), use_cache=False).loss.backward()
    assert all(
        weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters() if weight.requires_grad
    )


@every
def test_assisted_decoding_is_refused_or_right(text: str) -> None:
    model, ids = made(text), tokens(1, 30)
    asked = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    try:
        found = model.generate(ids, prompt_lookup_num_tokens=3, **asked)
    except (AttachError, ValueError) as error:
        assert "crop" in str(error) or "cannot be taken" in str(error)
    else:
        assert torch.equal(found, model.generate(ids, **asked))


def test_what_is_refused() -> None:
    model = plain()
    with pytest.raises(PolicyError, match="Did you mean"):
        catalog.parse("windo", "attention")
    with pytest.raises(PolicyError, match="longer than the model's context"):
        retrofit(model, catalog.parse("window:window=1000", "attention"))
    retrofit(model, catalog.parse("window:window=8", "attention"))
    with pytest.raises(AttachError, match="already"):
        retrofit(model, catalog.parse("window:window=8", "attention"))
    with pytest.raises(AttachError, match="no transformers model"):
        retrofit(torch.nn.Linear(2, 2), catalog.parse("window:window=8", "attention"))
    filled = DynamicCache()
    plain()(tokens(1, 4), past_key_values=filled)
    with pytest.raises(AttachError, match="holds tokens already"):
        model(tokens(1, 4), past_key_values=filled)
    with pytest.raises(InputError, match="gaps"):
        model(tokens(1, 4), position_ids=torch.tensor([[0, 1, 0, 1]]), use_cache=False)
