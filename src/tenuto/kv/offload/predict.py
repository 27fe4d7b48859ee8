"""A later layer's queries, from an earlier layer's input: hidden states change little from one layer to the next.

The input of layer l goes through layer l + d's own norm, query projection and rotary embedding. The idea is InfiniGen's
(Lee et al. 2024, https://arxiv.org/abs/2406.19707), which uses a part of the projection; here it is the whole. What d
layers add to the hidden states is alike from token to token, so what the last predictions lacked of the true queries is
added to the next one, before RoPE (a running mean; our own addition).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tenuto.kv.rope import Rope

__all__ = ["Guess", "QueryOf", "predictors"]

SMOOTHING = 0.25
"""Weight of the last prediction's error in the running mean."""


@dataclass(frozen=True, slots=True, eq=False)
class QueryOf:
    """What makes one layer's queries of its input: the modules, and the rotary embedding."""

    norm: nn.Module
    project: nn.Module
    head_norm: nn.Module | None
    head_dim: int
    rope: Rope

    @torch.no_grad()
    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[batch, heads, head_dim]`` float32 before RoPE, from ``hidden [batch, width]``."""
        queries: torch.Tensor = self.project(self.norm(hidden)).unflatten(-1, (-1, self.head_dim))
        queries = queries if self.head_norm is None else self.head_norm(queries)
        return queries.float()


class Guess:
    """Predictions of one row and layer, and what they have lacked so far.

    Attributes:
        raw: the last prediction ``[heads, head_dim]`` before RoPE, None once its truth is known; lacked: running mean.
    """

    def __init__(self) -> None:
        self.raw: torch.Tensor | None = None
        self.lacked: torch.Tensor | None = None

    def correct(self, raw: torch.Tensor) -> torch.Tensor:
        """A prediction with what the others lacked added; both before RoPE."""
        self.raw = raw
        return raw if self.lacked is None else raw + self.lacked

    @torch.no_grad()
    def learn(self, query: torch.Tensor, position: int, rope: Rope) -> None:
        """The true queries have come, ``[heads, head_dim]`` after RoPE at ``position``."""
        if self.raw is None:
            return
        back = torch.full(query.shape[:1], -position, device=query.device)
        error = rope.rotate(query.float(), back) - self.raw
        self.lacked = SMOOTHING * error if self.lacked is None else self.lacked + SMOOTHING * (error - self.lacked)
        self.raw = None

    def copied(self) -> Guess:
        """A copy."""
        other = Guess()
        other.raw, other.lacked = self.raw, self.lacked
        return other

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is held, by name."""
        named = {"raw": self.raw, "lacked": self.lacked}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


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
