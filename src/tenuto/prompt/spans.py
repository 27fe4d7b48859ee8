"""Spans of neighbouring tokens, and the split of a prompt into a given number of them at the least cost.

Costs are a table ``[most, tokens]``: row ``l - 1``, column ``t`` is the cost of the span of ``l`` tokens that begins at
token ``t``; infinite where it would pass the end.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from tenuto.errors import InputError

__all__ = ["EXACT", "Spans", "coherence", "even", "exact", "greedy", "split"]

EXACT = 2**13
"""Tokens up to which the best split is found; beyond, a greedy one, which costs less memory and time."""


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """Which tokens become one entry: span ``i`` is the tokens ``starts[i]`` to ``ends[i]``, both included.

    Spans are in order and do not overlap; tokens in none of them are dropped.

    Attributes:
        starts, ends: ``[spans]`` int64.
        weight: how much each token of the prompt counts beside others in its span, ``[tokens]`` float32; None: 1.

    All on the CPU, wherever the model is.
    """

    starts: torch.Tensor
    ends: torch.Tensor
    weight: torch.Tensor | None = None

    @classmethod
    def of_lengths(cls, lengths: Any) -> Spans:
        """Spans one after the other, from the first token on."""
        ends = torch.as_tensor(lengths, dtype=torch.int64).cumsum(0) - 1
        return cls(ends - torch.as_tensor(lengths, dtype=torch.int64) + 1, ends)

    @classmethod
    def of_tokens(cls, kept: torch.Tensor) -> Spans:
        """These tokens alone, by number; the others are dropped."""
        return cls(kept, kept)

    def __len__(self) -> int:
        return self.ends.shape[0]

    @property
    def sizes(self) -> torch.Tensor:
        """Tokens of each span ``[spans]`` int64."""
        return self.ends - self.starts + 1

    @property
    def counts(self) -> torch.Tensor:
        """The count weight of each span's entry ``[spans]`` float32: what its tokens weigh together, 1 for a single
        one; its size where all weigh 1."""
        if self.weight is None:
            return self.sizes.float()
        owner, token = self._members(self.weight.device)
        mass = torch.zeros(len(self)).index_add_(0, owner, self.weight[token])
        return torch.where(self.sizes == 1, 1.0, mass)

    @property
    def places(self) -> torch.Tensor:
        """The token at whose position each span's entry stands ``[spans]`` int64: its heaviest, the later of equal
        ones; the last span's is its last, since what follows goes on from there."""
        if self.weight is None or not len(self):
            return self.ends
        weight = self.weight.cpu()
        owner, token = self._members(weight.device)
        top = torch.zeros(len(self)).scatter_reduce_(0, owner, weight[token], "amax", include_self=False)
        heaviest = torch.where(weight[token] == top[owner], token, -1)
        places = torch.zeros_like(self.ends).scatter_reduce_(0, owner, heaviest, "amax", include_self=False)
        places[-1] = self.ends[-1]
        return places

    def mean(self, states: torch.Tensor) -> torch.Tensor:
        """The mean of every span: ``states [batch, tokens, channels]`` to ``[batch, spans, channels]``.

        Tokens that are spans by themselves stay bit for bit.
        """
        owner, token = self._members(states.device)
        weight = states.new_ones(states.shape[1], dtype=torch.float32) if self.weight is None else self.weight
        mass = weight.to(states.device)[token]
        share = mass / torch.zeros(len(self), device=mass.device).index_add_(0, owner, mass)[owner]
        mean = torch.zeros_like(states[:, : len(self)], dtype=torch.float32)
        mean.index_add_(1, owner, states[:, token].float() * share[:, None])
        alone = (self.sizes == 1).to(states.device)[:, None]
        return torch.where(alone, states[:, self.ends.to(states.device)], mean.to(states.dtype))

    def _members(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Span and number of every token that is in a span."""
        owner = torch.arange(len(self)).repeat_interleave(self.sizes)
        inside = torch.arange(len(owner)) - (self.sizes.cumsum(0) - self.sizes)[owner]
        return owner.to(device), (self.starts[owner] + inside).to(device)


def coherence(states: torch.Tensor, most: int, weight: torch.Tensor) -> torch.Tensor:
    """The cost of every span: the weight of its tokens times the variance of their states about their weighted mean.

    Where all weights are 1 that is size times variance. A token of little weight costs little beside one of much.

    Args:
        states: ``[tokens, channels]``; most: tokens of a span, at most; weight: ``[tokens]``, above 0.

    Returns:
        ``[most, tokens]`` float32.
    """
    tokens, weight = states.shape[0], weight.float()
    heavy = states.float() * weight[:, None]
    squares = (heavy * states.float()).sum(-1)
    total, size, mass = heavy, squares, weight
    table = torch.full((most, tokens), float("inf"), device=states.device)
    table[0] = 0.0
    for length in range(2, min(most, tokens) + 1):
        count, last = tokens - length + 1, slice(length - 1, tokens)
        total, size, mass = total[:count] + heavy[last], size[:count] + squares[last], mass[:count] + weight[last]
        table[length - 1, :count] = (size - total.pow(2).sum(-1) / mass).clamp(min=0)
    return table


def split(table: torch.Tensor, count: int) -> Spans:
    """The tokens in ``count`` spans: the best split up to :data:`EXACT` tokens, a greedy one beyond.

    Raises:
        InputError: so many spans of at most ``most`` tokens cannot be made of these tokens.
    """
    most, tokens = table.shape
    if not -(-tokens // most) <= count <= tokens:
        raise InputError(
            f"{tokens} tokens cannot become {count} spans of at most {most} tokens. Ask for {-(-tokens // most)} to "
            f"{tokens}, or for longer spans."
        )
    if count == tokens:
        return Spans.of_lengths([1] * tokens)
    costs = table.numpy()
    return Spans.of_lengths(exact(costs, count) if tokens <= EXACT else greedy(costs, count))


def exact(costs: np.ndarray[Any, Any], count: int) -> list[int]:
    """Lengths of the spans of the best split: a dynamic programme over spans, all ends of a span at once.

    ``best[j, t - j]`` is the least cost of the first ``t`` tokens in ``j`` spans. Time is spans x (tokens - spans) x
    most, memory 4 bytes x spans x (tokens - spans).
    """
    most, tokens = costs.shape
    ending = np.full((most, tokens), np.inf, dtype=np.float32)  # by length and last token
    for length in range(1, min(most, tokens) + 1):
        ending[length - 1, length - 1 :] = costs[length - 1, : tokens - length + 1]
    width = tokens - count + 1
    best = np.full((count + 1, most - 1 + width), np.inf, dtype=np.float32)
    best[0, most - 1] = 0.0
    found = np.empty((most, width), dtype=np.float32)
    for number in range(count):  # a span of 1 + row tokens, the last of which is number + column
        before = sliding_window_view(best[number], width)[::-1]
        np.add(before, ending[:, number : number + width], out=found)
        np.minimum.reduce(found, axis=0, out=best[number + 1, most - 1 :])
    lengths, column = [], width - 1
    for number in range(count - 1, -1, -1):
        before = best[number, column : column + most][::-1]
        longer = int((before + ending[:, number + column]).argmin())
        lengths.append(longer + 1)
        column -= longer
    return lengths[::-1]


def greedy(costs: np.ndarray[Any, Any], count: int) -> list[int]:
    """Lengths of the spans that are left where the two neighbours that cost least together are merged, again and again.

    Merging stops where no two neighbours fit into a span; should there still be too many, they are made even.
    """
    most, tokens = costs.shape
    size, after, before = [1] * tokens, [*range(1, tokens + 1)], [*range(-1, tokens - 1)]
    alive, left = [True] * tokens, tokens

    def offer(at: int) -> None:
        other = after[at]
        if other < tokens and size[at] + size[other] <= most:
            both = size[at] + size[other]
            rise = costs[both - 1, at] - costs[size[at] - 1, at] - costs[size[other] - 1, other]
            heapq.heappush(heap, (float(rise), at, both, other))

    heap: list[tuple[float, int, int, int]] = []
    for at in range(tokens):
        offer(at)
    while left > count and heap:
        _, at, both, other = heapq.heappop(heap)
        if not (alive[at] and after[at] == other and alive[other] and size[at] + size[other] == both):
            continue
        size[at], after[at], alive[other] = both, after[other], False
        if after[at] < tokens:
            before[after[at]] = at
        left -= 1
        offer(at)
        if before[at] >= 0:
            offer(before[at])
    lengths = [size[at] for at in range(tokens) if alive[at]]
    return lengths if left == count else even(tokens, count)


def even(tokens: int, count: int) -> list[int]:
    """Lengths of so many spans, as even as whole tokens allow."""
    return [tokens * (i + 1) // count - tokens * i // count for i in range(count)]
