"""Concatenate: a chunk turned to its place is the chunk computed there alone; unturned it is not."""

from __future__ import annotations

import pytest
import torch
from reuse_kv import chunks, entries

from tenuto.reuse.policies.concatenate import Concatenate
from tenuto.testing.kv import TinyLM

pytestmark = pytest.mark.usefixtures("one_thread")


@torch.no_grad()
def test_turned_keys_are_keys_computed_at_the_place() -> None:
    model, parts = TinyLM(), chunks()
    start, third = parts[0].shape[1] + parts[1].shape[1], parts[2]
    span = slice(start, start + third.shape[1])
    there = model(third, position_ids=torch.arange(span.start, span.stop)[None], use_cache=True).past_key_values
    turned, naive = entries(model, Concatenate()), entries(model, Concatenate(rotate=False))
    for layer, mine, plain in zip(there.layers, turned, naive, strict=True):
        assert torch.allclose(mine[0][:, span], layer.keys[0], atol=1e-4)
        assert torch.allclose(mine[1][:, span], layer.values[0], atol=1e-4)
        assert not torch.allclose(plain[0][:, span], layer.keys[0], atol=0.1)
        assert torch.equal(plain[1], mine[1])
