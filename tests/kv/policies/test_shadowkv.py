"""ShadowKV: landmarks and outliers by hand."""

from __future__ import annotations

import pytest
import torch

from tenuto.errors import PolicyError
from tenuto.kv.policies.shadowkv import Landmarks, ShadowKV


def test_landmarks_and_outliers_by_hand() -> None:
    index = Landmarks(page=2, pages=1, always=1)
    alike = index.summarise(torch.tensor([[[1.0, 0.0], [3.0, 0.0]]]))
    apart = index.summarise(torch.tensor([[[0.0, 2.0], [2.0, 0.0]]]))
    assert alike["landmark"].tolist() == [[2.0, 0.0]] and apart["landmark"].tolist() == [[1.0, 1.0]]
    torch.testing.assert_close(alike["cosine"], torch.tensor([1.0]))
    torch.testing.assert_close(apart["cosine"], torch.tensor([0.5**0.5]))
    both = {name: torch.stack([alike[name], apart[name]]) for name in alike}
    assert index.pinned(both).tolist() == [1], "no mean describes the second"
    shares = torch.tensor([[4.0, 2.0], [0.0, 3.0]]).softmax(-1).mean(0)  # 2*2, 2*1; 0, 3*1
    torch.testing.assert_close(index.score(torch.tensor([[2.0, 0.0], [0.0, 3.0]]), both, 1.0), shares)


def test_what_is_refused() -> None:
    with pytest.raises(PolicyError, match="zero or more"):
        ShadowKV(outliers=-1)
