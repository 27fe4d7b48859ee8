"""What a peer really skipped: its own statistics are not asked, the executions of the real blocks are counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from itertools import groupby
from typing import Any

import torch

from tenuto.bench.diffusion.rows import Attachment
from tenuto.diffusion.flops import FlopCount, FlopMeter
from tenuto.diffusion.models import Block, find_denoisers
from tenuto.errors import AttachError
from tenuto.telemetry import Decision, Event, Telemetry
from tenuto.zoo.pipelines import ImageModel

__all__ = ["Put", "attachment", "tensor_bytes"]

Put = Callable[[Any], AbstractContextManager[Iterable[object]]]
"""Puts a peer on a pipeline inside a ``with`` block; yields the objects in which it holds its tensors."""

REFUSALS = (TypeError, ValueError, AttributeError, LookupError, AssertionError, RuntimeError, ImportError)
"""What a library raises on a model that it was not made for."""


def attachment(put: Put, estimate: Decision = "reuse") -> Attachment:
    """A peer as an attachment. Its book has one event per run of neighbouring blocks with the same fate.

    A block execution is counted when the block's own ``forward`` runs; it was wrapped before the peer came. Operations
    are those of the blocks that ran and of the denoiser around them (matrix products, measured once, uncached); a
    peer's own work, element by element, has none.

    Args:
        put: puts the peer on; estimate: what is recorded for a block that did not run.

    Raises:
        AttachError: the peer raised, on being put on or in the generation. The message holds its own words.
    """

    @contextmanager
    def counted(model: ImageModel, rehearse: Callable[[], None]) -> Iterator[Telemetry]:
        layout = find_denoisers(model.pipe)[0]
        tally = _Tally(layout.blocks, estimate)
        with ExitStack() as stack:
            for block in layout.blocks:
                _wrap(stack, block, tally)
            with _metered(layout.root, tally):
                rehearse()
            try:
                tally.holders = list(stack.enter_context(put(model.pipe)))
                handles = (
                    layout.root.register_forward_pre_hook(lambda *_: tally.ran.clear()),
                    layout.root.register_forward_hook(lambda *_: tally.close()),
                )
                for handle in handles:
                    stack.callback(handle.remove)
                yield tally.book
            except REFUSALS as error:
                raise AttachError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error

    return counted


class _Tally:
    """Which blocks ran in this call of the denoiser, and the book of all calls."""

    def __init__(self, blocks: tuple[Block, ...], estimate: Decision) -> None:
        self.blocks, self.estimate = blocks, estimate
        self.ran: set[int] = set()
        self.meter = FlopMeter()
        self.count: FlopCount | None = None
        self.book = Telemetry()
        self.holders: list[object] = []
        self.step = 0

    def close(self) -> None:
        """The denoiser has returned."""
        with self.meter.call(None) as count:
            for block in self.blocks:
                if block.index not in self.ran:
                    count.skip(block.index)
        whole, executed = count.totals()
        self.book.full_flops += whole
        self.book.flops += executed
        for ran, group in groupby(range(len(self.blocks)), key=self.ran.__contains__):
            span = list(group)
            self.book.record(
                Event(
                    generation=0,
                    step=self.step,
                    branch="both",
                    first_block=span[0],
                    last_block=span[-1],
                    decision="compute" if ran else self.estimate,
                )
            )
        self.book.hold(tensor_bytes(self.holders) - self.book.cache_bytes)
        self.step += 1


def _wrap(stack: ExitStack, block: Block, tally: _Tally) -> None:
    """Count the executions of a block until the stack unwinds."""
    module, original = block.module, block.module.forward

    @wraps(original)  # peers read its signature
    def forward(*args: Any, **kwargs: Any) -> Any:
        tally.ran.add(block.index)
        return tally.count.run(block.index, original, args, kwargs) if tally.count else original(*args, **kwargs)

    space = vars(module)
    undo = (setattr, module, "forward", space["forward"]) if "forward" in space else (delattr, module, "forward")
    stack.callback(*undo)
    module.forward = forward


@contextmanager
def _metered(root: torch.nn.Module, tally: _Tally) -> Iterator[None]:
    """Measure the operations of the calls made inside."""
    original = root.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with tally.meter.call(None) as tally.count:
            result = original(*args, **kwargs)
        tally.count = None
        return result

    root.forward = forward
    try:
        yield
    finally:
        del root.forward


def tensor_bytes(holders: Iterable[object]) -> int:
    """Bytes of all tensors that can be reached from these objects without passing through a module, each once."""
    stack, seen, sizes = list(holders), set[int](), dict[int, int]()
    while stack:
        item = stack.pop()
        if id(item) in seen or isinstance(item, (torch.nn.Module, type, str)):
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            storage = item.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        elif isinstance(item, dict):
            stack += item.values()
        elif isinstance(item, (list, tuple, set, frozenset)):
            stack += item
        elif not callable(item):
            stack += getattr(item, "__dict__", {}).values()
    return sum(sizes.values())
