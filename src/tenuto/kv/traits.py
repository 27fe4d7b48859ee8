"""What a layer's code says of it: whether its keys can be turned (it is tried as well), and how often it attends."""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from tenuto.kv.rope import Rope

__all__ = ["attention_calls", "rope_of"]


def rope_of(decoder: nn.Module, attention: nn.Module, kind: str) -> Rope | None:
    """The rotary embedding of a layer if its frequencies are fixed and it pairs the halves, as most do; else None.

    Some models leave it out of some layers (SmolLM3, EXAONE 4, Cohere 2), under a condition in the code all layers
    share; where there is one, the layer is asked for keys at two positions.
    """
    rotary: Any = getattr(decoder, "rotary_emb", None)
    apply = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
    frequencies = getattr(rotary, f"{kind}_inv_freq", None)
    if frequencies is None:
        frequencies = getattr(rotary, "inv_freq", None)
    kinds = getattr(rotary, "rope_type", None)
    rope_type = kinds.get(kind) if isinstance(kinds, dict) else kinds
    if apply is None or frequencies is None or rope_type in ("dynamic", "longrope"):
        return None
    rope = Rope(frequencies.detach())
    width = 2 * frequencies.numel()
    x = torch.linspace(-1, 1, 2 * width, device=frequencies.device).view(1, 1, 2, width)
    angle = torch.tensor([[3.0, 5.0]], device=frequencies.device)[..., None] * frequencies.float()
    angle = torch.cat([angle, angle], -1)
    try:
        turned, _ = apply(x, x, angle.cos(), angle.sin())
    except (TypeError, ValueError, RuntimeError):  # another one of that name
        return None
    same = torch.allclose(turned[0, 0], rope.rotate(x[0, 0], torch.tensor([3, 5], device=x.device)), atol=1e-4)
    return rope if same and (_always(type(attention)) or _turns(attention, angle)) else None


def attention_calls(kind: type) -> int:
    """How often an attention calls the interface in one step: twice in differential attention, else once."""
    return max(len(_calls(kind, "attention_interface")[0]), 1)


def _always(kind: type) -> bool:
    """Whether the code of an attention applies rotary positions under no condition."""
    always, under_condition = _calls(kind, "apply_rotary_pos_emb")
    return bool(always) and not under_condition


@cache
def _calls(kind: type, name: str) -> tuple[list[ast.Call], list[ast.Call]]:
    """Calls of a function in the code of an attention: those that are always made, and those under a condition."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind.forward)))  # type: ignore[attr-defined]
    except (OSError, SyntaxError):
        return [], []
    nodes = list(ast.walk(tree))
    choices = [node for node in nodes if isinstance(node, ast.If | ast.IfExp)]
    conditional = {id(node) for choice in choices for node in ast.walk(choice)}
    calls = [node for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    named = [call for call in calls if call.func.id == name]  # type: ignore[attr-defined]
    return [call for call in named if id(call) not in conditional], [call for call in named if id(call) in conditional]


class _Keys(Exception):
    """The keys an attention has made."""


class _Catching(Cache):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(layers=[])

    def update(self, key_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        raise _Keys(key_states)


@torch.no_grad()
def _turns(attention: Any, angle: torch.Tensor) -> bool:
    """Whether an attention's keys depend on the rotary positions it is given; no if it cannot be asked."""
    weight = next(attention.parameters())
    if weight.is_meta:
        return False
    hidden = torch.ones(1, 2, attention.config.hidden_size, dtype=weight.dtype, device=weight.device)
    found = []
    for turn in (0.0, 1.0):
        cos, sin = ((angle * turn).cos().to(hidden), (angle * turn).sin().to(hidden))
        try:
            attention(
                hidden_states=hidden,
                position_embeddings=(cos, sin),
                attention_mask=None,
                past_key_values=_Catching(),
            )
        except _Keys as keys:
            found.append(keys.args[0])
        except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError):
            return False
    return len(found) == 2 and not torch.allclose(found[0], found[1])
