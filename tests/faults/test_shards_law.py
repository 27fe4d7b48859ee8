"""Differential law: a sharded model whose pages are all read is the plain model, however its cache is used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from test_sharded import PLACEMENTS, mild
from uses_drawn import drawn, uses

from tenuto.shards import Schedule, Summary, shard
from tenuto.testing.uses import Use, law_use

pytestmark = pytest.mark.usefixtures("one_thread")
MORE: list[dict[str, Any]] = [
    {},
    {"schedule": Schedule(resident=0.5, slack=0)},
    {"selector": Summary(keep=1.0, sinks=0, window=0)},
]
NAMES = ("llama", "olmoe", "gemma3")
MODELS = {name: (mild(name), mild(name)) for name in NAMES}


@drawn
@given(
    use=uses,
    name=st.sampled_from(NAMES),
    placement=st.sampled_from(PLACEMENTS),
    shards=st.integers(1, 4),
    more=st.sampled_from(MORE),
)
@example(Use(padding=(0, 2), calls=(("read", 8), ("crop", 8), ("read", 3))), "llama", PLACEMENTS[0], 2, MORE[0])
@example(Use(padding=(3,), right=True, calls=(("read", 8), ("copy", 1))), "olmoe", PLACEMENTS[3], 3, MORE[1])
def test_whatever_is_done_to_the_cache(use: Use, name: str, placement: Any, shards: int, more: dict[str, Any]) -> None:
    model, plain = MODELS[name]
    with shard(model, placement, shards=shards, **more) as run:
        law_use(use, model, plain, run.cache)


@torch.no_grad()
def test_the_law_sees_a_difference() -> None:
    model, plain = MODELS["llama"]
    use = Use(padding=(0,), calls=(("read", 40),))
    with shard(model, PLACEMENTS[0], shards=2, selector=Summary(keep=0.1, sinks=0, window=0)) as run:
        with pytest.raises(AssertionError, match="text at once"):
            law_use(use, model, plain, run.cache)
