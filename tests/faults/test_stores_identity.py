"""What a page is called covers all that its numbers depend on: whatever else they depend on finds nothing."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

import tenuto
from tenuto.calibration import Profile, fingerprint, fits
from tenuto.errors import AttachError
from tenuto.identity import Identity
from tenuto.kv.attach import AttachedRun
from tenuto.testing.kv import TinyLM, tokens

pytestmark = pytest.mark.usefixtures("one_thread")
ALL = tenuto.MemoryBudget.keep(1.0)
IDS = tokens(60)


def mark(model: Any) -> str:
    return Identity(model.model).mark()


def plain() -> Any:
    return TinyLM().eval()


def settled(**changes: Any) -> Any:
    model = plain()
    config = copy.deepcopy(model.config)
    for name, value in changes.items():
        setattr(config, name, value)
    other = LlamaForCausalLM(config).eval()
    other.load_state_dict(model.state_dict())
    return other


def bias_of(model: Any) -> Any:
    model.model.layers[1].mlp.act_fn = torch.nn.GELU()
    return model


def buffered(model: Any) -> Any:
    model.model.rotary_emb.inv_freq.mul_(1.5)
    return model


def one_value(model: Any) -> Any:
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[3, 5] += 1e-6
    return model


OTHERS: dict[str, Callable[[], Any]] = {
    "rope": lambda: settled(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}),
    "eps": lambda: settled(rms_norm_eps=0.05),
    "activation module": lambda: bias_of(plain()),
    "buffer": lambda: buffered(plain()),
    "one value": lambda: one_value(plain()),
    "bfloat16 and back": lambda: plain().bfloat16().float(),
    "float64": lambda: plain().double(),
    "weights of a layer swapped": lambda: swapped(plain()),
}


def swapped(model: Any) -> Any:
    one, other = (layer.self_attn for layer in model.model.layers[:2])
    one.v_proj, other.v_proj = other.v_proj, one.v_proj
    return model


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_another_model_has_another_name(make: Callable[[], Any]) -> None:
    assert mark(make()) != mark(plain())


def test_what_no_forward_pass_reads_is_not_in_the_name() -> None:
    before = mark(plain())
    assert mark(settled(name_or_path="elsewhere", eos_token_id=7, pad_token_id=3)) == before
    with tenuto.attach(model := plain(), tenuto.Knorm(), budget=ALL):
        assert mark(model) == before


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_bit_of_any_weight_is_in_the_name(data: st.DataObject) -> None:
    model = plain()
    identity = Identity(model.model)
    before = identity.mark()
    name, weight = data.draw(st.sampled_from(sorted(model.model.named_parameters())))
    at, bit = data.draw(st.integers(0, weight.numel() - 1)), data.draw(st.integers(0, 31))
    with torch.no_grad():
        weight.view(torch.int32).view(-1)[at] ^= 1 << bit if bit < 31 else -(1 << 31)
    assert identity.mark() != before != mark(model), name
    with torch.no_grad():
        weight.view(torch.int32).view(-1)[at] ^= 1 << bit if bit < 31 else -(1 << 31)
    assert identity.mark() == before == mark(model)


def keeps(run: AttachedRun, store: tenuto.PrefixStore, **options: Any) -> int:
    """Tokens that are stored after a prompt was read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        run.model(IDS, **options)
        store.flush()
    return sum(len(level.tier.keys()) for level in store.levels)


def test_weights_changed_while_attached_are_another_model_and_do_not_poison_the_old_name() -> None:
    model = plain()
    with (
        tenuto.PrefixStore("host:", page=8) as store,
        tenuto.attach(model, tenuto.Knorm(), budget=ALL, store=store) as run,
    ):
        run.model(IDS[:, :8])
        store.flush()
        for change in (lambda w: w.mul_(1.5), lambda w: w.data.mul_(2)):
            before = run.stored(IDS)
            with torch.no_grad():
                change(model.model.layers[0].self_attn.k_proj.weight)
            assert before and not run.stored(IDS)
            run.model(IDS[:, :8])
            store.flush()
            assert run.stored(IDS) == 8


def test_a_model_that_changes_between_two_chunks_keeps_neither() -> None:
    model = plain()
    with (
        tenuto.PrefixStore("host:", page=8) as store,
        tenuto.attach(model, tenuto.Knorm(), budget=ALL, store=store) as run,
    ):
        cache = run.cache()
        with run.prefill():
            model(IDS[:, :30], past_key_values=cache)
            with torch.no_grad():
                model.model.layers[0].self_attn.k_proj.weight.mul_(1.5)
            model(IDS[:, 30:], past_key_values=cache)
        store.flush()
        assert not store.levels[0].tier.keys()


