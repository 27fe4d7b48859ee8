"""What a block is called in a tier: a digest of everything its bytes depend on.

vLLM names a block by a hash of its tokens and all before them, of the adapter's name and of the request's
``cache_salt``. That says nothing of the model, of the memory layout or of how the block is written, so a tier that is
shared, or outlives its engine, needs more. Hash algorithm and seed need no mention: each hash is chained from the seed.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from tenuto.errors import InputError

__all__ = ["Names", "weights_fingerprint"]

SAMPLE = 4096
SHORTEST_HASH = 32
LONGEST_HEADER = 1 << 27


class Names:
    """Names of blocks for engines that agree in all ``facts``, and for nobody else.

    Args:
        facts: model, dtype, layout, machine, block size, ranks, codec, tenant, ...: JSON-ready values by name.
    """

    def __init__(self, facts: Mapping[str, object]) -> None:
        told = json.dumps(facts, sort_keys=True, separators=(",", ":"))
        self._prefix = hashlib.blake2b(told.encode(), digest_size=32, person=b"tenuto.vllm.1")

    def name(self, key: bytes) -> str | None:
        """64 hex digits for vLLM's key of a block; None if two prompts could be made to have that key.

        Args:
            key: the block's hash, and 4 bytes for its cache group.
        """
        if len(key) < SHORTEST_HASH + 4:
            return None
        digest = self._prefix.copy()
        digest.update(key)
        return digest.hexdigest()


def weights_fingerprint(folder: Path) -> str:
    """A digest of a model folder: its configuration, and of its weights every name and the beginning of every tensor.

    Training changes all of a tensor, so its first 4 KiB tell two models apart; other formats than safetensors are
    read whole. Takes under a second for a large model.

    Raises:
        InputError: there are no weights, or a file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        files = sorted(folder.glob("*.safetensors")) or sorted(
            path for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".gguf")
        )
        if not files:
            raise InputError(f"{folder} has no weights. Give the tier a 'revision' that names them.")
        for path in [path for name in ("config.json", "hf_quant_config.json") if (path := folder / name).is_file()]:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        for path in files:
            for part in _samples(path):
                digest.update(hashlib.sha256(part).digest())
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise InputError(f"The weights in {folder} cannot be read ({error}). Give the tier a 'revision'.") from error
    return digest.hexdigest()


def _samples(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        if path.suffix != ".safetensors":
            while chunk := file.read(1 << 24):
                yield chunk
            return
        (length,) = struct.unpack("<Q", file.read(8))
        if length > LONGEST_HEADER:
            raise ValueError("a header too long")
        header = file.read(length)
        yield header
        for name, told in sorted(json.loads(header).items()):
            if name != "__metadata__":
                start, stop = told["data_offsets"]
                file.seek(8 + length + start)
                yield file.read(min(SAMPLE, stop - start))
