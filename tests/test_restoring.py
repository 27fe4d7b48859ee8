"""Attributes changed for a while: any order of ending, wrappers of others in between, and copies that know nothing."""

from __future__ import annotations

import copy
import itertools
import pickle
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch

from tenuto.restoring import hook_until, put_until, wrap_until


class Owner:
    def __init__(self, value: int = 1) -> None:
        self.value = value

    def ask(self, more: int = 0) -> int:
        """What it holds."""
        return self.value + more


class Slotted(Owner):
    __slots__ = ("side",)


class OwnState(Owner):
    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "kept": "by its own rule"}


def times(factor: int) -> Callable[[Callable[..., int]], Callable[..., int]]:
    def wrap(below: Callable[..., int]) -> Callable[..., int]:
        return lambda *args, **kwargs: factor * below(*args, **kwargs)

    return wrap


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_layers_end_in_any_order(order: tuple[int, ...]) -> None:
    owner, stacks, factors = Owner(), [ExitStack() for _ in range(3)], [2, 3, 5]
    for stack, factor in zip(stacks, factors, strict=True):
        wrap_until(stack, owner, "ask", times(factor))
    left = dict(enumerate(factors))
    for place in order:
        expected = 1
        for factor in left.values():
            expected *= factor
        assert owner.ask() == expected
        stacks[place].close()
        del left[place]
    assert vars(owner) == {"value": 1} and owner.ask(more=2) == 3


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_values_end_in_any_order(order: tuple[int, ...]) -> None:
    owner, stacks = Owner(), [ExitStack() for _ in range(3)]
    for place, stack in enumerate(stacks):
        put_until(stack, owner, "value", place + 10)
    left = [10, 11, 12]
    for place in order:
        assert owner.value == left[-1]
        stacks[place].close()
        left.remove(place + 10)
    assert vars(owner) == {"value": 1}


def test_a_wrapper_of_somebody_else_on_top_stays_and_ours_lets_calls_pass() -> None:
    owner, stack = Owner(), ExitStack()
    wrap_until(stack, owner, "ask", times(2))
    inner = owner.ask
    owner.ask = theirs = lambda more=0: 100 + inner(more)  # type: ignore[method-assign, misc]
    assert owner.ask() == 102
    stack.close()
    assert owner.ask() == 101 and vars(owner) == {"value": 1, "ask": theirs}


def test_a_wrapper_of_somebody_else_between_two_of_ours() -> None:
    owner, first, second = Owner(), ExitStack(), ExitStack()
    wrap_until(first, owner, "ask", times(2))
    inner = owner.ask
    owner.ask = theirs = lambda more=0: 100 + inner(more)  # type: ignore[method-assign, misc]
    wrap_until(second, owner, "ask", times(3))
    assert owner.ask() == 306
    first.close()
    assert owner.ask() == 303
    second.close()
    assert owner.ask() == 101 and vars(owner) == {"value": 1, "ask": theirs}


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@pytest.mark.parametrize("kind", [Owner, Slotted, OwnState])
def test_copies_are_plain(kind: type[Owner], duplicate: Callable[[Any], Any]) -> None:
    owner = kind()
    plain = vars(duplicate(owner)).keys()
    with ExitStack() as stack:
        wrap_until(stack, owner, "ask", times(2))
        put_until(stack, owner, "value", 7)
        wrap_until(stack, owner, "ask", times(3))
        made = duplicate(owner)
        made.value += 4
        assert (owner.ask(), made.ask()) == (42, 5), "the copy holds what was there, and asks itself"
    assert vars(made).keys() == plain and owner.ask() == 1
    assert vars(owner) == {"value": 1}


def test_what_was_there_before_is_what_a_copy_gets() -> None:
    owner = Owner()
    owner.ask = mine = len  # type: ignore[method-assign, assignment]
    with ExitStack() as stack:
        wrap_until(stack, owner, "ask", lambda below: lambda given: 2 * below(given))
        assert owner.ask("abc") == 6  # type: ignore[arg-type]
        assert copy.deepcopy(owner).ask is mine
    assert owner.ask is mine


def test_the_wrapper_says_what_it_wraps() -> None:
    owner = Owner()
    with ExitStack() as stack:
        wrap_until(stack, owner, "ask", times(2))
        assert owner.ask.__doc__ == "What it holds." and owner.ask.__name__ == "ask"


def test_a_hook_that_torch_has_noted_by_half_lets_the_call_pass() -> None:
    module, one, seen = torch.nn.Identity(), torch.ones(1), list[Any]()
    with ExitStack() as stack:
        hook_until(stack, module, lambda module, args, kwargs: seen.append(args) or ((args[0] + 1,), kwargs))
        assert module(one) == 2 and seen == [(one,)]
        (number,) = module._forward_pre_hooks_with_kwargs
        del module._forward_pre_hooks_with_kwargs[number]  # as another thread sees it while it is put there
        assert module(one) == 1 and seen == [(one,)]
    assert not module._forward_pre_hooks


def test_hooks_that_threads_put_there_at_once_are_as_many() -> None:
    module, stack, switching = torch.nn.Identity(), ExitStack(), sys.getswitchinterval()

    def put() -> None:
        for _ in range(200):
            hook_until(stack, module, lambda module, args, kwargs: None)

    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=put) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(switching)
    assert len(module._forward_pre_hooks) == 800
    stack.close()
    assert not module._forward_pre_hooks
