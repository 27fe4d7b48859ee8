"""Cache-Craft: how much of a chunk is run again depends on how much the chunk leans on those before it.

The paper stores, when a chunk is first computed in a context, how much attention its tokens pay inside the chunk and to
chunks before it, and from the two a *context impact*. A chunk that is reused has tokens run again in proportion to its
impact, those first that look outside most. The full algorithm was not at hand; what is here follows its idea, with

    inter_i, intra_i   attention that token i pays to earlier chunks and to its own, mean over heads, inter + intra = 1;
                       the first token of the sequence, on which attention falls back, counts for neither
    impact(chunk)      1 / (1 + exp(-a / b)), a and b the means of inter and intra over the chunk's tokens
    tokens(chunk)      overhead * tokens of all chunks, shared out by length(chunk) * impact(chunk)

What differs: the attention is not stored with the chunk but measured at the layer ``check`` of the present request, up
to which all tokens run, as CacheBlend does; so it is right for the chunks that do come before, and chunks need not have
been seen in a context. The paper also weighs how many of the chunks before are those of the time of storing, and stops
early where the question looks at few chunks; both are left out.

Source: Agarwal et al. 2025, Cache-Craft: Managing Chunk-Caches for Efficient Retrieval-Augmented Generation,
https://arxiv.org/abs/2502.15734
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch

from tenuto.reuse.policy import Assembler, Claim, Paper, Seen, check_fraction, check_layer

__all__ = ["CacheCraft", "attention_to_chunks"]

QUERIES = 256
"""Queries whose attention is held at a time."""


def attention_to_chunks(seen: Seen) -> torch.Tensor:
    """Attention each running token pays to each chunk, mean over heads ``[tokens, chunks]`` float32; the first token of
    the sequence gets none, the rest is scaled to add up to 1."""
    total, heads = seen.all_keys.shape[1], seen.all_keys.shape[0]
    numbers = torch.arange(total, device=seen.at.device)
    bounds = [*seen.starts, total]
    parts = []
    for at, queries in zip(seen.at.split(QUERIES), seen.queries.split(QUERIES, 1), strict=True):
        grouped = queries.reshape(heads, -1, queries.shape[-1])
        logits = (grouped @ seen.all_keys.mT).float().view(queries.shape[0], len(at), total) * seen.scaling
        weights = logits.masked_fill(numbers > at[:, None], float("-inf")).softmax(-1).mean(0)
        weights[:, 0] = 0
        parts.append(torch.stack([weights[:, a:b].sum(-1) for a, b in pairwise(bounds)], -1))
    mass = torch.cat(parts)
    return mass / mass.sum(-1, keepdim=True).clamp(min=1e-9)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheCraft(Assembler):
    """Those that look outside their chunk most, more of them in chunks that do.

    Attributes:
        overhead: fraction of the tokens behind the first chunk that run in all layers, 0 to 1.
        check: number of the layer in which attention is measured; all layers up to it run for all these tokens.

    Raises:
        PolicyError: a fraction or layer that is none.
    """

    overhead: float = 0.15
    check: int = 1

    paper: ClassVar[Paper] = Paper(
        title="Cache-Craft: Managing Chunk-Caches for Efficient Retrieval-Augmented Generation",
        authors="Shubham Agarwal, Sai Sundaresan, Subrata Mitra, Debabrata Mahapatra, Archit Gupta, Rounak Sharma, "
        "Nirmal Joshua Kapu, Tong Yu, Shiv Saini",
        year=2025,
        url="https://arxiv.org/abs/2502.15734",
    )
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim("redundant computation against prefix caching", "51 % less", "LLaMA-3-8B and 70B", "abstract"),
        Claim("throughput and latency", "1.6x, and 2x lower", "LLaMA-3-8B and 70B, continuous batching", "abstract"),
    )

    def __post_init__(self) -> None:
        check_fraction("overhead", self.overhead)
        check_layer(self.check)

    def choose(self, seen: Seen) -> torch.Tensor | None:
        if seen.layer != self.check:
            return None
        chunk = seen.chunk
        intra = attention_to_chunks(seen).gather(1, chunk[:, None])[:, 0]
        members = [(chunk == number).nonzero()[:, 0] for number in chunk.unique().tolist()]
        wanted = torch.stack([len(mine) * _impact(intra[mine]) for mine in members])
        most = round(self.overhead * len(seen.at))
        counts = _share(wanted, [len(mine) for mine in members], most)
        chosen = [mine[intra[mine].argsort(stable=True)[:count]] for mine, count in zip(members, counts, strict=True)]
        return torch.cat(chosen).sort().values


def _impact(intra: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid((1 - intra.mean()) / intra.mean().clamp(min=1e-6))


def _share(wanted: torch.Tensor, lengths: list[int], most: int) -> list[int]:
    """``most`` tokens in proportion to ``wanted``, no chunk more than it has, to the token."""
    counts, shares = [0] * len(lengths), wanted.tolist()
    for _ in range(most):  # the next one goes to the chunk that is furthest below its share
        open_ones = [number for number, length in enumerate(lengths) if counts[number] < length]
        counts[min(open_ones, key=lambda number: counts[number] / shares[number])] += 1
    return counts
