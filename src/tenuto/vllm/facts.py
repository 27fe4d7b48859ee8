"""What the bytes of vLLM's blocks depend on, as far as vLLM tells a tier."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
import vllm
from vllm.platforms import current_platform

from tenuto.errors import InputError
from tenuto.vllm.naming import weights_fingerprint

__all__ = ["facts_of"]


def facts_of(config: Any, *, codec: str, salt: str, revision: str) -> dict[str, object]:
    """Facts for :class:`tenuto.vllm.naming.Names`.

    Args:
        config: vLLM's OffloadingConfig; codec: with its version; salt, revision: of the tier's options.

    Raises:
        InputError: the model's weights cannot be looked at, and no revision says which they are.
    """
    parallel = config.parallel
    return {
        "engine": vllm.__version__,
        "model": model_of(config.model.name, revision),
        "dtype": config.model.dtype,
        "layout": [config.kv_cache_layout, config.canonical_layout, config.replicated_layout],
        "machine": [platform.machine(), current_platform.device_type, *features()],
        "groups": [[group.tokens_per_block, list(group.layer_names)] for group in config.groups],
        "block": [config.worker_kv_bytes_per_block, config.cache.tokens_per_hash, config.cache.blocks_per_chunk],
        "ranks": [
            parallel.rank,
            parallel.world_size,
            parallel.tp_size,
            parallel.pp_size,
            parallel.pcp_size,
            parallel.dcp_size,
        ],
        "codec": codec,
        "tenant": salt,
    }


def model_of(name: str, revision: str) -> list[str]:
    """A revision with the model's name, else the fingerprint of its weights, which is the same wherever they lie."""
    if revision:
        return [name, revision]
    folder = Path(name)
    if not folder.is_dir():
        folder = _downloaded(name)
    return [weights_fingerprint(folder)]


def features() -> list[str]:
    """What kernels are chosen by, which settle the order of values in a block: instruction sets, or the device."""
    if current_platform.device_type != "cpu":
        return [current_platform.get_device_name()]
    return sorted(name for name, there in torch.cpu.get_capabilities().items() if there is True)


def _downloaded(name: str) -> Path:
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, "config.json")
    except ValueError:  # no name of a model on a hub
        found = None
    if not isinstance(found, str):
        raise InputError(
            f"The weights of {name} are in no local folder. Give the tier a 'revision' that says which they are."
        )
    return Path(found).parent
