"""Ranks that disagree: what differs is named on all of them, in one line, and nothing hangs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ranks import found, launch
from torch import nn

from tenuto.errors import AttachError
from tenuto.shards.agreement import Weights, disagreement, mark

SAID = {
    "rope": "weights and buffers",
    "trained": "weights and buffers",
    "configuration": "configuration",
    "recent": "but of the last 8 tokens",
    "measure": "measure",
    "tokens": "differ in tokens",
    "embeddings": "differ in tokens",
    "masks": "differ in attention masks",
    "positions": "differ in positions",
    "training": "differ in autocast or training modes",
    "seed": "the same seed",
    "caches": "differ in caches that hold other tokens",
    "changed": "differ in weights, configurations or adapters",
}


def test_both_ranks_name_what_differs(tmp_path: Path) -> None:
    for rank, said in enumerate(found(launch(2, "disagree", tmp_path), tmp_path)):
        for name, text in SAID.items():
            assert text in said[name] and "\n" not in said[name], (rank, name, said[name])
        assert said["slowest"] < 15, "nobody waits for a rank that has given up, which would take 20 s"
        assert said["gap"] <= 1e-5, "ranks that agree again go on"
        assert said["apart"] > 1e-3, "caches of refused calls are whole"


@pytest.mark.parametrize("length", [10, 5000])
def test_what_stands_behind_a_long_text_is_compared(length: int) -> None:
    said = [{"selector": "x" * length, "codec": codec} for codec in ("raw", "int8", "raw")]
    assert disagreement(0, [said[0], said[2]]) is None
    assert disagreement(0, said) == "Rank 0 attached with codec raw, and rank 1 with int8. Give all the same."
    long = [{"selector": "x" * length + end} for end in "ab"]
    told = disagreement(1, long)
    assert told is not None and "xb" in told and "xa" in told and len(told) < 400


def test_a_mark_covers_every_byte_and_is_taken_again_when_one_changes() -> None:
    torch.manual_seed(0)
    module = nn.Linear(300, 300)
    module.register_buffer("angle", torch.ones(3))
    weights = Weights(module)
    seen = [weights.mark()]
    with torch.no_grad():
        module.weight[17, 211] += 1e-3
        seen.append(weights.mark())
        module.angle[1] = 2
        seen.append(weights.mark())
        module.weight.data = module.weight.data.clone() * 2
        seen.append(weights.mark())
    assert len(set(seen)) == 4 and weights.mark() == seen[-1]
    assert mark(torch.zeros(4)) != mark(torch.zeros(2, 2)) != mark(torch.zeros(2, 2, dtype=torch.int32))
    with pytest.raises(AttachError, match="meta"):
        Weights(nn.Linear(2, 2, device="meta")).mark()
