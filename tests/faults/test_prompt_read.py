"""Reading a prompt belongs to one call: not to other threads, not to what was held before, not to an error."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest
import torch

import tenuto
from tenuto.errors import AttachError
from tenuto.kv.policy import KVPolicy
from tenuto.prompt.policies.semtoken import SemToken
from tenuto.prompt.read import read
from tenuto.testing.kv import TinyLM, tokens

pytestmark = pytest.mark.usefixtures("one_thread")
FULL, HALF = tenuto.MemoryBudget.keep(1.0), SemToken(ratio=0.5)


def test_threads_read_and_write_at_the_same_time() -> None:
    model, prompts = TinyLM(), [tokens(40 + 7 * seed, seed) for seed in range(3)]
    wrong = list[str]()
    with tenuto.attach(model, KVPolicy(), budget=FULL) as run:
        want = [read(run, ids, HALF).logits for ids in prompts]
        with torch.no_grad():
            plain = model(prompts[2]).logits

        def work(number: int) -> None:
            with torch.no_grad():
                for _ in range(4):
                    if number == 2:  # no prompt is read here
                        good = torch.equal(model(prompts[2]).logits, plain)
                    else:
                        good = torch.equal(read(run, prompts[number], HALF).logits, want[number])
                    wrong.extend([] if good else [f"thread {number}"])

        raised = list[Any]()
        threads = [threading.Thread(target=_caught(work, raised), args=(number,)) for number in range(3)]
        switching = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(switching)
    assert not wrong and not raised


def _caught(work: Any, raised: list[Any]) -> Any:
    def caught(number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 (the test looks at it)
            raised.append(error)

    return caught


@torch.no_grad()
def test_a_turn_that_was_padded_is_that_turn_without() -> None:
    model, turn, ids, after = TinyLM(), tokens(20), tokens(50, 1), tokens(1, 2)
    mask = torch.cat([torch.zeros(1, 6), torch.ones(1, 20)], 1).long()
    padded = torch.cat([torch.zeros(1, 6, dtype=torch.int64), turn], 1)
    with tenuto.attach(model, KVPolicy(), budget=FULL) as run:
        model(turn, past_key_values=(alone := run.cache()))
        want = read(run, ids, HALF, cache=alone)
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        model(padded, attention_mask=mask, position_ids=places, past_key_values=(cache := run.cache()))
        got = read(run, ids, HALF, cache=cache)
        assert (got.logits - want.logits).abs().max() <= 1e-4 * want.logits.abs().max()
        steps = []
        for prompt, pads in ((want, 0), (got, 6)):
            seen = torch.cat([torch.zeros(1, pads), torch.ones(1, 71)], 1).long()
            given = {"attention_mask": seen, "position_ids": torch.tensor([[70]])}
            steps.append(model(after, past_key_values=prompt.cache, **given).logits)
    assert (steps[0] - steps[1]).abs().max() <= 1e-4 * steps[0].abs().max()


def test_an_error_leaves_the_model_as_it_was() -> None:
    model, ids = TinyLM(), tokens(50)

    def interrupt(*given: Any) -> None:
        raise KeyboardInterrupt

    with torch.no_grad(), tenuto.attach(model, KVPolicy(), budget=FULL) as run:
        before = model(ids).logits
        handle, cache = model.model.layers[2].register_forward_pre_hook(interrupt), run.cache()
        with pytest.raises(KeyboardInterrupt):
            read(run, ids, HALF, cache=cache)
        handle.remove()
        assert not any(block._forward_pre_hooks for block in model.model.layers)
        assert torch.equal(model(ids).logits, before)
        with pytest.raises(AttachError, match="incomplete"):
            model(ids[:, :1], past_key_values=cache)


@pytest.mark.parametrize("hidden", [False, True])
def test_modes_and_hidden_states(hidden: bool) -> None:
    model, ids, after = TinyLM(), tokens(50), tokens(1, 1)
    with tenuto.attach(model, KVPolicy(), budget=FULL) as run, torch.no_grad():
        want = read(run, ids, HALF)
        more = model(after, past_key_values=want.cache).logits
        model.config.output_hidden_states = hidden
        with torch.inference_mode():
            got = read(run, ids, HALF)
        assert torch.equal(got.logits.clone(), want.logits)
        assert torch.equal(model(after, past_key_values=got.cache).logits, more)
