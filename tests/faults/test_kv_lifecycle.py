"""Copies, threads, shared configurations, forks and ends in any order: nothing of ours stays, nothing is mixed."""

from __future__ import annotations

import copy
import os
import pickle
import resource
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, LlamaForCausalLM
from transformers.masking_utils import AttentionMaskInterface

from tenuto import AttachError, MemoryBudget, PrefixStore, attach
from tenuto.errors import StoreError
from tenuto.kv.policies.adakv import AdaKV
from tenuto.kv.policies.cake import Cake
from tenuto.kv.policies.pyramidkv import PyramidKV
from tenuto.kv.policies.snapkv import SnapKV
from tenuto.kv.policy import KVPolicy
from tenuto.kv.step import Phase
from tenuto.testing import TinyLM
from tenuto.testing.kv import tokens

ALL, HALF = MemoryBudget.keep(1.0), MemoryBudget.keep(0.5)


def plain(model: Any) -> bool:
    ours = {"forward", "generate", "_prefill", "_prepare_cache_for_generation", "__getstate__"}
    return model.config._attn_implementation == "sdpa" and not ours & {*vars(model), *vars(model.model)}


@torch.no_grad()
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_made_while_attached_are_plain(copied: Any) -> None:
    model, ids = TinyLM(), tokens(12)
    with attach(model, KVPolicy(), budget=HALF):
        other = copied(model)
        assert plain(other) and "tenuto" not in str(other.config.to_dict())
        for weight in other.parameters():
            weight.zero_()
        assert not other(ids).logits.any()
    assert plain(model)


@torch.no_grad()
@pytest.mark.parametrize("first", [0, 1])
def test_two_models_of_one_configuration_let_go_in_any_order(first: int) -> None:
    one = TinyLM()
    two, ids = LlamaForCausalLM(one.config).eval(), tokens(12)
    wanted = [model(ids).logits for model in (one, two)]
    stacks = ExitStack(), ExitStack()
    for stack, model in zip(stacks, (one, two), strict=True):
        stack.enter_context(attach(model, KVPolicy(), budget=ALL))
    stacks[first].close()
    for model, logits in zip((one, two), wanted, strict=True):
        assert torch.allclose(model(ids).logits, logits, atol=1e-4)
    stacks[1 - first].close()
    assert plain(one) and plain(two)
    assert "tenuto" not in {*AttentionInterface._global_mapping, *AttentionMaskInterface._global_mapping}


@torch.no_grad()
def test_attention_changed_while_attached_is_refused() -> None:
    model, ids = TinyLM(), tokens(12)
    with attach(model, KVPolicy(), budget=HALF):
        model.set_attn_implementation("eager")
        with pytest.raises(AttachError, match="changed while attached"):
            model(ids)
    assert plain(model)


@torch.no_grad()
def test_a_stretch_belongs_to_the_thread_that_opened_it() -> None:
    model, ids = TinyLM(), tokens(40)
    with attach(model, KVPolicy(), budget=HALF) as run:
        model(ids, past_key_values=(alone := run.cache()))
        caches = {}

        def other() -> None:
            model(ids, past_key_values=caches.setdefault("other", run.cache()))

        for stretch in (run.prefill, run.whole):
            with stretch():
                model(ids, past_key_values=(mine := run.cache()))
                caches.clear()
                thread = threading.Thread(target=other)
                thread.start()
                thread.join()
                assert run.last is mine and mine.counts()[0][0][0] == 40
            assert caches["other"].counts() == alone.counts()


@torch.no_grad()
def test_stretches_in_stretches_end_with_the_outermost() -> None:
    model, ids = TinyLM(), tokens(40)
    with attach(model, KVPolicy(), budget=HALF) as run:
        cache = run.cache()
        with run.prefill():
            with run.prefill():
                model(ids[:, :30], past_key_values=cache)
            model(ids[:, 30:], past_key_values=cache)
            assert cache.counts()[0][0][0] == 40
        assert cache.counts()[0][0][0] == 20


