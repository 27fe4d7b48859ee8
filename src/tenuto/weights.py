"""The bytes of weights as one short name each: all of them are hashed, none are sampled.

The hash is BLAKE3: whoever can publish weights cannot publish others of the same name, which a checksum such as xxHash
would not promise. It costs about 1 s per 4 GB on two cores; tensors are hashed side by side, those of an accelerator
are copied to the host one at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from blake3 import blake3
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from tenuto.errors import AttachError

__all__ = ["AT_ONCE", "digests", "join", "pieces"]

AT_ONCE = 1 << 20
"""Numbers that are rounded at a time: what stays in the processor's cache."""
MOST = 8
"""Threads that hash; memory is not read faster by more."""


def pieces(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The plain tensors that a value is made of, by name: of packed, quantised and wrapped weights their parts.

    Raises:
        AttachError: a tensor whose bytes are not here, or of a kind whose bytes cannot be had.
    """
    if isinstance(value, torch.Tensor):
        if is_traceable_wrapper_subclass(value):
            inner, told = value.__tensor_flatten__()
            yield f"{name}:{type(value).__name__}:{told!r}", torch.empty(0)
            for part in inner:
                yield from pieces(f"{name}.{part}", getattr(value, part))
        elif value.is_quantized:
            yield from _quantised(name, value)
        elif value.layout is not torch.strided or value.is_meta:
            raise AttachError(
                f"The weights {name} are {'not in memory (meta)' if value.is_meta else str(value.layout)}, so nothing "
                "can be kept under their name. Load the model without offloading, or attach no store."
            )
        else:
            yield name, value
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from pieces(f"{name}.{number}", part)
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from pieces(f"{name}.{key}", value[key])
    elif value is None or isinstance(value, bool | int | float | str | torch.dtype):
        yield f"{name}={value!r}", torch.empty(0)
    else:
        raise AttachError(
            f"The weights {name} are a {type(value).__name__}, whose bytes cannot be had, so nothing can be kept under "
            "their name. Attach no store."
        )


def _quantised(name: str, value: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    yield f"{name}:{value.dtype}:{value.qscheme()}", value.int_repr()
    if value.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        yield f"{name}.scale={value.q_scale()!r},{value.q_zero_point()}", torch.empty(0)
    else:
        yield f"{name}.scales@{value.q_per_channel_axis()}", value.q_per_channel_scales()
        yield f"{name}.zeros", value.q_per_channel_zero_points()


def digests(tensors: Sequence[torch.Tensor], *, rounded: bool = False) -> list[bytes]:
    """32 bytes for each tensor, over its shape, dtype and all of its bytes.

    Args:
        tensors: plain ones. rounded: take floats as bfloat16 and leave the dtype out, so that a model and its cast to
            half precision and back have the same.
    """
    with ThreadPoolExecutor(min(os.cpu_count() or 1, MOST)) as threads:
        return list(threads.map(lambda tensor: _digest(tensor, rounded), tensors))


@torch.no_grad()
def _digest(tensor: torch.Tensor, rounded: bool) -> bytes:
    rounded = rounded and tensor.is_floating_point()
    digest = blake3(f"{tuple(tensor.shape)}{'' if rounded else tensor.dtype}".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    for part in flat.split(AT_ONCE) if rounded else (flat,):
        data: Any = (part.to(torch.bfloat16) if rounded else part).view(torch.uint8).numpy()
        digest.update(data)
    return digest.digest()


def join(facts: str, named: Sequence[tuple[str, bytes]]) -> str:
    """32 hex digits over facts and over the digests of tensors with their names."""
    digest = blake3(len(facts.encode()).to_bytes(8, "little") + facts.encode())
    for name, mine in named:
        digest.update(len(name.encode()).to_bytes(8, "little") + name.encode() + mine)
    return digest.hexdigest(length=16)
