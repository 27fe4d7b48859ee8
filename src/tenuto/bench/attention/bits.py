"""Bits per byte of held-out text against context length, teacher-forced.

The same windows are read whole, in halves, in quarters: every context predicts the same tokens, so the numbers differ
by what the model makes of the context and by nothing else. Bytes are those of the original text.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from tenuto.errors import InputError
from tenuto.records.attention import Bits
from tenuto.train.tokens import Tokens

__all__ = ["bits_per_byte", "held_windows"]

AT_ONCE = 8192
"""Tokens in one call of the model, at most, but at least one row."""


def held_windows(text: Tokens, length: int, count: int) -> torch.Tensor:
    """Held-out token ids ``[windows, length + 1]``, int64: the first window of each document, then the second of each.

    Raises:
        InputError: no held-out document is that long.
    """
    spans = [
        (start, number)
        for number, document in enumerate(text.held)
        for start in range(0, len(document) - length, length)
    ]
    if not spans:
        longest = max(map(len, text.held), default=0)
        raise InputError(f"No held-out document has {length + 1} tokens, the longest {longest}. Use a smaller size.")
    return torch.stack([text.held[n][start : start + length + 1].long() for start, n in sorted(spans)[:count]])


def bits_per_byte(model: Any, windows: torch.Tensor, bytes_of: torch.Tensor, context: int) -> Bits:
    """Read ``windows`` ``[n, length + 1]`` in passes of ``context`` tokens, which divides ``length``."""
    inputs = windows[:, :-1].reshape(-1, context)
    targets = windows[:, 1:].reshape(-1, context)
    sizes = bytes_of[targets]
    losses = torch.cat([_losses(model, *pair) for pair in _calls(inputs, targets, context)])
    last = slice(context - context // 4, None)
    return Bits(
        context=context,
        value=_rate(losses, sizes),
        last=_rate(losses[:, last], sizes[:, last]),
        bytes=int(sizes.sum()),
    )


def _calls(inputs: torch.Tensor, targets: torch.Tensor, context: int) -> zip[tuple[torch.Tensor, torch.Tensor]]:
    rows = max(AT_ONCE // context, 1)
    return zip(inputs.split(rows), targets.split(rows), strict=True)


@torch.inference_mode()
def _losses(model: Any, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Nats per token ``[rows, context]``, on the processor."""
    logits = model(input_ids=inputs.to(model.device), use_cache=False).logits.float()
    loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets.to(model.device), reduction="none")
    return loss.cpu()


def _rate(losses: torch.Tensor, sizes: torch.Tensor) -> float:
    return float(losses.double().sum()) / math.log(2) / int(sizes.sum())
