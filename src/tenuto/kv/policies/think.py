"""ThinK: old keys lose the channels that matter least to the last queries; values and recent keys stay whole.

A channel contributes to logits as much as the queries and the keys have in it: its worth is the product of the two
energies. Every head gives up its own channels, and the others are stored without gaps, so the memory of keys really
shrinks; queries are cut to the same channels, and nothing is decoded.

What it does not do: it evicts nothing (``snapkv+think`` does both), and it cuts no values. Entries that are encoded
together, all of a prompt, share their channels. Unless decoding compresses too, decoded keys stay whole until the next
prefill.

Source: Xu et al. 2024, ThinK: Thinner Key Cache by Query-Driven Pruning, section 3, https://arxiv.org/abs/2407.21018
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from tenuto.errors import PolicyError
from tenuto.kv.policies.kivi import pack, unpack
from tenuto.kv.policy import Claim, Code, Codec, KVMethod, KVPolicy, Paper

__all__ = ["ThinK", "ThinKeys"]

GROUPS = 2
"""Groups of entries up to which all their channels are multiplied with all keys, which is dearer than one product."""


@dataclass(frozen=True, slots=True)
class ThinKeys(Codec):
    """The part ``keep`` of the key channels c of largest ``|Q[:, c]|² |K[:, c]|²``, over the last ``probes`` queries of
    the group and the keys encoded together.

    A code holds ``keys [entries, kept]`` and ``values [entries, head_dim]`` in the model's dtype; ``mask [groups,
    head_dim / 8]``, a bit per channel; ``group [entries]`` int32: entries that were encoded together are a group.
    """

    keep: float = 0.6
    page: int = 32
    residual: int = 32
    probes: int = 32
    shared: ClassVar[str] = "mask"

    def kept(self, head_dim: int) -> int:
        """Channels kept of so many, at least one."""
        return max(round(self.keep * head_dim), 1)

    def check(self, head_dim: int) -> None:
        if head_dim % 8:
            raise PolicyError(f"think needs a head size divisible by 8, and this model's is {head_dim}.")

    def entry_bytes(self, head_dim: int, itemsize: int) -> float:
        return (self.kept(head_dim) + head_dim) * itemsize + 4

    def page_bytes(self, head_dim: int, itemsize: int) -> float:
        return head_dim / 8

    def encode(
        self, keys: torch.Tensor, values: torch.Tensor, *, classes: torch.Tensor | None, queries: torch.Tensor | None
    ) -> Code:
        energy = keys.float().square().sum(0)
        if queries is not None:
            energy = energy * queries.float().square().sum((0, 1))
        best = energy.argsort(descending=True, stable=True)[: self.kept(keys.shape[1])]
        mask = torch.zeros_like(energy, dtype=torch.uint8).index_fill(0, best, 1)
        return {
            "keys": keys[:, mask.bool()],
            "values": values.clone(),
            "mask": pack(mask[None], 1),
            "group": torch.zeros(len(keys), dtype=torch.int32, device=keys.device),
        }

    def channels(self, code: Code, groups: torch.Tensor) -> torch.Tensor:
        """The channels of some groups, ``[groups, kept]`` int64, sorted."""
        return self._channels(code["mask"], code["keys"].shape[1]).index_select(0, groups)

    @staticmethod
    def _channels(mask: torch.Tensor, kept: int) -> torch.Tensor:
        """The same of masks ``[groups, head_dim / 8]``, without a read back to the host: how many they are is known."""
        return unpack(mask, 1).argsort(dim=-1, descending=True, stable=True)[:, :kept]

    def keys(self, code: Code, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        thin, channels = code["keys"][start:stop], self.channels(code, code["group"][start:stop])
        return thin.new_zeros(len(thin), code["values"].shape[1]).scatter_(1, channels, thin).to(dtype)

    def values(self, code: Code, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        return code["values"][start:stop].to(dtype)

    def logits(self, codes: Sequence[Code], query: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Queries are cut to the channels of every group, and each entry takes the product of its own group's.

        Entries are decoded where there are more than :data:`GROUPS` groups.
        """
        groups = len(codes[0]["mask"])
        if groups > GROUPS or any(len(code["mask"]) != groups for code in codes):
            return Codec.logits(self, codes, query, start, stop)
        thin = torch.stack([code["keys"][start:stop] for code in codes])
        (heads, entries, kept), queries = thin.shape, query.shape[1]
        channels = self._channels(torch.cat([code["mask"] for code in codes]), kept)
        wide = query[:, None].expand(-1, groups, -1, -1).flatten(0, 1)
        cut = wide.gather(2, channels[:, None].expand(-1, queries, -1)).view(heads, groups * queries, kept)
        found = (cut @ thin.mT).view(heads, groups, queries, entries)
        if groups == 1:
            return found[:, 0]
        own = torch.stack([code["group"][start:stop] for code in codes]).long()
        return found.gather(1, own[:, None, None].expand(-1, 1, queries, -1))[:, 0]

    def mix(self, codes: Sequence[Code], attention: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        values = torch.stack([code["values"][start:stop] for code in codes])
        return attention @ values.to(attention.dtype)

    def take(self, code: Code, index: torch.Tensor) -> Code:
        groups, group = code["group"][index].unique_consecutive(return_inverse=True)
        taken = {"keys": code["keys"][index], "values": code["values"][index]}
        return taken | {"mask": code["mask"][groups], "group": group.to(torch.int32)}

    def join(self, first: Code, second: Code) -> Code:
        moved = second | {"group": second["group"] + len(first["mask"])}
        return {name: torch.cat([part, moved[name]]) for name, part in first.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinK(KVMethod):
    """Fewer channels of old keys.

    Attributes:
        keep: fraction of the key channels kept, in (0, 1].
        window: last tokens whose queries judge, and whose keys are always whole; as many are encoded at a time.
    """

    keep: float = 0.6
    window: int = 32

    paper: ClassVar[Paper] = Paper(
        "ThinK: Thinner Key Cache by Query-Driven Pruning",
        "Xu, Jie, Dong, Wang, Lu, Zhou, Saha, Xiong, Sahoo",
        2024,
        "https://arxiv.org/abs/2407.21018",
    )
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim("memory of the cache, on top of eviction", "over 20 % less", "LLaMA3 and Mistral", "abstract"),
    )
    sweep: ClassVar[tuple[str, ...]] = ("think", "think:keep=0.5", "think:keep=0.4,window=16")

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1 or self.window < 1:
            raise PolicyError(
                f"think: keep={self.keep}, window={self.window}. keep must be above 0 and up to 1, window at least 1."
            )

    def compose(self) -> KVPolicy:
        return KVPolicy(codec=ThinKeys(self.keep, self.window, self.window, self.window))
