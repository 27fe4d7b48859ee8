"""StreamingLLM: sinks and recent tokens; the sinks stand directly before the recent ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from views import view_of

from tenuto.errors import PolicyError
from tenuto.kv.policies.streaming_llm import SinksClose, StreamingLLM
from tenuto.kv.policy import Original


def test_the_sinks_move_up_to_the_recent_tokens() -> None:
    """Kept: 0, 1 and 7, 8, 9 in one head, 0, 1 and 5, 6 in the other: the sinks belong at 5, 6 and at 3, 4."""
    view = view_of(torch.zeros(2, 5, 4))
    index = torch.tensor([[0, 1, 7, 8, 9], [-1, 0, 1, 5, 6]])
    view = replace(view, index=index, positions=index.clamp(min=0), held=index >= 0)
    assert SinksClose(2).shift(view).tolist() == [[5, 5], [3, 3]]


def test_without_sinks_or_by_wish_nothing_is_turned() -> None:
    assert StreamingLLM(contiguous=False).compose().positioner == Original()
    assert StreamingLLM(sinks=0).compose().positioner == Original()
    assert StreamingLLM().compose().positioner == SinksClose(4)


def test_what_is_refused() -> None:
    with pytest.raises(PolicyError, match="every at least 1"):
        StreamingLLM(every=0)
