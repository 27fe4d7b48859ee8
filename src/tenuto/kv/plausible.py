"""Whether what a file says of a cache can be true, for this model and policy: nothing read is believed before."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from tenuto.errors import InputError
from tenuto.kv.cache import KVCache
from tenuto.kv.layer import KVLayer
from tenuto.kv.models import LayerSpec

__all__ = ["check_cache", "check_codes", "check_facts", "digest"]


def digest(facts: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """A checksum over all that is saved: facts, and names, types, shapes and bytes of tensors."""
    found = hashlib.sha256(facts.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _right(said: bool, what: str) -> None:
    if not said:
        raise InputError(f"A saved cache is damaged: {what}. Save it again.")


def _counts(value: Any, most: int) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n <= most for n in value)


def check_facts(facts: dict[str, Any], cache: KVCache) -> None:
    """Refuse numbers that are none, or of another number of layers, heads or rows.

    Raises:
        InputError: naming what is wrong.
    """
    columns, seen = facts["columns"], facts["seen"]
    _right(type(columns) is int and 0 < columns < 2**31, "it has seen no number of tokens")
    _right(_counts(seen, columns) and bool(seen), "it does not say how many tokens each row has seen")
    _right(_counts([facts["since"]], columns), "more tokens came since its compression than there are")
    lengths = facts["lengths"]
    _right(isinstance(lengths, list) and len(lengths) == len(cache.engine), "it is of another number of layers")
    for spec, some in zip(cache.layout.cached, lengths, strict=True):
        _right(_counts(some, columns) and len(some) == len(seen) * spec.kv_heads, "a layer has another number of heads")
    others = len(cache.layers) - len([spec for spec in cache.layout.layers if spec.site])
    _right(_counts(facts["sliding"], columns) and len(facts["sliding"]) == others, "its sliding layers are others")


def check_codes(cache: KVCache, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse encoded entries in other dtypes and shapes than the codec writes.

    Raises:
        InputError: naming the tensor.
    """
    policy, codec = cache.policy, cache.policy.codec
    if codec is None:
        return
    spec = cache.layout.cached[0]
    page = torch.zeros(codec.page, spec.head_dim, dtype=cache.layout.dtype)
    classes = torch.ones(codec.page, dtype=torch.uint8) if policy.selector.classes > 1 else None
    queries = page.new_zeros(spec.heads // spec.kv_heads, 1, spec.head_dim) if codec.probes else None
    wanted = codec.encode(page, page, classes=classes, queries=queries)
    for name, tensor in tensors.items():
        before, found, part = name.partition("code.")
        if found and (like := wanted.get(part)) is not None:
            _right(tensor.dtype is like.dtype, f"{name} is of another dtype")
            each = classes is None and part != codec.shared and like.shape[0] == codec.page  # one for every entry
            _right(not each or len(tensor) == len(tensors[f"{before}index"]), f"{name} is of other entries")


def _tensor(tensor: Any, shape: tuple[int, ...], dtype: torch.dtype, what: str) -> None:
    fits = isinstance(tensor, torch.Tensor) and tuple(tensor.shape) == shape and tensor.dtype is dtype
    _right(fits, f"{what} have another shape or dtype than {list(shape)} {dtype}")
    _right(not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()), f"{what} are not finite")


def check_cache(cache: KVCache) -> None:
    """Refuse a cache that was filled with what this model and policy cannot have made.

    Raises:
        InputError: naming what is wrong.
    """
    rows, columns, batch = cache.sequences, cache.sequences.columns, len(cache.sequences.seen)
    _tensor(rows.positions, (batch, columns), torch.int32, "positions")
    _right(bool((rows.positions >= 0).all()), "positions below zero")
    _tensor(rows.tokens, (batch, columns if rows.tokens.numel() else 0), torch.int32, "token ids")
    if rows.padding is not None:
        _tensor(rows.padding, (batch, columns), torch.bool, "marks of padding")
    _right(rows.seen == rows.real.sum(-1).tolist(), "it counts other tokens than it marks")
    for spec, layer in zip(cache.layout.cached, cache.engine, strict=True):
        _check_layer(layer, spec, cache)
    sliding = [(spec, layer) for spec, layer in zip(cache.layout.layers, cache.layers, strict=True) if not spec.site]
    for spec, layer in sliding:
        tokens = layer.keys.shape[2]
        _right(layer.cumulative_length == columns and tokens <= columns, "a sliding layer has seen other tokens")
        for tensor in (layer.keys, layer.values):
            _tensor(tensor, (batch, spec.kv_heads, tokens, spec.head_dim), cache.layout.dtype, "sliding keys or values")


def _check_layer(layer: KVLayer, spec: LayerSpec, cache: KVCache) -> None:
    held, columns, features = layer.holding(), cache.sequences.columns, cache.policy.scorer.features
    for segment in range(len(held.store.lengths)):
        row, count = segment // spec.kv_heads, held.length(segment)
        index = held.column(segment, "index")
        _tensor(index, (count,), torch.int32, "token numbers")
        alone = (
            index is None
            or not len(index)
            or int(index.min()) >= (0 if held.column(segment, "weights") is None else -1)
        )
        _right(alone, "token numbers below zero")
        real: torch.Tensor = index[index >= 0] if index is not None else torch.zeros(0)
        ordered = bool((real[1:] >= real[:-1]).all()) and (not len(real) or int(real[-1]) < columns)
        _right(ordered and (not len(real) or int(real[0]) >= 0), "token numbers out of order or range")
        _right(cache.sequences.padding is None or bool(cache.sequences.real[row][real.long()].all()), "padding is held")
        for name in ("keys", "values"):
            part = held.all_keys(segment) if name == "keys" else held.all_values(segment)
            _tensor(part, (count, spec.head_dim), cache.layout.dtype, name)
        if (weights := held.column(segment, "weights")) is not None:
            _tensor(weights, (count,), torch.float32, "count weights")
            _right(bool((weights > 0).all()), "count weights below zero")
        if features:
            _tensor(held.column(segment, "state"), (count, features), torch.float32, "running state")
    for origin in held.origins.values():
        _tensor(origin, (len(origin), spec.head_dim), cache.layout.dtype, "turned keys")
    for probes in layer.probes:
        number = len(probes.index)
        _tensor(probes.index, (number,), torch.int64, "numbers of queries")
        _right(not number or 0 <= int(probes.index.min()) <= int(probes.index.max()) < columns, "queries out of range")
        _right(not number or probes.queries.shape[0] == spec.heads, "queries of another number of heads")
        if number:
            _tensor(probes.queries, (spec.heads, number, spec.head_dim), cache.layout.dtype, "queries")
