"""A dense language model as a mixture of experts: its MLPs' neurons dealt to experts, with a router that is fitted.

Every neuron belongs to one expert, so all experts together are the dense MLP, exactly; with ``top_k`` below the number
of experts only the chosen ones add up. Neurons with similar input weights share an expert (k-means, experts of equal
size); the router predicts from the hidden state how strongly each expert will fire, by ridge regression on a text, each
expert against its own mean and spread, so that all are used.

It is for measuring what routers know, not for speed: neurons of experts that are not chosen are computed and masked.

Source: Zhang et al. 2022, MoEfication, https://arxiv.org/abs/2110.01786
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tenuto.errors import ModelError

__all__ = ["ExpertRouter", "PartitionedMLP", "partition", "split_neurons"]

ROUNDS, RIDGE = 10, 1e-2


class ExpertRouter(nn.Module):
    """Linear; shaped as the routers of transformers: gives logits, weights and numbers of the chosen experts.

    Attributes:
        top_k, num_experts: experts chosen per token, and how many there are.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, top_k: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False)
        self.top_k, self.num_experts = top_k, len(weight)

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``hidden [tokens, channels]``; every chosen expert has weight 1."""
        logits = F.linear(hidden, self.weight, self.bias)
        chosen = logits.topk(self.top_k, -1).indices
        return logits, torch.ones_like(chosen, dtype=logits.dtype), chosen


class PartitionedMLP(nn.Module):
    """A gated MLP (``down(act(gate x) * up x)``) whose neurons are dealt to experts.

    Attributes:
        dense: the MLP; owner: expert of each neuron ``[neurons]``; gate: the router.
    """

    owner: torch.Tensor

    def __init__(self, dense: Any, owner: torch.Tensor, gate: ExpertRouter) -> None:
        super().__init__()
        self.dense, self.gate = dense, gate
        self.register_buffer("owner", owner)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[batch, tokens, channels]``."""
        _, weights, chosen = self.gate(hidden.reshape(-1, hidden.shape[-1]))
        active = weights.new_zeros(len(weights), self.gate.num_experts).scatter_(1, chosen, weights)
        fired = neurons(self.dense, hidden) * active[:, self.owner].view(*hidden.shape[:-1], -1)
        output: torch.Tensor = self.dense.down_proj(fired)
        return output

    def expert(self, number: int, hidden: torch.Tensor) -> torch.Tensor:
        """What one expert alone gives, from its own weights."""
        mine, dense = self.owner == number, self.dense
        fired = dense.act_fn(F.linear(hidden, dense.gate_proj.weight[mine])) * F.linear(
            hidden, dense.up_proj.weight[mine]
        )
        return F.linear(fired, dense.down_proj.weight[:, mine])


def neurons(dense: Any, hidden: torch.Tensor) -> torch.Tensor:
    """What the neurons of a gated MLP give ``[..., neurons]``."""
    fired: torch.Tensor = dense.act_fn(dense.gate_proj(hidden)) * dense.up_proj(hidden)
    return fired


def split_neurons(weight: torch.Tensor, experts: int) -> torch.Tensor:
    """Expert of each neuron ``[neurons]`` int64, all experts of equal size; ``weight [neurons, channels]``."""
    points = F.normalize(weight.float(), dim=-1)
    centres = points[torch.linspace(0, len(points) - 1, experts).long()]
    room = len(points) // experts
    for _ in range(ROUNDS):
        nearest = (points @ centres.T).argmax(-1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        centres = F.normalize(torch.where(sums.norm(dim=-1, keepdim=True) > 0, sums, centres), dim=-1)
    likeness = points @ centres.T
    owner, left = [-1] * len(points), [room] * experts
    for pair in likeness.flatten().argsort(descending=True).tolist():
        neuron, expert = divmod(pair, experts)
        if owner[neuron] < 0 and left[expert]:
            owner[neuron], left[expert] = expert, left[expert] - 1
    return torch.tensor(owner)


@torch.no_grad()
def partition(model: Any, ids: torch.Tensor, experts: int = 16, top_k: int = 8) -> None:
    """Turn the model's MLPs into mixtures of experts, in place.

    Args:
        model: of transformers, with gated MLPs (Llama and its kin).
        ids: text to fit the routers on, ``[1, tokens]``.
        experts: per layer, a divisor of the neurons; top_k: chosen per token.

    Raises:
        ModelError: MLPs of another kind, or numbers that do not fit.
    """
    blocks = list(model.model.layers)
    if not all(isinstance(getattr(block.mlp, "gate_proj", None), nn.Linear) for block in blocks):
        raise ModelError(f"{type(model).__name__} has no gated MLPs (gate_proj, up_proj, down_proj) to split.")
    width = blocks[0].mlp.gate_proj.out_features
    if width % experts or not 1 <= top_k <= experts:
        raise ModelError(f"experts={experts}, top_k={top_k}: give a divisor of {width} neurons, and 1 to experts.")
    inputs: dict[int, torch.Tensor] = {}
    with ExitStack() as stack:
        for number, block in enumerate(blocks):

            def note(module: Any, given: Any, number: int = number) -> None:
                inputs[number] = given[0][0].float()

            stack.callback(block.mlp.register_forward_pre_hook(note).remove)
        model(ids, use_cache=False, logits_to_keep=1)
    for number, block in enumerate(blocks):
        owner = split_neurons(block.mlp.gate_proj.weight, experts)
        weight, bias = _router(block.mlp, inputs.pop(number), owner, experts)
        gate = ExpertRouter(weight.to(model.dtype), bias.to(model.dtype), top_k)
        block.mlp = PartitionedMLP(block.mlp, owner, gate)


def _router(dense: Any, hidden: torch.Tensor, owner: torch.Tensor, experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight ``[experts, channels]`` and bias of the router, from hidden states ``[tokens, channels]``."""
    power = neurons(dense, hidden.to(dense.up_proj.weight.dtype)).float().square()
    strength = torch.zeros(len(hidden), experts).index_add_(1, owner, power).sqrt().clamp(min=1e-6).log()
    target = (strength - strength.mean(0)) / strength.std(0).clamp(min=1e-6)
    mean = hidden.mean(0)
    centred = hidden - mean
    square = centred.T @ centred
    square += torch.eye(len(square)) * RIDGE * square.diagonal().mean() * 10
    weight = torch.linalg.solve(square, centred.T @ target).T
    return weight, -weight @ mean
