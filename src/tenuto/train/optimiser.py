"""The optimiser of small trainings: Muon for the matrices of the layers, AdamW for everything else.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) makes each update of a matrix nearly orthogonal;
torch's own, with updates as large as AdamW's (Moonlight, https://arxiv.org/abs/2502.16982), so both take one rate.
Embeddings, norms, gates and stacked experts are AdamW's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["Optimiser"]

DECAY = 0.1
BETAS = (0.9, 0.95)


class Optimiser:
    """Steps both with one learning rate; state to be saved and loaded as one.

    Args:
        model: a decoder of transformers, whose ``nn.Linear`` within ``model.layers`` are Muon's.
        rate: the highest learning rate.
    """

    def __init__(self, model: Any, rate: float) -> None:
        linear = (module for module in model.model.layers.modules() if isinstance(module, nn.Linear))
        matrices = [module.weight for module in linear if module.weight.requires_grad]
        taken = {id(weight) for weight in matrices}
        rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
        groups: list[dict[str, Any]] = [  # matrices decay, vectors and scalars do not
            {"params": [p for p in rest if p.dim() >= 2], "weight_decay": DECAY},
            {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
        ]
        muon = torch.optim.Muon(matrices, lr=rate, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")
        self._both: tuple[Any, ...] = (muon, torch.optim.AdamW(groups, lr=rate, betas=BETAS))

    def step(self, rate: float) -> None:
        """Update the weights at this rate, and forget the gradients."""
        for one in self._both:
            for group in one.param_groups:
                group["lr"] = rate
            one.step()
            one.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """What :meth:`load_state_dict` takes."""
        return [one.state_dict() for one in self._both]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Go on from there."""
        for one, its in zip(self._both, state, strict=True):
            one.load_state_dict(its)
