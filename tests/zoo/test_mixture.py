"""A dense model as a mixture of experts: the same model while all experts add up."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tenuto.errors import ModelError
from tenuto.shards import Expert, shard
from tenuto.testing.kv import TinyLM, tokens
from tenuto.zoo.mixture import PartitionedMLP, partition, split_neurons

pytestmark = pytest.mark.usefixtures("one_thread")


def test_all_experts_are_the_dense_model() -> None:
    ids, plain, model = tokens(50), TinyLM(), TinyLM()
    partition(model, tokens(200, 3), experts=8, top_k=8)
    assert (model(ids).logits - plain(ids).logits).abs().max() <= 1e-5
    hidden = torch.randn(3, 64)
    for block, before in zip(model.model.layers, plain.model.layers, strict=True):
        mlp: Any = block.mlp
        assert isinstance(mlp, PartitionedMLP) and torch.bincount(mlp.owner).tolist() == [8] * 8
        together = sum(mlp.expert(number, hidden) for number in range(8))
        assert (together - before.mlp(hidden)).abs().max() <= 1e-5
    partition(other := TinyLM(), tokens(200, 3), experts=8, top_k=2)
    assert (other(ids).logits - plain(ids).logits).abs().max() > 0.1


def test_routers_know_which_experts_fire() -> None:
    model = TinyLM()
    partition(model, tokens(600, 3), experts=8, top_k=3)
    mlp: Any = model.model.layers[0].mlp
    seen: list[torch.Tensor] = []
    hook = mlp.register_forward_pre_hook(lambda module, given: seen.append(given[0][0]))
    model(tokens(200, 4))
    hook.remove()
    _, weights, chosen = mlp.gate(seen[0])
    assert chosen.shape == (200, 3) and weights.unique().tolist() == [1]
    truth = torch.stack([mlp.expert(number, seen[0]).norm(dim=-1) for number in range(8)], 1)
    picked = truth.gather(1, chosen).sum(-1) / truth.sum(-1)
    assert picked.mean() > 1.05 * 3 / 8, "more than by chance"
    assert torch.bincount(chosen[:, 0], minlength=8).max() < 100, "and not always the same one"


def test_equal_sizes_whatever_the_weights() -> None:
    assert torch.bincount(split_neurons(torch.ones(24, 4), 4)).tolist() == [6] * 4


def test_sharded_by_its_experts() -> None:
    model = TinyLM()
    partition(model, tokens(200, 3), experts=8, top_k=3)
    said = model.generate(tokens(40), max_new_tokens=12, do_sample=False)
    with shard(model, Expert(page=4), shards=4) as run:
        assert torch.equal(model.generate(tokens(40), max_new_tokens=12, do_sample=False), said)
        kinds = {kind for layer in run.cache().engine[1:] for t in layer.tables for kind in t.kind.tolist()}
        assert run.last is not None
        kinds = {kind for layer in run.last.engine[1:] for t in layer.tables for kind in t.kind.tolist()}
    assert len(kinds) > 4


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ModelError, match="divisor of 64"):
        partition(TinyLM(), tokens(20), experts=7)
