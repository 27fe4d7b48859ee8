"""What a skipped block returns in place of its output: a stand-in that notices when it is used.

The blocks of a skipped span hand a stand-in from one to the next, and the last returns the span's estimate. All is well
as long as nothing looks at a stand-in. A ControlNet collects what each of its blocks returned, a transformer adds the
residuals of a ControlNet between its blocks, a hook keeps hidden states: any operation on a stand-in is noted, so that
the call can be repeated with the span divided there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

__all__ = ["Passed", "found_in", "plain", "stand_in"]

READS = frozenset(
    {
        "item",
        "tolist",
        "numpy",
        "__bool__",
        "__float__",
        "__int__",
        "__index__",
        "__repr__",
        "__format__",
        "__contains__",
        "__array__",
        "equal",
        "allclose",
        "is_nonzero",
        "data_ptr",
        "untyped_storage",
        "storage",
    }
)
"""Functions that give no tensor, and yet look at values."""


class Passed(torch.Tensor):
    """A stand-in; ``note`` is called at every use that depends on its values."""

    note: Callable[[], None]
    block: int

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **options)
        if _looks(func, args, result):
            for passed in found_in((args, options)):
                passed.note()
        return result


def _looks(func: Any, args: tuple[Any, ...], result: Any) -> bool:
    """Whether the function's result depends on values."""
    name = getattr(func, "__name__", "")
    if not any(True for _ in _tensors(result)):
        return name in READS
    writes = name.endswith("_") and not name.endswith("__")  # add_, and not __get__
    return writes or not (args and result is args[0])  # x.to(its own dtype) is x itself


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def found_in(value: Any) -> Iterator[Passed]:
    """The stand-ins in tuples, lists and dictionaries."""
    return (tensor for tensor in _tensors(value) if isinstance(tensor, Passed))


def stand_in(tensor: torch.Tensor, block: int, note: Callable[[], None]) -> Passed:
    """A stand-in for the output of a block, by number, with the values of a tensor."""
    made = tensor.as_subclass(Passed)
    made.note, made.block = note, block
    return made


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """A stand-in's tensor, or the tensor itself; nothing is noted."""
    if not isinstance(tensor, Passed):
        return tensor
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(torch.Tensor)
