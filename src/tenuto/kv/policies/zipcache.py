"""ZipCache: salient tokens in 4 bits, the others in 2; salience is attention divided by how many queries could give it.

Added-up attention favours old tokens, which more queries see; the mean over the queries that see a token does not. A
few probe queries stand for all: the most recent ones and a random sample. Keys have one scale per channel over all
tokens encoded together; values one per token, after each channel is divided by the square root of its largest value, so
that few scales are needed.

What it does not do: an entry stays in the class in which it was encoded, so none is rounded twice (the released code
decodes and encodes again every 100 tokens); those encoded while decoding get the high bits. Of a budget below all
tokens, the least salient entries are evicted. The scale of a value is of its token and head, not of all heads.

Source: He et al. 2024, ZipCache: Accurate and Efficient KV Cache Quantization with Salient Token Identification,
section 4, https://arxiv.org/abs/2405.14256
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from tenuto.errors import PolicyError
from tenuto.kv.policies.kivi import rounded
from tenuto.kv.policies.mikv import Mixed, Split, TwoLevels
from tenuto.kv.policy import ALL, Claim, KVMethod, KVPolicy, Paper, Scorer, View

__all__ = ["NormalisedAttention", "Separable", "ZipCache", "sample"]


def sample(count: int, share: float) -> torch.Tensor:
    """Numbers of the probes among ``count`` queries, sorted: half of ``share`` the last ones, as many of the others at
    random, always the same for one ``count``."""
    half = -(-int(count * share) // 2)
    last = min(max(half, 1), count)
    others = torch.randperm(count - last, generator=torch.Generator().manual_seed(count))[:half]
    return torch.cat([others.sort().values, torch.arange(count - last, count)])


@dataclass(frozen=True, slots=True)
class NormalisedAttention(Scorer):
    """``sum_t A[t, i] / #{t that see i}`` over the probe queries t, averaged over the group."""

    share: float = 0.1
    probes: int = ALL

    def score(self, view: View) -> torch.Tensor:
        at = sample(len(view.query_index), self.share).to(view.query_index.device)
        probed = replace(
            view,
            queries=view.queries[:, at],
            query_index=view.query_index[at],
            query_positions=view.query_positions[at],
        )
        seen = (view.index[:, None] <= probed.query_index[:, None]).sum(1)
        return probed.attention().sum(2).mean(1) / seen.clamp(min=1)


@dataclass(frozen=True, slots=True)
class Separable(Mixed):
    """Keys per channel over the entries of a class that are encoded together; values per token, each channel first
    divided by the square root of its largest absolute value."""

    high: int = 4
    low: int = 2
    page: int = 100
    residual: int = 0
    scales: ClassVar[int] = 2
    channels: ClassVar[int] = 3

    def split(self, keys: torch.Tensor, values: torch.Tensor, bits: int, others: tuple[torch.Tensor, ...]) -> Split:
        key_codes, key_low, key_step = rounded(keys, 0, bits)
        largest = values.abs().amax(0)
        norm = torch.where(largest > 0, largest, torch.ones_like(largest)).sqrt()
        value_codes, value_low, value_step = rounded(values / norm, -1, bits)
        channels = torch.stack([key_low[0], key_step[0], norm])
        return key_codes, value_codes, torch.cat([value_low, value_step], -1), channels

    def keys_of(self, codes: torch.Tensor, scales: torch.Tensor, channels: torch.Tensor) -> torch.Tensor:
        return channels[:, 0] + codes * channels[:, 1]

    def values_of(self, codes: torch.Tensor, scales: torch.Tensor, channels: torch.Tensor) -> torch.Tensor:
        return (scales[:, :1].float() + codes * scales[:, 1:].float()) * channels[:, 2]


@dataclass(frozen=True, slots=True, kw_only=True)
class ZipCache(KVMethod):
    """Salient entries in more bits than the others.

    Attributes:
        salient: part of the entries that are salient, from 0 to 1.
        high: bits of salient entries: 2, 3, 4 or 8.
        low: bits of the others: 2, 3, 4 or 8.
        page: entries encoded at a time; up to so many recent ones are whole.
        probes: part of the queries that judge, above 0 and up to 1: half of them recent, half at random.
    """

    salient: float = 0.6
    high: int = 4
    low: int = 2
    page: int = 100
    probes: float = 0.1

    paper: ClassVar[Paper] = Paper(
        "ZipCache: Accurate and Efficient KV Cache Quantization with Salient Token Identification",
        "He, Zhang, Wu, Liu, Zhou, Zhuang",
        2024,
        "https://arxiv.org/abs/2405.14256",
    )
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim("size of the cache", "4.98x smaller, accuracy 0.38 % lower", "Mistral-7B, GSM8K", "abstract"),
        Claim("latency of prefill and of decoding", "37.3 % and 56.9 % lower", "LLaMA3-8B, 4,096 tokens", "abstract"),
    )
    sweep: ClassVar[tuple[str, ...]] = ("zipcache:high=8,low=4", "zipcache", "zipcache:salient=0.2,page=16")

    def __post_init__(self) -> None:
        if not 0 <= self.salient <= 1 or not {self.high, self.low} <= {2, 3, 4, 8} or self.low > self.high:
            raise PolicyError(
                f"zipcache: salient={self.salient}, high={self.high}, low={self.low}. salient must be from 0 to 1, "
                "high and low 2, 3, 4 or 8, low not above high."
            )
        if self.page < 1 or not 0 < self.probes <= 1:
            raise PolicyError(
                f"zipcache: page={self.page}, probes={self.probes}. page must be at least 1, probes above 0 "
                "and up to 1."
            )

    def compose(self) -> KVPolicy:
        return KVPolicy(
            scorer=NormalisedAttention(self.probes),
            selector=TwoLevels(self.salient),
            codec=Separable(self.high, self.low, self.page),
        )
