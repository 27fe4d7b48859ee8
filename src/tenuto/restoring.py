"""Change an instance attribute for a while, and put back exactly what was there: how both families attach."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

__all__ = ["attend_by", "put_until"]


def put_until(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an instance attribute until the stack unwinds; what was there (or was not) comes back exactly."""
    space = vars(owner)
    if name in space:
        stack.callback(setattr, owner, name, space[name])
    else:
        stack.callback(delattr, owner, name)
    setattr(owner, name, value)


def attend_by(stack: ExitStack, module: Any, name: str) -> None:
    """Have a transformers module attend by what is registered under ``name``, until the stack unwinds."""
    for config in {id(m.config): m.config for m in module.modules() if "config" in vars(m)}.values():
        put_until(stack, config, "_attn_implementation_internal", name)
