"""Compositions: methods lend blocks, combinations fill what is open, and what cannot be is refused."""

from __future__ import annotations

import pytest
import torch
from views import scored_of

from tenuto.errors import PolicyError
from tenuto.kv.compress import plan
from tenuto.kv.policies.adakv import AdaKV, JointHeads
from tenuto.kv.policies.kivi import Groups, Kivi
from tenuto.kv.policies.knorm import KeyNorm, Knorm
from tenuto.kv.policies.snapkv import SnapKV
from tenuto.kv.policies.streaming_llm import StreamingLLM
from tenuto.kv.policy import Allocator, Combined, Every, KVPolicy, PrefillEnd, Scored, TopK


def test_a_method_lends_its_block() -> None:
    policy = KVPolicy(scorer=Knorm(), allocator=AdaKV(safeguard=0.5), codec=Kivi(bits=4))  # type: ignore[arg-type]
    assert policy == KVPolicy(scorer=KeyNorm(), allocator=JointHeads(0.5), codec=Groups(4, 32, 32))
    assert policy.floor == 0, "the windows of lenders stay behind"


def test_a_later_method_fills_what_is_open() -> None:
    both = Combined((Knorm(sinks=4), AdaKV())).compose()
    assert (both.scorer, both.allocator, both.selector) == (KeyNorm(), JointHeads(0.2), TopK(sinks=4))
    assert Combined((SnapKV(), Kivi())).compose() == KVPolicy(
        scorer=SnapKV().compose().scorer, selector=TopK(window=32), codec=Groups(2, 32, 32)
    )
    with pytest.raises(PolicyError, match="Knorm adds nothing to the methods before it"):
        Combined((SnapKV(), Knorm()))


def test_encoded_keys_cannot_be_turned() -> None:
    with pytest.raises(PolicyError, match="cannot be turned"):
        Combined((StreamingLLM(), Kivi()))


def test_triggers() -> None:
    assert (PrefillEnd().room("prefill", 9, False), PrefillEnd().room("decode", 9, True)) == (0, None)
    assert (Every(5).room("decode", 9, True), Every(5).room("decode", 9, False)) == (5, None)
    with pytest.raises(PolicyError, match="every=0"):
        Every(0)


def test_top_k_keeps_what_is_protected_and_the_older_of_equals() -> None:
    scored = scored_of([[5.0, 1.0, 1.0, 0.0], [2.0, 2.0, 2.0, 2.0]], protected=1)
    kept = TopK(window=1).select(scored, torch.tensor([3, 2]))
    assert kept.tolist() == [[1, 1, 0, 1], [1, 0, 0, 1]]


class Greedy(Allocator):
    """More than there is."""

    joint = True

    def allocate(self, layers: list[Scored], total: int) -> list[torch.Tensor]:  # type: ignore[override]
        return [torch.full((2,), total) for _ in layers]


def test_an_allocator_cannot_overdraw() -> None:
    with pytest.raises(PolicyError, match="Greedy gave out more entries than the budget of 4"):
        plan(KVPolicy(allocator=Greedy()), [scored_of([[1.0] * 5] * 2)], 4)
