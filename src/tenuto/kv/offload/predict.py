"""A later layer's queries, from an earlier layer's input: hidden states change little from one layer to the next.

The input of layer l goes through layer l + d's own norm, query projection and rotary embedding. The idea is InfiniGen's
(Lee et al. 2024, https://arxiv.org/abs/2406.19707), which uses a part of the projection; here it is the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tenuto.kv.rope import Rope

__all__ = ["QueryOf", "predictors"]


@dataclass(frozen=True, slots=True, eq=False)
class QueryOf:
    """What makes one layer's queries of its input: the modules, and the rotary embedding."""

    norm: nn.Module
    project: nn.Module
    head_norm: nn.Module | None
    head_dim: int
    rope: Rope

    @torch.no_grad()
    def __call__(self, hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """``[batch, heads, head_dim]`` from ``hidden [batch, width]`` and RoPE ``positions [batch]``."""
        queries = self.project(self.norm(hidden)).unflatten(-1, (-1, self.head_dim))
        queries = queries if self.head_norm is None else self.head_norm(queries)
        return self.rope.rotate(queries, positions[:, None].expand(queries.shape[:2]))


def predictors(blocks: list[nn.Module], ropes: list[Rope | None]) -> list[QueryOf | None]:
    """One per layer; None where the modules are not those of Llama, Mistral, Qwen and their like."""
    return [None if rope is None else _predictor(block, rope) for block, rope in zip(blocks, ropes, strict=True)]


def _predictor(block: nn.Module, rope: Rope) -> QueryOf | None:
    parts = dict(block.named_children())
    attention: Any = parts.get("self_attn")
    inside = dict(attention.named_children()) if attention is not None else {}
    norm, project, head_norm = parts.get("input_layernorm"), inside.get("q_proj"), inside.get("q_norm")
    if norm is None or project is None:
        return None
    weight: Any = getattr(head_norm, "weight", None)
    if head_norm is not None and (weight is None or weight.shape != (attention.head_dim,)):
        return None
    return QueryOf(norm, project, head_norm, attention.head_dim, rope)