def hole() -> dict[str, Any]:
    mask = torch.ones_like(IDS)
    mask[0, 20] = 0
    return {"attention_mask": mask}


def padded() -> dict[str, Any]:
    mask = torch.ones_like(IDS)
    mask[0, :10] = 0
    return {"attention_mask": mask}


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, 7),
        ({"attention_mask": torch.ones_like(IDS)}, 7),
        (hole(), 0),
        (padded(), 0),
        (padded() | {"position_ids": (padded()["attention_mask"].cumsum(-1) - 1).clamp(min=0)}, 6),
        ({"position_ids": torch.arange(60)[None] + 1}, 0),
        ({"position_ids": torch.arange(60)[None] * 2}, 0),
    ],
    ids=["plain", "mask of ones", "hole", "padded", "padded with positions", "shifted", "stretched"],
)
def test_only_prompts_from_position_0_without_gaps_are_kept(options: dict[str, Any], kept: int) -> None:
    with (
        tenuto.PrefixStore("host:", page=8) as store,
        tenuto.attach(plain(), tenuto.Knorm(), budget=ALL, store=store) as run,
    ):
        assert keeps(run, store, **options) == kept


def test_under_autocast_nothing_is_kept_or_loaded() -> None:
    with (
        tenuto.PrefixStore("host:", page=8) as store,
        tenuto.attach(plain(), tenuto.Knorm(), budget=ALL, store=store) as run,
    ):
        with torch.autocast("cpu", torch.bfloat16):
            assert keeps(run, store) == 0
        assert keeps(run, store) == 7 and run.stored(IDS) == 56
        with torch.autocast("cpu", torch.bfloat16):
            assert run.restore(IDS).get_seq_length() == 0


def test_dropout_and_hooks_of_others_are_refused() -> None:
    noisy, hooked = plain(), plain()
    noisy.model.layers[0].mlp = torch.nn.Sequential(noisy.model.layers[0].mlp, torch.nn.Dropout(0.1))
    noisy.train()
    hooked.model.layers[0].mlp.register_forward_hook(lambda module, given, made: made * 2)
    for model, words in ((noisy, "training mode"), (hooked, "cannot know")):
        with tenuto.PrefixStore("host:") as store, pytest.raises(AttachError, match=words):
            with tenuto.attach(model, tenuto.Knorm(), budget=ALL, store=store):
                pass


def test_padded_rows_from_a_store_want_their_positions() -> None:
    mask = torch.ones_like(IDS)
    mask[0, :4] = 0
    model = plain()
    with (
        tenuto.PrefixStore("host:", page=8) as store,
        tenuto.attach(model, tenuto.Knorm(), budget=ALL, store=store) as run,
    ):
        run.model(IDS[:, 4:])
        store.flush()
        cache = run.restore(IDS, mask)
        held = cache.get_seq_length()
        assert held > 40
        with pytest.raises(AttachError, match="position_ids="):
            model(IDS[:, held:], attention_mask=mask, past_key_values=cache)


def test_an_adapter_is_named_with_its_strength_and_state() -> None:
    peft = pytest.importorskip("peft")

    def adapted() -> Any:
        torch.manual_seed(0)
        model = plain()
        model.add_adapter(peft.LoraConfig(r=2, target_modules=["k_proj"], init_lora_weights=False), "a")
        return model.eval()

    model = adapted()
    identity = Identity(model.model)
    names = [identity.mark()]
    layer = model.model.layers[0].self_attn.k_proj
    model.disable_adapters()
    names.append(identity.mark())
    model.enable_adapters()
    assert identity.mark() == names[0] == mark(adapted())
    layer.scaling["a"] *= 2
    names.append(identity.mark())
    layer.scaling["a"] /= 2
    layer.lora_B["a"].weight.data[0] += 1
    names.append(identity.mark())
    layer.merge()
    names.append(identity.mark())
    assert len(set(names)) == len(names)


def test_profiles_of_the_sampled_kind_serve_and_others_do_not() -> None:
    model = plain()
    now = fingerprint(model)
    half, whole = now.split("-")
    assert fits(half, now) and fits(now, now) and not fits("0" * 16, now) and not fits(f"{half}-{'0' * 32}", now)
    assert not fits("", now) and not fits(half[:8], now) and not fits(whole, now)
    Profile(policy="p", fingerprint=half).check("p", now)
    with torch.no_grad():
        model.model.embed_tokens.weight[5, 3:5] += 0.5  # between the sampled values
    assert fingerprint(model).split("-")[0] == half and fingerprint(model) != now
    with pytest.raises(tenuto.CalibrationError, match=now):
        Profile(policy="p", fingerprint=now).check("p", fingerprint(model))
