"""join: exact where it claims to be, on every architecture; what is refused; any policy goes on from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from architectures_kv import MODELS, SIZE, build
from reuse_kv import chunks, entries, gap

from tenuto.budget import MemoryBudget
from tenuto.errors import AttachError, InputError
from tenuto.kv.attach import attach
from tenuto.kv.policies.h2o import H2O
from tenuto.kv.policies.knorm import Knorm
from tenuto.kv.policies.snapkv import SnapKV
from tenuto.reuse.chunks import ChunkStore
from tenuto.reuse.policies.cacheblend import CacheBlend
from tenuto.reuse.policies.cachecraft import CacheCraft
from tenuto.reuse.policies.concatenate import Concatenate
from tenuto.reuse.policies.full import FullRecompute
from tenuto.reuse.policy import Assembler
from tenuto.testing.kv import TOLERANCE, TinyLM, tokens
from tenuto.tiers.disk import DiskTier

pytestmark = pytest.mark.usefixtures("one_thread")
FULL = MemoryBudget.keep(1.0)
WITH_FULL_LAYERS = {name: make for name, make in MODELS.items() if name != "gemma3"}


@pytest.mark.parametrize("make", WITH_FULL_LAYERS.values(), ids=WITH_FULL_LAYERS)
@pytest.mark.parametrize("assembler", [FullRecompute(), CacheBlend(recompute=1.0), CacheCraft(overhead=1.0)], ids=str)
def test_everything_run_again_is_full_prefill(make: Callable[[], Any], assembler: Assembler) -> None:
    model = make()
    parts, question = chunks(), tokens(6, 9)
    whole = model(torch.cat([*parts, question], 1)).logits[:, -6:]
    with attach(model, Knorm(), budget=FULL) as run:
        answered = model(question, past_key_values=run.join(parts, assembler)).logits
        less = model(question, past_key_values=run.join(parts, Concatenate())).logits
    assert torch.allclose(answered, whole, atol=1e-4)
    assert (less - whole).abs().max() > 0.01, "the chunks do not depend on each other: this test cannot fail"


def test_nothing_run_again_differs_in_the_first_layers_and_behind_the_first_chunk_only() -> None:
    model = TinyLM()
    first = chunks()[0].shape[1]
    blended, turned = entries(model, CacheBlend(recompute=0.0, check=0)), entries(model, Concatenate())
    exact = entries(model, FullRecompute())
    assert gap(blended[1:], turned[1:]) == 0 < gap(blended[:1], turned[:1]), "layer 0 alone is new"
    assert gap(blended[:1], exact[:1]) < TOLERANCE, "and right: what it computes from is not reused"
    for other in (blended, turned):
        assert (
            gap([(k[:, :first], v[:, :first]) for k, v in other], [(k[:, :first], v[:, :first]) for k, v in exact])
            < TOLERANCE
        )


def test_positions_and_ids_go_on_as_in_one_prompt() -> None:
    """generate is given all ids and runs the question only; a policy then compresses what was joined."""
    model, parts, question = TinyLM(), chunks(), tokens(8, 9)
    ids = torch.cat([*parts, question], 1)
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    before = model.generate(ids, **options)
    with attach(model, SnapKV(window=4), budget=FULL) as run:
        cache = run.join(parts, CacheBlend(recompute=1.0))
        assert torch.equal(model.generate(ids, past_key_values=cache, **options), before)
    with attach(model, SnapKV(window=4), budget=MemoryBudget.keep(0.5)) as run:
        plain = model(ids, past_key_values=(one := run.cache())).logits[:, -1]
        late = model(question, past_key_values=(two := run.join(parts, FullRecompute()))).logits[:, -1]
        assert one.counts() == two.counts()
        assert two.counts()[0][0][0] == ids.shape[1] // 2
        kept = [[cache.survivors(layer) for layer in range(3)] for cache in (one, two)]
        assert kept[0] == kept[1], "compressed as the same prompt read at once"
        assert torch.allclose(plain, late, atol=1e-4)


def test_the_model_is_as_it_was() -> None:
    """Also after an error in mid-run."""
    model, prompt = TinyLM(), tokens(12)
    before = model(prompt).logits

    class Broken(CacheBlend):
        def choose(self, seen: Any) -> Any:
            raise KeyboardInterrupt

    with attach(model, Knorm(), budget=FULL) as run:
        inside = model(prompt).logits
        for assembler in (CacheBlend(), CacheBlend(recompute=0.0)):
            run.join(chunks(), assembler)
        with pytest.raises(KeyboardInterrupt):
            run.join(chunks(), Broken())
        assert torch.equal(model(prompt).logits, inside)
    assert torch.equal(model(prompt).logits, before)
    assert not [module for module in model.modules() if module._forward_pre_hooks]


def test_what_cannot_be_joined_is_refused() -> None:
    model = TinyLM()
    with attach(model, Knorm(), budget=FULL) as run:
        for given in ([], [tokens(5), tokens(5, rows=2)], [tokens(5)[0]], [tokens(5), tokens(0)]):
            with pytest.raises(InputError, match="given to join"):
                run.join(given, CacheBlend())
    sliding = MODELS["gemma3"]()
    with attach(sliding, Knorm(), budget=FULL) as run, pytest.raises(AttachError, match="slide"):
        run.join(chunks(), FullRecompute())
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    dynamic = build(tf.LlamaConfig(**SIZE, rope_parameters=rope), tf.LlamaForCausalLM)
    with attach(dynamic, Knorm(), budget=FULL) as run:
        with pytest.raises(AttachError, match="cannot turn keys"):
            run.join(chunks(), CacheBlend())
        assert run.join(chunks(), FullRecompute()).sequences.columns == sum(chunk.shape[1] for chunk in chunks())


def test_a_chunk_computed_in_one_run_is_reused_in_another(tmp_path: Path) -> None:
    """Also by another object on the same folder, as in another process; what differs in any name is not."""
    model, parts = TinyLM(), chunks()
    first, again, other = entries(model, CacheBlend()), [], TinyLM(seed=1)
    for _ in range(2):
        with DiskTier(tmp_path, capacity=10**8) as tier:
            store = ChunkStore(tier, tenant="a")
            again.append(entries(model, CacheBlend(), store))
            found = (store.hits, store.misses)
    assert found == (len(parts), 0)
    assert gap(again[0], first) == gap(again[1], first) == 0
    with DiskTier(tmp_path, capacity=10**8) as tier:
        for owner, store in ((model, ChunkStore(tier, tenant="b")), (other, ChunkStore(tier, tenant="a"))):
            entries(owner, CacheBlend(), store)
            assert (store.hits, store.misses) == (0, len(parts))


def test_a_scorer_that_adds_up_attention_is_refused() -> None:
    with attach(TinyLM(), H2O(), budget=FULL) as run, pytest.raises(AttachError, match="adds up attention"):
        run.join(chunks(), Concatenate())


def test_a_store_by_its_address(tmp_path: Path) -> None:
    for hits in (0, len(chunks())):
        store = ChunkStore(f"disk:{tmp_path}/chunks")
        with attach(TinyLM(), Knorm(), budget=FULL) as run:
            run.join(chunks(), Concatenate(), store=store)
        assert store.hits == hits
        store.tier.close()
