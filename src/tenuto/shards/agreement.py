"""What must be the same on all ranks: what they attach with, and what every call is given.

Every rank computes tables and tokens by itself from what it was given. With other weights, another mask or another
sampling seed on one of them each goes on, and all answers are wrong without an error; so it is compared. What is
compared at a call is a few numbers, in one message of some dozen bytes, and what differs is named on all ranks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tenuto.errors import AttachError
from tenuto.shards.selector import Selector

__all__ = ["Weights", "disagreement", "given", "mark", "model_facts", "selector_fact"]

SHOWN = 100
"""Letters of a value in a message, from a little before the first that differs."""
NAMELESS = ("_name_or_path", "transformers_version", "torch_dtype")
"""Of a configuration, what may differ: where it was found, and who wrote it."""


def mark(*values: Any) -> int:
    """64 bits that are other ones for other tensors, texts or numbers."""
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            if value.numel():
                digest.update(value.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy().data)
        else:
            digest.update(repr(value).encode())
    return int.from_bytes(digest.digest()[:8], "little", signed=True)


class Weights:
    """The mark of all parameters and buffers of a module, in full: taken again only where one has changed."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._known: dict[str, tuple[Any, int]] = {}

    def mark(self) -> int:
        """64 bits over names, shapes, dtypes and every byte. It takes about a second for each GB the first time.

        Raises:
            AttachError: some have no bytes.
        """
        found = []
        for name, tensor in (*self.module.named_parameters(), *self.module.named_buffers()):
            if tensor.is_meta:
                raise AttachError(
                    f"{name} is on the meta device, so that ranks cannot compare their weights. Load the model in full "
                    "on every rank, without offloading."
                )
            version = None if tensor.is_inference() else tensor._version
            now = (tensor.data_ptr(), version, tensor.shape, tensor.dtype)
            if version is None or name not in self._known or self._known[name][0] != now:
                self._known[name] = now, mark(tensor)
            found.append((name, self._known[name][1]))
        return mark(found)


def model_facts(model: Any, decoder: nn.Module, weights: Weights) -> dict[str, str]:
    """What a model computes with, by name: kind, weights, configuration, adapters."""
    config = {key: value for key, value in decoder.config.to_dict().items() if key not in NAMELESS}  # type: ignore
    adapters = [
        (name, *(repr(getattr(module, trait, None)) for trait in ("scaling", "active_adapters", "disable_adapters")))
        for name, module in decoder.named_modules()
        if isinstance(getattr(module, "scaling", None), dict)  # as PEFT's layers have, one strength per adapter
    ]
    return {
        "model": type(model).__name__,
        "weights and buffers": f"{weights.mark() % 2**64:016x}",
        "configuration": json.dumps(config, sort_keys=True, default=str),
        "adapters": repr(adapters),
    }


def selector_fact(selector: Selector | None) -> str:
    """A selector with its numbers, and the contents of a profile that it goes by."""
    profile = getattr(selector, "profile", None)
    tensors = () if profile is None else sorted(profile.tensors.items())
    return f"{selector!r}" + (
        f" with profile {mark(*(x for pair in tensors for x in pair)) % 2**64:016x}" if tensors else ""
    )


def given(named: dict[str, Any], history: int, device: str, training: bool, rows_alike: bool) -> dict[str, int]:
    """A call in numbers, by what they stand for.

    Args:
        named: what the decoder was given; history: of its cache; rows_alike: whether ranks are given the same rows.
    """
    mode = (training, torch.is_autocast_enabled(device), str(torch.get_autocast_dtype(device)))
    found = {"caches that hold other tokens": history, "autocast or training modes": mark(mode)}
    if rows_alike:
        names = {
            "tokens": ("input_ids", "inputs_embeds"),
            "attention masks": ("attention_mask",),
            "positions": ("position_ids",),
        }
        found |= {name: mark(*(named.get(key) for key in keys)) for name, keys in names.items()}
    return found


LAST = ("weights and buffers", "configuration")
"""Named only where nothing else differs: another model differs in these too."""


def disagreement(rank: int, said: Sequence[dict[str, str]]) -> str | None:
    """The first thing in which another rank differs from this one, as a sentence; None: all say the same."""
    mine = said[rank]
    for other, theirs in enumerate(said):
        for name in sorted({*mine, *theirs}, key=lambda name: (LAST.index(name) if name in LAST else -1, name)):
            if mine.get(name) != theirs.get(name):
                a, b = _apart(mine.get(name, "nothing"), theirs.get(name, "nothing"))
                return f"Rank {rank} attached with {name} {a}, and rank {other} with {b}. Give all the same."
    return None


def _apart(a: str, b: str) -> tuple[str, str]:
    """The part of two texts in which they differ, short enough for a line."""
    same = next((at for at, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]), min(len(a), len(b)))
    start = max(same - SHOWN // 2, 0) if max(len(a), len(b)) > SHOWN else 0
    shown = []
    for text in (a, b):
        part = text[start : start + SHOWN]
        shown.append(("..." if start else "") + part + ("..." if start + SHOWN < len(text) else ""))
    return shown[0], shown[1]
