"""attach(store=): the same logits and texts from loaded prefixes as from computed ones, for every way to generate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from architectures_kv import MODELS, SIZE, build

from tenuto.attachment import attach
from tenuto.budget import MemoryBudget
from tenuto.errors import AttachError
from tenuto.kv.attach import AttachedRun
from tenuto.kv.policies.h2o import H2O
from tenuto.kv.policies.kivi import Kivi
from tenuto.kv.policies.knorm import Knorm
from tenuto.kv.policies.kvzip import KVzip
from tenuto.kv.policies.snapkv import SnapKV
from tenuto.kv.policy import KVMethod
from tenuto.reuse.policies.concatenate import Concatenate
from tenuto.reuse.prefix import PrefixStore
from tenuto.testing.kv import TinyLM, tokens

pytestmark = pytest.mark.usefixtures("one_thread")
ALL, HALF = MemoryBudget.keep(1.0), MemoryBudget.keep(0.5)


def write(run: AttachedRun, ids: torch.Tensor, **options: Any) -> Any:
    given = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    return run.model.generate(ids, **given | options)


def close(first: Any, second: Any) -> bool:
    same = torch.equal(first.sequences, second.sequences)
    return same and all(torch.allclose(a, b, atol=1e-4) for a, b in zip(first.logits, second.logits, strict=True))


@pytest.mark.parametrize(
    "policy",
    [Knorm(), SnapKV(window=8), KVzip(chunk=32), Kivi(bits=4, group=16, residual=8)],
    ids=["knorm", "snapkv", "kvzip", "kivi"],
)
def test_a_loaded_prefix_gives_what_computing_gives(policy: KVMethod, tmp_path: Path) -> None:
    model, ids = TinyLM(), tokens(90)
    with attach(model, policy, budget=HALF) as run:
        alone = write(run, ids)
    for _ in range(2):  # the second time in what is as good as another process
        with PrefixStore(f"disk:{tmp_path}", page=16) as store, attach(model, policy, budget=HALF, store=store) as run:
            first = write(run, ids)
            store.flush()
            again = write(run, ids)
            restored = run.summary()["tokens_restored"]
        assert close(first, alone) and close(again, alone)
    left = run.blocks.probes or 1
    assert restored == 2 * ((90 - left) // 16 * 16)


@pytest.mark.parametrize(
    ("options", "restored"),
    [({"num_beams": 3}, 192), ({"prefill_chunk_size": 13}, 64), ({"prompt_lookup_num_tokens": 3}, 0)],
)
def test_other_ways_to_generate(options: dict[str, Any], restored: int) -> None:
    model, ids = TinyLM(), tokens(70)
    with PrefixStore("host:", page=16) as store, attach(model, Knorm(), budget=ALL, store=store) as run:
        first = write(run, ids, **options)
        store.flush()
        assert close(write(run, ids, **options), first)
        assert run.summary()["tokens_restored"] == restored


def test_a_padded_batch_restores_each_row() -> None:
    model, ids, mask = TinyLM(), tokens(60, rows=3), torch.ones(3, 60, dtype=torch.int64)
    mask[1, :9], mask[2, :50] = 0, 0
    with attach(model, Knorm(), budget=ALL) as run:
        alone = write(run, ids, attention_mask=mask)
    with PrefixStore("host:", page=8) as store, attach(model, Knorm(), budget=ALL, store=store) as run:
        for row in range(3):
            write(run, ids[row : row + 1, int((mask[row] == 0).sum()) :])
        store.flush()
        before = run.summary()["tokens_restored"]
        assert close(write(run, ids, attention_mask=mask), alone)
        assert run.summary()["tokens_restored"] - before == 56 + 47 + 6  # up to column 56 of each
        right = mask.flip(1)
        assert run.restore(ids, right).get_seq_length() == 0


def test_a_second_turn_is_found_by_the_next_process_too() -> None:
    model, ids = TinyLM(), tokens(40)
    with PrefixStore("host:", page=8) as store:
        with attach(model, Knorm(), budget=ALL, store=store) as run:
            first = write(run, ids)
            longer = torch.cat([first.sequences, tokens(20, seed=3)], 1)
            cold = write(run, longer, past_key_values=first.past_key_values)
            store.flush()
            assert run.restore(longer).get_seq_length() == 64
            assert close(write(run, longer), cold)
        with attach(model, Knorm(), budget=HALF, store=store) as run:  # what came after an eviction is not kept
            other = tokens(40, seed=5)
            first = write(run, other)
            longer = torch.cat([first.sequences, tokens(20, seed=6)], 1)
            write(run, longer, past_key_values=first.past_key_values)
            store.flush()
            assert run.restore(longer).get_seq_length() == 40


def test_what_rests_on_few_bits_is_not_kept_as_exact() -> None:
    model, ids = TinyLM(), tokens(80)
    with PrefixStore("host:?max=40000,host:?codec=int8", page=8) as store:
        with attach(model, Knorm(), budget=ALL, store=store) as run:
            exact = write(run, ids[:, :48])
            store.flush()
            host = store.levels[0].tier
            for key in host.keys():  # noqa: SIM118 (a tier is no mapping)
                host.discard(key)
            write(run, ids)
            store.flush()
            assert run.summary()["tokens_restored"] == 48 and not host.keys() and exact is not None
            assert len(store.levels[1].tier.keys()) == 10


def test_another_model_finds_nothing() -> None:
    ids = tokens(40)
    with PrefixStore("host:", page=8) as store:
        for seed in range(2):
            with attach(TinyLM(seed), Knorm(), budget=ALL, store=store) as run:
                assert run.restore(ids).get_seq_length() == 0
                write(run, ids)
                store.flush()
                assert run.restore(ids).get_seq_length() == 32


def test_what_no_store_can_serve_is_refused() -> None:
    gemma = MODELS["gemma3"]()
    turned = build(
        tf.LlamaConfig(**SIZE, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
        tf.LlamaForCausalLM,
    )
    with PrefixStore("host:") as store:
        for model, policy, words in (
            (gemma, Knorm(), "all attend in full"),
            (turned, Knorm(), "depend on the length"),
            (TinyLM(), H2O(), "attention of every token"),
        ):
            with pytest.raises(AttachError, match=words), attach(model, policy, budget=HALF, store=store):
                pass
    with attach(TinyLM(), Knorm(), budget=HALF) as run, pytest.raises(AttachError, match="no store"):
        run.restore(tokens(9))


def test_a_joined_cache_is_not_kept_as_a_prefix() -> None:
    model, chunks = TinyLM(), [tokens(24), tokens(24, seed=1)]
    with PrefixStore("host:", page=8) as store, attach(model, Knorm(), budget=ALL, store=store) as run:
        joined = run.join(chunks, Concatenate())
        ids = torch.cat([*chunks, tokens(9, seed=2)], 1)
        write(run, ids, past_key_values=joined)
        store.flush()
        assert run.stored(ids) == 0
        write(run, ids)
        store.flush()
        assert run.stored(ids) == 56