@torch.no_grad()
def test_threads_write_what_one_writes() -> None:
    model, prompts = TinyLM(), [tokens(30 + 4 * n, n) for n in range(4)]
    options = {"max_new_tokens": 6, "do_sample": False, "prefill_chunk_size": 8}

    def write(ids: torch.Tensor) -> list[int]:
        return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0].tolist()

    with attach(model, KVPolicy(), budget=HALF), ThreadPoolExecutor(4) as pool:
        wanted = [write(ids) for ids in prompts]
        assert list(pool.map(write, prompts * 2)) == wanted * 2


@torch.no_grad()
def test_an_interrupt_in_mid_step_leaves_a_cache_that_says_so() -> None:
    model, ids = TinyLM(), tokens(20)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with attach(model, KVPolicy(), budget=HALF) as run:
        model(ids, past_key_values=(cache := run.cache()))
        hook = model.model.layers[1].register_forward_pre_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            model(ids, past_key_values=cache)
        hook.remove()
        for broken in (cache, cache.fork()):
            assert broken.phase is not Phase.READY
            with pytest.raises(AttachError, match="incomplete"):
                model(ids, past_key_values=broken)


def test_inference_mode_and_then_none() -> None:
    model, ids = TinyLM(), tokens(20)
    with torch.no_grad():
        wanted = model(ids).logits[:, -1]
    with attach(model, KVPolicy(), budget=ALL) as run:
        with torch.inference_mode():
            model(ids[:, :18], past_key_values=(cache := run.cache()))
            model(ids[:, 18:19], past_key_values=cache)
        with torch.no_grad():
            found = model(ids[:, 19:], past_key_values=cache).logits[:, -1]
    assert torch.allclose(found, wanted, atol=1e-4)


@torch.no_grad()
def test_a_closed_store_is_refused_and_a_forked_one_works() -> None:
    model, ids = TinyLM(), tokens(20)
    store = PrefixStore("host:?max=1MiB", page=4)
    with attach(model, KVPolicy(), budget=ALL, store=store):
        model(ids)
    child = os.fork()
    if not child:
        good = False
        try:
            with attach(model, KVPolicy(), budget=ALL, store=store) as run:
                good = run.restore(ids).get_seq_length() == 16
        finally:
            os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    store.close()
    with pytest.raises(StoreError, match="closed"), attach(model, KVPolicy(), budget=ALL, store=store):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@torch.no_grad()
def test_many_calls_over_attach_and_detach_hold_nothing() -> None:
    model, ids = TinyLM(), tokens(12)

    def some(count: int) -> tuple[int, int, int]:
        for _ in range(count):
            with attach(model, KVPolicy(), budget=HALF):
                model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=False)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize(), len(os.listdir("/proc/self/fd")), threading.active_count()

    before, after = some(10), some(30)
    assert after[1:] == before[1:]
    assert after[0] - before[0] < 2**24  # thirty leaked models or caches would be more


@torch.no_grad()
@pytest.mark.parametrize("policy", [Cake(window=8), SnapKV(window=8), AdaKV(window=8), PyramidKV(window=8)], ids=str)
@pytest.mark.parametrize("budget", [HALF, MemoryBudget.bytes(60_000)], ids=str)
def test_a_turn_of_padding_alone_leaves_a_row_as_it_is_or_smaller(policy: Any, budget: MemoryBudget) -> None:
    """Nothing has asked for its entries since they were judged, so they cannot be judged again."""
    model, ids, turn = TinyLM(), tokens(40, rows=2), tokens(24, 1, rows=2)
    mask = torch.ones(2, 64, dtype=torch.int64)
    mask[1, 40:] = 0
    given = {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)[:, 40:]}
    with attach(model, policy, budget=budget) as run:
        model(ids, past_key_values=(cache := run.cache()))
        heads = [(layer, 1, head) for layer in range(3) for head in range(2)]
        before = [set(cache.survivors(*head)) for head in heads]
        model(turn, past_key_values=cache, **given)
        after = [set(cache.survivors(*head)) for head in heads]
        assert budget is HALF or cache.bytes_held <= 60_000
        assert all(new and new <= old for new, old in zip(after, before, strict=True))
