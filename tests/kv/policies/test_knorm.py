"""Knorm: minus the norm, in float32."""

from __future__ import annotations

import pytest
import torch
from views import view_of

from tenuto.errors import PolicyError
from tenuto.kv.policies.knorm import KeyNorm, Knorm


def test_the_score_is_minus_the_norm() -> None:
    keys = torch.tensor([[[3.0, 4.0], [0.0, 1.0]], [[6.0, 8.0], [0.0, 0.0]]])
    assert torch.equal(KeyNorm().score(view_of(keys)), torch.tensor([[-5.0, -1.0], [-10.0, 0.0]]))


def test_half_precision_makes_no_ties() -> None:
    keys = torch.tensor([[[16.0, 0.25], [16.0, 0.5]]], dtype=torch.bfloat16)
    first, second = KeyNorm().score(view_of(keys))[0]
    assert first > second


def test_what_is_refused() -> None:
    with pytest.raises(PolicyError, match="sinks=-1"):
        Knorm(sinks=-1)
