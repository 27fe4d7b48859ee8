"""What is asked of a sharded model is given exactly or refused: gradients, weights, masks; and what a call has is its
own: threads, modes, copies."""

from __future__ import annotations

import copy
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from test_sharded import mild
from transformers import DynamicCache

import tenuto
from tenuto.errors import AttachError
from tenuto.kv.policy import KVPolicy
from tenuto.shards import Expert, KeyCluster, RoundRobin, Router, Schedule, shard
from tenuto.testing.kv import follow, tokens

pytestmark = pytest.mark.usefixtures("one_thread")
FOUR, FULL = RoundRobin(page=4), tenuto.MemoryBudget.keep(1.0)


def gradients(model: Any, loss: Callable[[], torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_gradients_of_a_whole_text_are_the_models_own(name: str) -> None:
    model, ids = mild(name), tokens(23, rows=2)
    mask = torch.ones_like(ids)
    mask[0, :6] = 0

    def loss() -> torch.Tensor:
        found: torch.Tensor = model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        return found

    want = gradients(model, loss)
    with shard(model, FOUR, shards=3):
        got = gradients(model, loss)
        uncached = gradients(model, lambda: model(ids, labels=ids, use_cache=False).loss)
    assert set(got) == set(want)
    for key, grad in want.items():
        assert torch.allclose(got[key], grad, atol=1e-5 * max(1.0, float(grad.abs().max()))), key
    alone = gradients(model, lambda: model(ids, labels=ids, use_cache=False).loss)
    assert all(torch.allclose(uncached[key], grad, atol=1e-5) for key, grad in alone.items())


def test_gradients_through_what_is_held_are_refused_when_asked_for() -> None:
    model, cache = mild("llama"), None
    with shard(model, FOUR, shards=2) as run:
        model(tokens(9), past_key_values=(cache := run.cache()))
        logits = model(tokens(3, 1), past_key_values=cache).logits  # nobody asked for gradients yet
        with pytest.raises(AttachError, match="Gradients were asked for"):
            logits.sum().backward()
        prompt = torch.nn.Parameter(model.get_input_embeddings()(tokens(2)).detach())
        with pytest.raises(AttachError, match="Gradients were asked for"):
            model(inputs_embeds=prompt, past_key_values=cache).logits.sum().backward()


def test_attention_weights_are_refused_and_hidden_states_given() -> None:
    model, ids = mild("llama"), tokens(9)
    want = model(ids, output_hidden_states=True).hidden_states
    with shard(model, FOUR, shards=2):
        with pytest.raises(AttachError, match="output_attentions"):
            model(ids, output_attentions=True)
        with pytest.raises(AttachError, match="output_attentions"):
            model.generate(ids, output_attentions=True, return_dict_in_generate=True, max_new_tokens=2)
        got = model(ids, output_hidden_states=True).hidden_states
    assert all((a - b).abs().max() <= 1e-5 for a, b in zip(got, want, strict=True))


@torch.no_grad()
def test_a_later_mask_says_the_same_of_what_is_held() -> None:
    model, other = mild("llama"), mild("llama")
    ids, ones = tokens(12, rows=2), torch.ones(2, 12, dtype=torch.int64)
    left, hole = ones.clone(), ones.clone()
    left[0, :3], hole[0, 4:7] = 0, 0
    step = tokens(1, 1, rows=2)
    with shard(model, FOUR, shards=2) as run:
        for read, then in ((ones, hole), (hole, ones), (left, ones), (ones, left), (left, None)):
            model(ids, attention_mask=read, past_key_values=(cache := run.cache()))
            told = "no mask was given" if then is None else "other tokens than it did"
            seen = None if then is None else torch.cat([then, ones[:, :1]], 1)
            with pytest.raises(AttachError, match=told):
                model(step, attention_mask=seen, past_key_values=cache)
            with pytest.raises(AttachError, match="A mask of shape"):
                model(step, attention_mask=ones[:, :5], past_key_values=cache)
            seen, later = torch.cat([read, ones[:, :1]], 1), torch.full((2, 1), 12)
            got = model(step, attention_mask=seen, past_key_values=cache, position_ids=later).logits
            plain = DynamicCache(config=model.config)  # and the cache is as it was
            other(ids, attention_mask=read, past_key_values=plain)
            want = other(step, attention_mask=seen, past_key_values=plain, position_ids=later).logits
            assert (got - want).abs().max() <= 1e-5


def test_threads_have_calls_of_their_own() -> None:
    model, prompts = mild("olmoe"), [tokens(20 + 3 * seed, seed) for seed in range(3)]
    asked: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
    asked |= {"output_logits": True, "return_dict_in_generate": True}

    def written(ids: torch.Tensor) -> torch.Tensor:
        return torch.stack(model.generate(ids, attention_mask=torch.ones_like(ids), **asked).logits)

    got, lengths = dict[int, torch.Tensor](), dict[int, int]()
    with shard(model, Expert(page=4), shards=3, selector=Router(keep=0.5, sinks=1, window=2)) as run:
        want = [written(ids) for ids in prompts]

        def work(number: int) -> None:
            got[number] = written(prompts[number])
            lengths[number] = run.last.get_seq_length()

        switching = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(switching)
    assert all(torch.equal(got[number], want[number]) for number in range(3))
    assert lengths == {number: 23 + 3 * number for number in range(3)}, "each thread's last cache is its own"


@pytest.mark.parametrize("more", [{}, {"schedule": Schedule(resident=0.5, slack=0)}, {"codec": "int8", "recent": 8}])
def test_inference_mode_and_then_not(more: dict[str, Any]) -> None:
    model, ids, steps = mild("llama"), tokens(20), tokens(6, 1)
    with shard(model, FOUR, shards=2, **more) as run:
        with torch.no_grad():
            want = follow(model, run.cache(), ids, steps)
        cache, got = run.cache(), []
        with torch.inference_mode():
            got.append(model(ids, past_key_values=cache).logits[:, -1:].clone())
            cache.reorder_cache(torch.tensor([0]))
        for at in range(6):
            with torch.inference_mode(at % 2 == 1), torch.no_grad():
                got.append(model(steps[:, at : at + 1], past_key_values=cache).logits)
    assert torch.equal(torch.cat([torch.as_tensor(one).clone() for one in got], 1), want)


@torch.no_grad()
def test_what_changes_while_the_model_is_sharded() -> None:
    model, ids = mild("llama"), tokens(12)
    before = model(ids).logits
    with shard(model, FOUR, shards=2) as run:
        copied = copy.deepcopy(model)
        model(ids, past_key_values=(cache := run.cache()))
        layers = model.model.layers
        model.model.layers, kept = layers[:2], layers
        with pytest.raises(AttachError, match="Layer 2 did not attend"):
            model(ids[:, :1], past_key_values=cache)
        model.model.layers = kept
        with pytest.raises(AttachError, match="incomplete"):
            model(ids[:, :1], past_key_values=cache)
        for attach in (lambda: shard(model, FOUR), lambda: tenuto.attach(model, KVPolicy(), budget=FULL)):
            with pytest.raises(AttachError, match="attached already"), attach():
                pass
        model.set_attn_implementation("eager")
        with pytest.raises(AttachError, match="'eager' while the model is sharded"):
            model(ids)
    assert torch.equal(model(ids).logits, before)
    for weight in copied.parameters():
        weight.zero_()
    assert not copied(ids).logits.any(), "a copy computes with its own weights"


def test_a_fully_padded_row_and_weights_on_meta() -> None:
    model, ids = mild("llama"), tokens(12, rows=2)
    mask = torch.ones_like(ids)
    mask[1] = 0
    asked: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "output_logits": True}
    want = model.generate(ids[:1], attention_mask=mask[:1], **asked)
    cpu_offload(model)  # the weights are on meta between calls
    for placement in (FOUR, KeyCluster(page=4), Expert(page=4)):
        with shard(model, placement, shards=2):
            found = model.generate(ids, attention_mask=mask, return_dict_in_generate=True, **asked)
        assert torch.isfinite(torch.stack(found.logits)).all() and torch.equal(found.sequences[:1], want)


def test_a_child_of_a_fork_goes_on(tmp_path: Path) -> None:
    model, ids, step = mild("llama"), tokens(12), tokens(1, 1)
    with torch.no_grad(), shard(model, FOUR, shards=2, schedule=Schedule(resident=0.5, slack=0)) as run:
        model(ids, past_key_values=(cache := run.cache()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking where threads run
            child = os.fork()
        if not child:
            got = model(step, past_key_values=cache).logits
            torch.save(got, tmp_path / "child")
            os._exit(0)
        want = model(step, past_key_values=cache).logits
        end = time.monotonic() + 60
        while (done := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < end:
            time.sleep(0.05)
        if done == (0, 0):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert done[1] == 0 and torch.equal(torch.load(tmp_path / "child"), want)
