from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from tenuto.bench.attention.bits import bits_per_byte, held_windows
from tenuto.errors import InputError
from tenuto.train.minilm import SIZES, build
from tenuto.train.tokens import Tokens


class Even:
    """Every one of 16 tokens is as likely as the others, but for the one after token 3, which is 3 for sure."""

    device = torch.device("cpu")

    def __call__(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        logits = torch.zeros(*input_ids.shape, 16)
        logits[..., 3] += torch.where(input_ids == 3, 1000.0, 0.0)
        return SimpleNamespace(logits=logits)


def test_bits_per_byte_by_hand() -> None:
    windows = torch.tensor(
        [[1, 3, 3, 1, 2, 1, 1, 2, 1]]
    )  # 8 targets; that after the first 3 is free, the second 3's not
    windows[0, 3] = 3
    bytes_of = torch.arange(16)  # token i stands for i bytes
    sizes = [3, 3, 3, 2, 1, 1, 2, 1]
    losses = [4.0, 0.0, 0.0, 1000 / math.log(2), 4.0, 4.0, 4.0, 4.0]
    for context in (8, 4):
        told = bits_per_byte(Even(), windows, bytes_of, context)
        assert told.bytes == sum(sizes)
        assert told.value == pytest.approx(sum(losses) / sum(sizes), rel=1e-6)
        ends = [7, 8] if context == 8 else [4, 8]
        assert told.last == pytest.approx(sum(losses[e - 1] for e in ends) / sum(sizes[e - 1] for e in ends), rel=1e-6)


def test_every_context_predicts_the_same_bytes(little_text: Tokens) -> None:
    model = build("mha", SIZES["tiny"], little_text.pieces, seed=0).eval()
    windows = held_windows(little_text, 64, 4)
    assert windows.shape == (4, 65)
    told = {context: bits_per_byte(model, windows, little_text.bytes_of, context) for context in (16, 64)}
    assert told[16].bytes == told[64].bytes == int(little_text.bytes_of[windows[:, 1:]].sum())
    with torch.no_grad():
        logits = model(windows[:, :-1]).logits.log_softmax(-1)
    nats = -logits.gather(2, windows[:, 1:, None]).sum().item()
    assert told[64].value == pytest.approx(nats / math.log(2) / told[64].bytes, rel=1e-5)
    with pytest.raises(InputError, match="smaller size"):
        held_windows(little_text, 10**6, 1)
