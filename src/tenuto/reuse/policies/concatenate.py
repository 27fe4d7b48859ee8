"""Concatenate: put the caches of the chunks one after the other and compute nothing.

With ``rotate`` the keys of each chunk are turned to its place, which is what KVLink does with positions. KVLink also
fine-tunes the model and adds trained link tokens after each document; these are left out here, so no chunk has seen
another. Without ``rotate``, the naive baseline, the keys of all chunks stand at positions 0, 1, ... and overlap.

Source of the re-rotation: Yang et al. 2025, KVLink: Accelerating Large Language Models via Efficient KV Cache Reuse,
https://arxiv.org/abs/2502.16002
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tenuto.reuse.policy import Assembler, Claim, Paper, Seen

__all__ = ["Concatenate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Concatenate(Assembler):
    """Nothing is computed again.

    Attributes:
        rotate: whether keys are turned to their place in the sequence.
    """

    rotate: bool = True

    paper: ClassVar[Paper] = Paper(
        title="KVLink: Accelerating Large Language Models via Efficient KV Cache Reuse",
        authors="Jingbo Yang, Bairu Hou, Wei Wei, Yujia Bao, Shiyu Chang",
        year=2025,
        url="https://arxiv.org/abs/2502.16002",
    )
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim("accuracy of answers, after fine-tuning", "4 % higher on average", "seven datasets", "abstract"),
        Claim("time to the first token", "up to 96 % lower", "seven datasets", "abstract"),
    )
    computes: ClassVar[bool] = False

    @property
    def turns(self) -> bool:
        return self.rotate

    def choose(self, seen: Seen) -> None:
        return None
