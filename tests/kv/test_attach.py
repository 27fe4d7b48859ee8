"""attach: what is refused, in one line each; head-wise memory; decoding modes; several caches; what is counted."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from architectures_kv import MODELS, SIZE, build

from tenuto.budget import MemoryBudget
from tenuto.errors import AttachError, InputError, TenutoError
from tenuto.kv.attach import attach
from tenuto.kv.policies.adakv import AdaKV
from tenuto.kv.policies.knorm import Knorm
from tenuto.kv.policies.kvzip import KVzip
from tenuto.kv.policies.razor_attention import RazorAttention
from tenuto.kv.policies.snapkv import SnapKV
from tenuto.kv.policies.streaming_llm import StreamingLLM
from tenuto.kv.policy import KVMethod
from tenuto.kv.slots import SLACK
from tenuto.kv.step import Phase
from tenuto.testing.kv import TinyLM, follow, tokens

pytestmark = pytest.mark.usefixtures("one_thread")
HALF = MemoryBudget.keep(0.5)


def said(error: pytest.ExceptionInfo[TenutoError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_models_without_standard_attention_are_refused() -> None:
    mamba = build(tf.MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=1), tf.MambaForCausalLM)
    gpt_oss = build(tf.GptOssConfig(**SIZE, head_dim=16, num_local_experts=2), tf.GptOssForCausalLM)
    sliding = build(tf.MistralConfig(**SIZE, sliding_window=16), tf.MistralForCausalLM)
    for model, words in (
        (torch.nn.Linear(1, 1), "no transformers model"),
        (mamba, "attention interface"),
        (gpt_oss, "learned sinks"),
        (sliding, "nothing to compress"),
    ):
        with pytest.raises(AttachError) as error, attach(model, Knorm(), budget=HALF):
            pass
        assert words in said(error)


def test_budgets_below_sinks_and_window_are_refused() -> None:
    for budget in (MemoryBudget.tokens(20), MemoryBudget.bytes(40_000)):
        with pytest.raises(InputError, match="keeps at least 32") as error:
            with attach(TinyLM(), SnapKV(window=32), budget=budget):
                pass
        assert said(error)
    with attach(TinyLM(), SnapKV(window=32), budget=MemoryBudget.bytes(200_000)) as run:
        with pytest.raises(InputError, match=r"holds \d+ tokens per head of 16 rows"):
            follow(run.model, run.cache(), tokens(80, rows=16), tokens(0, rows=16))


def test_other_caches_are_refused() -> None:
    model, prompt = TinyLM(), tokens(10)
    with attach(model, Knorm(), budget=HALF) as run:
        for cache in (tf.StaticCache(config=model.config, max_cache_len=64), tf.DynamicCache()):
            with pytest.raises(AttachError, match=f"A {type(cache).__name__} was passed") as error:
                model(prompt, past_key_values=cache)
            assert said(error)
        with pytest.raises(AttachError, match="cache_implementation='static'"):
            model.generate(prompt, cache_implementation="static", max_new_tokens=2)
        with pytest.raises(AttachError, match="has a policy attached already"), attach(model, Knorm(), budget=HALF):
            pass
        with pytest.raises(AttachError, match="four dimensions"):
            model(prompt, attention_mask=torch.ones(1, 1, 10, 10))
        follow(model, kept := run.cache(), prompt, tokens(2))
        with pytest.raises(AttachError, match="holds 1 rows and the model was given 2"):
            follow(model, kept, tokens(3, rows=2), tokens(0, rows=2))
        assert kept.phase is Phase.READY, "what is refused before the model runs does no harm"
    with pytest.raises(AttachError, match="Use it inside"):
        model(prompt[:, :1], past_key_values=kept)
    with attach(TinyLM(), Knorm(), budget=HALF) as run:
        with pytest.raises(AttachError, match="cache of another model"):
            run.model(prompt, past_key_values=kept)


def test_an_error_in_mid_step_leaves_no_half_cache() -> None:
    model = TinyLM()
    with attach(model, Knorm(), budget=HALF) as run:
        follow(model, cache := run.cache(), tokens(10), tokens(0))
        handle = model.model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(tokens(1), past_key_values=cache)
        handle.remove()
        with pytest.raises(AttachError, match="incomplete"):
            model(tokens(1), past_key_values=cache)


def test_files_that_are_no_cache(tmp_path: Path) -> None:
    model = TinyLM()
    with attach(model, Knorm(), budget=HALF) as run:
        with pytest.raises(InputError, match="no cache yet"):
            run.save(tmp_path / "a")
        follow(model, run.cache(), tokens(40), tokens(0))
        run.save(tmp_path / "a")
        with pytest.raises(InputError, match="cannot be written"):
            run.save(tmp_path / "absent" / "a")
        whole = (tmp_path / "a").read_bytes()
        (tmp_path / "short").write_bytes(whole[: len(whole) // 2])
        for name in ("short", "absent"):
            with pytest.raises(InputError, match="cannot be read as a saved cache") as error:
                run.load(tmp_path / name)
            assert said(error)
        assert [p.name for p in tmp_path.iterdir() if "part" in p.name] == []
    with attach(TinyLM(seed=1), Knorm(), budget=HALF) as run:
        with pytest.raises(InputError, match="another model"):
            run.load(tmp_path / "a")
    with attach(model, SnapKV(), budget=HALF) as run:
        with pytest.raises(InputError, match="another policy"):
            run.load(tmp_path / "a")


@pytest.mark.parametrize("policy", [AdaKV(window=16), RazorAttention(), KVzip()], ids=lambda p: type(p).__name__)
def test_head_wise_memory_is_free_and_the_output_is_that_of_a_mask(policy: KVMethod) -> None:
    """Heads of different lengths hold half the bytes, number, weight, state and position of an entry (20 bytes beside
    512) and empty slots besides, and attend as a full cache in float64 in which the same entries
    are masked, and RazorAttention's mean of those stands beside them."""
    model, prompt = build(tf.LlamaConfig(**SIZE, head_dim=64), tf.LlamaForCausalLM), tokens(700)
    with attach(model, policy, budget=HALF) as run:
        follow(model, cache := run.cache(), prompt, tokens(0))
        assert cache.bytes_held <= 0.5 * (1 + 20 / 512) * (1 + 1 / SLACK) * cache.bytes_full
        output = follow(model, cache, tokens(1, 1), tokens(0))[:, 0]
    lengths = [count for layer in cache.counts() for count in layer[0]]
    assert max(lengths) > min(lengths) + 20, "heads differ"
    kept = [[cache.survivors(layer, 0, head) for head in range(2)] for layer in range(3)]

    def masked(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **_: Any) -> Any:
        outputs, new = [], query.shape[2]
        for head in range(4):
            keys, values = key[0, head // 2].double(), value[0, head // 2].double()
            bias = torch.zeros(new, len(keys)).masked_fill_(
                torch.ones(new, len(keys)).triu(len(keys) - new + 1) > 0, -1e9
            )
            mine = kept[module.layer_idx][head // 2]
            if new == 1:
                gone = sorted(set(range(700)) - set(mine))
                bias[:, gone] = -1e9
                if -1 in mine:
                    keys, values = (torch.cat([x, x[gone].mean(0, keepdim=True)]) for x in (keys, values))
                    bias = torch.cat([bias, torch.tensor([[float(len(gone))]]).log()], 1)
            logits = query[0, head].double() @ keys.T * scaling + bias
            outputs.append((logits.softmax(-1) @ values).float())
        return torch.stack(outputs, 1)[None], None

    tf.AttentionInterface.register("masked_reference", masked)
    model.config._attn_implementation = "masked_reference"
    reference = follow(model, tf.DynamicCache(config=model.config), prompt, tokens(1, 1))[:, 1]
    torch.testing.assert_close(output, reference, atol=1e-4, rtol=1e-4)


def test_sinks_are_attended_directly_before_the_recent_tokens() -> None:
    """StreamingLLM equals a prompt of the kept tokens at positions 0, 1, 2 ... in a model of one layer."""
    model, prompt = build(tf.LlamaConfig(**(SIZE | {"num_hidden_layers": 1})), tf.LlamaForCausalLM), tokens(90)
    with attach(model, StreamingLLM(sinks=4), budget=MemoryBudget.tokens(40)) as run:
        follow(model, cache := run.cache(), prompt, tokens(0))
        kept = cache.survivors(0)
        assert kept == [0, 1, 2, 3, *range(54, 90)]
        after = follow(model, cache, tokens(1, 1), tokens(0))
        assert cache.counts() == [[[9, 9]]], "32 of 40 were freed, then one came"
        kept = cache.survivors(0)[:-1]
    short = torch.cat([prompt[:, kept], tokens(1, 1)], 1)
    torch.testing.assert_close(after[:, 0], model(short).logits[:, -1], atol=1e-4, rtol=1e-4)


def test_prompt_lookup_needs_what_it_takes_back() -> None:
    model, prompt = TinyLM(), tokens(60)
    with attach(model, Knorm(), budget=MemoryBudget.keep(0.3)) as run:
        model(prompt, past_key_values=(cache := run.cache()))
        cache.crop(-2)
        assert cache.get_seq_length() == 58
        assert 58 not in cache.survivors(0) and 59 not in cache.survivors(0)
        with pytest.raises(InputError, match="give minus"):
            cache.crop(3)


def test_assistants_and_the_next_turn() -> None:
    model, prompt = TinyLM(), tokens(60)
    options: dict[str, Any] = {"max_new_tokens": 10, "do_sample": False}
    with attach(model, SnapKV(window=8), budget=MemoryBudget.keep(0.4)) as run:
        first = model.generate(prompt, **options)
        # proposals that come with the prompt are verified before it is compressed, so later tokens may differ
        assisted = model.generate(prompt, assistant_model=MODELS["llama"](), **options)
        assert torch.equal(assisted[:, :61], first[:, :61])
        assert run.last is not None and run.last.crops is None
        assert max(max(layer[0]) for layer in run.last.counts()) <= 0.4 * 66 + 10
        model.generate(prompt, past_key_values=(cache := run.cache()), prompt_lookup_num_tokens=3, **options)
        longer = torch.cat([first, tokens(60, 2)], 1)
        model.generate(longer, past_key_values=cache, **options)
        assert max(max(layer[0]) for layer in cache.counts()) <= 0.4 * longer.shape[1] + 10


def test_bytes_are_those_of_the_tensors() -> None:
    model = TinyLM()
    with attach(model, Knorm(), budget=HALF) as run:
        assert (run.bytes_held, run.bytes_full) == (0, 0)
        model(tokens(100, rows=2))
        assert run.bytes_full == 2 * 100 * 2 * 3 * 2 * 32 * 4
        entries = 2 * 3 * 2 * 50
        assert run.bytes_held == entries * (2 * 32 * 4 + 4) + 2 * 100 * 4
        assert run.summary()["compression_ratio"] == run.bytes_full / run.bytes_held
        assert run.summary()["peak_bytes"] >= run.bytes_held
        model.generate(tokens(100), max_new_tokens=3, use_cache=False)
    gc.collect()


def test_a_filled_cache_goes_on_as_one_that_saw_the_tokens() -> None:
    model, prompt, rest = TinyLM(), tokens(48, rows=2), tokens(7, rows=2, seed=1)
    given = torch.ones(2, 48, dtype=torch.int64)
    given[1, :5] = 0
    mask = torch.cat([given, torch.ones_like(rest)], 1)
    with attach(model, Knorm(), budget=MemoryBudget.keep(1.0)) as run, torch.no_grad():
        seen = run.cache()
        where = (given.cumsum(-1) - 1).clamp(min=0)
        model(prompt, attention_mask=given, position_ids=where, past_key_values=seen)
        layers = []
        for layer in seen.engine:
            held = layer.held
            assert held is not None
            keys, values = torch.zeros(2, 2, 2, 48, 32)
            for segment, length in enumerate(held.store.lengths):
                row, head = divmod(segment, 2)
                keys[row, head, 48 - length :] = held.store.entries(segment).keys
                values[row, head, 48 - length :] = held.store.entries(segment).values
            layers.append((keys, values))
        filled = run.cache()
        filled.fill(prompt.masked_fill(given == 0, -1), where, layers)
        assert filled.bytes_held == seen.fork().bytes_held and filled.sequences.seen == [48, 43]
        where = where[:, -1:] + 1 + torch.arange(7)
        expected = model(rest, attention_mask=mask, position_ids=where, past_key_values=seen.fork()).logits
        found = model(rest, attention_mask=mask, position_ids=where, past_key_values=filled).logits
        assert torch.equal(found, expected)
        with pytest.raises(AttachError, match="empty cache"):
            filled.fill(prompt, prompt, layers)
