"""A cache in a file: safetensors, all else as JSON in the header. Written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tenuto.errors import InputError
from tenuto.kv.cache import KVCache
from tenuto.kv.compress import Probes
from tenuto.kv.entries import Encoded, Held, Store
from tenuto.kv.layer import KVLayer
from tenuto.kv.plausible import check_cache, check_codes, check_facts, digest
from tenuto.kv.step import Phase
from tenuto.kv.view import Entries

__all__ = ["load", "save"]

FORMAT = "tenuto-kv-4"
FOREIGN = (KeyError, ValueError, TypeError, IndexError, AttributeError, RuntimeError)
"""What content that does not fit together runs into on its way into a cache."""


def save(cache: KVCache, path: Path | str, mark: str) -> None:
    """Write the cache; ``mark`` is the fingerprint of its model.

    Raises:
        InputError: the cache is empty or incomplete, or the file cannot be written.
    """
    if cache.phase is not Phase.READY:
        raise InputError("An error interrupted the model in mid-step: this cache is incomplete, and is not saved.")
    if not (shared := cache.sequences).columns:
        raise InputError("The cache is empty: run the model on a prompt before saving.")
    facts: dict[str, Any] = {
        "model": mark,
        "policy": repr(cache.policy),
        "columns": shared.columns,
        "seen": shared.seen,
        "since": cache.since,
        "lengths": [layer.held.store.lengths if layer.held else [] for layer in cache.engine],
        "sliding": [layer.cumulative_length for layer in cache.layers if not isinstance(layer, KVLayer)],
    }
    tensors = {name: tensor.contiguous().clone() for name, tensor in _exact(cache).items()}
    target = Path(path)
    try:
        handle, draft = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".part")
        os.close(handle)
        try:
            text = json.dumps(facts)
            save_file(tensors, draft, metadata={"format": FORMAT, "facts": text, "digest": digest(text, tensors)})
            os.replace(draft, target)
        finally:
            Path(draft).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"The cache cannot be written to {target}: {error.strerror or error}.") from error


def _exact(cache: KVCache) -> dict[str, torch.Tensor]:
    """The tensors of a cache, without slots that hold nothing yet, with pages that are out of memory."""
    named = {name: tensor for name, tensor in cache.tensors().items() if not {"paged", "layout"} & set(name.split("."))}
    for number, layer in enumerate(cache.engine):
        if layer.held is not None:
            named |= {f"{number}.{name}": tensor for name, tensor in layer.held.store.exact().items()}
        if layer.paged is not None:
            named |= {f"{number}.paged.{name}": tensor for name, tensor in layer.paged.saved().items()}
    return named


def load(cache: KVCache, path: Path | str, mark: str, device: torch.device) -> KVCache:
    """Fill an empty cache from a file.

    Raises:
        InputError: no such file, a damaged one, or the cache of another model or policy.
    """
    try:
        with safe_open(str(path), "pt", device=str(device)) as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        if header.get("format") != FORMAT:
            raise InputError(f"{path} is no saved cache. Give a file that was written by run.save().")
        if header.get("digest") != digest(header["facts"], tensors):
            raise InputError(f"{path} is damaged, or was changed after it was saved. Save it again.")
        facts = json.loads(header["facts"])
        if not isinstance(facts, dict):
            raise InputError(f"{path} does not say what it holds. Save it again.")
        if facts["model"] != mark:
            raise InputError(f"{path} was saved with another model ({facts['model']}, this one is {mark}).")
        if facts["policy"] != repr(cache.policy):
            raise InputError(f"{path} was saved under another policy: {facts['policy']}. Attach that one.")
        check_facts(facts, cache)
        check_codes(cache, tensors)
        _fill(cache, facts, tensors)
        check_cache(cache)
    except (OSError, SafetensorError, RecursionError, *FOREIGN) as error:
        said = str(error).split("\n")[0][:200] or type(error).__name__
        raise InputError(f"{path} cannot be read as a saved cache ({said}). Save it again.") from error
    return cache


def _fill(cache: KVCache, facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    shared = cache.sequences
    shared.columns, shared.seen, cache.since = facts["columns"], facts["seen"], facts["since"]
    shared.positions, shared.tokens = tensors["positions"], tensors["tokens"]
    shared.padding = tensors.get("padding")
    for number, layer in enumerate(cache.engine):
        mine = {k.removeprefix(f"{number}."): v for k, v in tensors.items() if k.startswith(f"{number}.")}
        _fill_layer(layer, mine, facts["lengths"][number], len(shared.seen))
    others = (layer for layer in cache.layers if not isinstance(layer, KVLayer))
    for number, (layer, length) in enumerate(zip(others, facts["sliding"], strict=True)):
        keys, values = tensors[f"sliding.{2 * number}"], tensors[f"sliding.{2 * number + 1}"]
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values, layer.cumulative_length = keys, values, length


def _fill_layer(layer: KVLayer, named: dict[str, torch.Tensor], lengths: list[int], rows: int) -> None:
    def parts(name: str) -> list[Any]:
        return list(named[name].split(lengths)) if name in named else [None] * len(lengths)

    names = ("keys", "values", "index", "weights", "state")
    entries = [Entries(*columns) for columns in zip(*map(parts, names), strict=True)]
    store = Store(rows, len(lengths) // rows, layer.policy.scorer.features, entries)
    encoded: list[Encoded | None] = []
    for segment in range(len(lengths)):
        mine = {k.removeprefix(f"{segment}."): v for k, v in named.items() if k.startswith(f"{segment}.")}
        code = {k.removeprefix("code."): v for k, v in mine.items() if k.startswith("code.")}
        encoded.append(Encoded(code, mine["index"], mine.get("weights"), mine.get("state")) if code else None)
    origins = {s: named[f"{s}.origin"] for s in range(len(lengths)) if f"{s}.origin" in named}
    layer.held = Held(store, layer.policy.codec, encoded, origins)
    if layer.paged is not None:
        mine = {k.removeprefix("paged."): v for k, v in named.items() if k.startswith("paged.")}
        layer.paged.restore(mine, rows)
    layer.probes = [Probes(named[f"{row}.queries"], named[f"{row}.query_index"]) for row in range(rows)]
