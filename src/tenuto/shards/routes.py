"""What the routers of a mixture of experts say, layer by layer, while a call runs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

__all__ = ["Routes"]


class Routes:
    """Attention of a layer runs before its router: what can be known then is what the router of the layer before said.
    What was said belongs to the thread that calls the model.

    Attributes:
        gates: the routers, by layer: the child ``gate`` of a layer's MLP that knows its ``num_experts``. Layers whose
            MLP is dense have none.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self.gates: dict[int, nn.Module] = {}
        for number, block in enumerate(blocks):
            gate = getattr(getattr(block, "mlp", None), "gate", None)
            if isinstance(gate, nn.Module) and isinstance(getattr(gate, "num_experts", None), int):
                self.gates[number] = gate
        self._here = threading.local()

    def before(self, number: int) -> torch.Tensor | None:
        """Probabilities ``[batch * tokens, experts]`` float32 of the router of the layer before; None: it has none."""
        return self._said().get(number - 1)

    def _said(self) -> dict[int, torch.Tensor]:
        said: dict[int, torch.Tensor] = vars(self._here).setdefault("said", {})
        return said

    def clear(self) -> None:
        """A call starts, or is over."""
        self._said().clear()

    def listen(self, stack: ExitStack) -> None:
        """Listen until the stack unwinds."""
        for number, gate in self.gates.items():

            def note(module: nn.Module, given: Any, result: Any, number: int = number) -> None:
                self._said()[number] = result[0].detach().float().softmax(-1)

            stack.callback(gate.register_forward_hook(note).remove)
