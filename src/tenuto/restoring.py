"""Change an instance attribute for a while, and put back exactly what was there: how both families attach.

Several attachments may hold one attribute at once and end in any order: each is a layer, and a layer that ends is taken
out from between the others. A wrapper that somebody else has put on top meanwhile stays; ours below it lets calls pass.

A copy of the owner (``copy``, ``deepcopy``, ``pickle``) is plain: while a layer is on, the owner has a ``__getstate__``
of its own (Python asks the instance for it) that leaves all layers out.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import Any

__all__ = ["attend_by", "hook_until", "plain_attention", "put_until", "wrap_until"]

_STATE = "__getstate__"
_lock = threading.Lock()


class _Layer:
    """One attachment's value of an attribute; ``below`` is what was there before it."""

    def __init__(self, below: Any, there: bool) -> None:
        self.value: Any = None
        self.below, self.there, self.on = below, there, True

    def __deepcopy__(self, memo: Any) -> _Layer:
        return self


class _Layers:
    """The layers of one owner by attribute, lowest first; stands as its ``__getstate__`` while there are any."""

    def __init__(self, owner: Any) -> None:
        self.owner = weakref.ref(owner)
        self.named: dict[str, list[_Layer]] = {}

    def __call__(self) -> Any:
        """The owner's state as it would be without us."""
        owner = self.owner()
        own: Any = type(owner).__getstate__
        state = own(owner)
        if isinstance(state, dict):
            return self._plain(state)
        if isinstance(state, tuple) and state and isinstance(state[0], dict):  # an owner with slots besides
            return (self._plain(state[0]), *state[1:])
        return state

    def _plain(self, state: dict[str, Any]) -> dict[str, Any]:
        plain = {key: value for key, value in state.items() if key != _STATE}
        for name, layers in self.named.items():
            lowest = layers[0]
            if name in plain and plain[name] is layers[-1].value:
                plain.pop(name)
                if lowest.there:
                    plain[name] = lowest.below
        return plain


def _layers(owner: Any) -> _Layers:
    found = vars(owner).get(_STATE)
    if isinstance(found, _Layers):
        return found
    made = _Layers(owner)
    vars(owner)[_STATE] = made
    return made


def _push(stack: ExitStack, owner: Any, name: str) -> _Layer:
    space = vars(owner)
    layer = _Layer(space.get(name), name in space)
    _layers(owner).named.setdefault(name, []).append(layer)
    stack.callback(_take_out, owner, name, layer)
    return layer


def _take_out(owner: Any, name: str, layer: _Layer) -> None:
    space = vars(owner)
    all_layers = space[_STATE]
    layers = all_layers.named[name]
    place = layers.index(layer)
    layers.remove(layer)
    layer.on = False
    if place < len(layers):  # the layer above stands on what was below this one
        above = layers[place]
        if above.below is layer.value:
            above.below, above.there = layer.below, layer.there
    elif name in space and space[name] is layer.value:
        if layer.there:
            setattr(owner, name, layer.below)
        else:
            delattr(owner, name)
    if not layers:
        del all_layers.named[name]
    if not all_layers.named:
        del space[_STATE]


def put_until(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an instance attribute until the stack unwinds; what was there (or was not) comes back exactly."""
    layer = _push(stack, owner, name)
    layer.value = value
    setattr(owner, name, value)


def wrap_until(stack: ExitStack, owner: Any, name: str, wrap: Callable[[Callable[..., Any]], Any]) -> None:
    """Have the method ``name`` of an instance wrapped until the stack unwinds.

    Args:
        wrap: from what to call for the method below, to the wrapper. What is below may change while the wrapper is on:
            another attachment under it may end.
    """
    original = getattr(owner, name)
    layer = _push(stack, owner, name)

    @wraps(original)
    def below(*args: Any, **kwargs: Any) -> Any:
        return (layer.below if layer.there else original)(*args, **kwargs)

    wrapper = wrap(below)

    @wraps(original)
    def method(*args: Any, **kwargs: Any) -> Any:
        return (wrapper if layer.on else below)(*args, **kwargs)

    layer.value = method
    setattr(owner, name, method)


def hook_until(stack: ExitStack, module: Any, hook: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]) -> None:
    """Have a hook see what a torch module is called with, until the stack unwinds; it may give other arguments.

    Torch enters a hook first and that it takes keywords second (2.13): a call that another thread makes in between runs
    the hook without them. That call is not the one for whose sake the hook is put there, and passes by unseen.
    """

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        return None if kwargs is None else hook(module, args, kwargs)

    with _lock:  # torch numbers hooks without one, and two of one number are one hook
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    stack.callback(handle.remove)


class _Instead(str):
    """The name of an attention that stands in a configuration in place of ``plain``, while anybody holds it."""

    plain: Any
    there: bool
    holders: int

    def __deepcopy__(self, memo: Any) -> Any:
        return self.plain

    def __reduce__(self) -> Any:
        return _same, (self.plain,)


def _same(value: Any) -> Any:
    return value


_IMPLEMENTATION = "_attn_implementation_internal"


def plain_attention(config: Any) -> str:
    """The name of the attention that a configuration asks for when nothing is attached."""
    value = vars(config).get(_IMPLEMENTATION)
    while isinstance(value, _Instead):
        value = value.plain
    return value or "eager"


def attend_by(stack: ExitStack, module: Any, name: str) -> None:
    """Have a transformers module attend by what is registered under ``name``, until the stack unwinds.

    Models may share a configuration, and let go of it in any order; a copy of it is plain.
    """
    for config in {id(m.config): m.config for m in module.modules() if "config" in vars(m)}.values():
        with _lock:
            value = vars(config).get(_IMPLEMENTATION)
            if not isinstance(value, _Instead) or value != name:
                plain, there, value = value, _IMPLEMENTATION in vars(config), _Instead(name)
                value.plain, value.there, value.holders = plain, there, 0
            value.holders += 1
            setattr(config, _IMPLEMENTATION, value)
        stack.callback(_let_go, config, value)


def _let_go(config: Any, held: _Instead) -> None:
    with _lock:
        held.holders -= 1
        top = vars(config).get(_IMPLEMENTATION)
        if isinstance(top, _Instead) or not held.holders:  # the last to go puts back what was there before the first
            kept = _still_held(top if isinstance(top, _Instead) else held)
            if kept is None and not held.there:
                delattr(config, _IMPLEMENTATION)
            else:
                setattr(config, _IMPLEMENTATION, kept)


def _still_held(value: Any) -> Any:
    while isinstance(value, _Instead) and not value.holders:
        value = value.plain
    if isinstance(value, _Instead):
        value.plain = _still_held(value.plain)
    return value
