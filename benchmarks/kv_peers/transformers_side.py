"""transformers' own caches: DynamicCache, which is the uncompressed baseline, and QuantizedCache.

quanto quantises keys per channel and values per token, which is KIVI's layout and not its default; hqq knows no such
layout on this shape and quantises both per token. Groups of 64 must fill the layer: with quanto's keys the tokens are
a multiple of 64, and what is over comes in a second call and stays whole, as it would in use (``residual_length`` is
128).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from time import process_time
from typing import Any

import torch
from transformers import DynamicCache, QuantizedCache

from kv_peers.answering import Answers, Asked, Decoder, Request

__all__ = ["CACHES", "answer", "tensor_bytes"]

GROUP = 64
AXES = {"quanto": {"axis_key": -1, "axis_value": 0}, "hqq": {"axis_key": 1, "axis_value": 1}}


def _quantised(backend: str, bits: int) -> Callable[[Any], Any]:
    numbers = {"nbits": bits, "q_group_size": GROUP, "residual_length": 128}
    return lambda config: QuantizedCache(backend, config, **numbers, **AXES[backend])


CACHES: dict[str, Callable[[Any], Any]] = {
    "dynamic": lambda config: DynamicCache(config=config),
    "quanto_4bit": _quantised("quanto", 4),
    "quanto_2bit": _quantised("quanto", 2),
    "hqq_4bit": _quantised("hqq", 4),
    "hqq_2bit": _quantised("hqq", 2),
}


def tensor_bytes(holder: object) -> int:
    """Bytes of the tensors that a cache's layers reach, by their shapes; a quantised tensor is what it consists of."""
    if isinstance(holder, torch.Tensor):
        inner = [part for part in vars(holder).values() if isinstance(part, torch.Tensor)]
        return sum(map(tensor_bytes, inner)) if inner else holder.nbytes
    if isinstance(holder, dict):
        return sum(map(tensor_bytes, holder.values()))
    return sum(map(tensor_bytes, holder)) if isinstance(holder, (list, tuple)) else 0


@torch.no_grad()
def answer(model: Any, name: str, request: Request) -> Answers:
    """Put a context into a cache, then ask on copies of it."""
    cache, decoder, ids = CACHES[name](model.config), Decoder(request.ends), request.ids()
    whole = ids.shape[1] // GROUP * GROUP if name != "dynamic" else ids.shape[1]
    start = process_time()
    for part in ids.split([whole, ids.shape[1] - whole], 1):
        if part.shape[1]:
            model.model(input_ids=part, past_key_values=cache)
    prefill = process_time() - start
    held = tensor_bytes([vars(layer) for layer in cache.layers])

    def write(asked: Asked) -> list[int]:
        fork = copy.copy(cache)
        fork.layers = [copy.copy(layer) for layer in cache.layers]  # steps put new tensors in the place of old ones

        def step(new: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = model(input_ids=new, past_key_values=fork, logits_to_keep=1).logits[0, -1]
            return logits

        return decoder.write(step, asked)

    tokens = [write(asked) for asked in request.questions]
    return Answers(tokens=tokens, bytes_held=held, prefill_s=prefill, decode_ms=decoder.milliseconds)
