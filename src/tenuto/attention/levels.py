"""One softmax over several levels of keys, computed level by level.

A level is a set of logits and a way to sum values under weights. Levels that are disjoint sets of keys, put together
here, give the same as one softmax over their union; their shares of it are what a router would call its weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import dropout as drop

__all__ = ["LevelMix", "MKALevel", "mix"]


@dataclass(frozen=True, slots=True, eq=False)
class MKALevel:
    """Logits ``[..., queries, keys]``, ``-inf`` where a key is not seen, and what sums values under such weights."""

    name: str
    logits: torch.Tensor
    values: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class LevelMix:
    """The output ``[..., queries, head_dim]`` and each level's share of attention by name ``[..., queries]``."""

    out: torch.Tensor
    share: dict[str, torch.Tensor]


def mix(levels: list[MKALevel], dropout: float = 0.0) -> LevelMix:
    """The softmax over all levels: ``o = sum_l e^(lse_l - lse) o_l``. At least one key of each query must be seen.

    An empty level, or one of which nothing is seen, has no share. ``dropout`` is the chance of a weight to be left out.
    """
    levels = [level for level in levels if level.logits.shape[-1]]
    top = torch.stack([level.logits.detach().amax(-1) for level in levels]).amax(0)[..., None]
    out, total, mass = None, None, {}
    for level in levels:
        weights = (level.logits - top).exp()
        part, sums = level.values(drop(weights, dropout) if dropout else weights), weights.sum(-1)
        mass[level.name] = sums
        out = part if out is None else out + part
        total = sums if total is None else total + sums
    if out is None or total is None:
        raise ValueError("no levels")
    return LevelMix(out / total[..., None], {name: sums / total for name, sums in mass.items()})
