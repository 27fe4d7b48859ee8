"""What a block is called in a tier: a digest of everything its bytes depend on.

vLLM names a block by a hash of its tokens and all before them, of the adapter's name and of the request's
``cache_salt``. That says nothing of the model, of the memory layout or of how the block is written, so a tier that is
shared, or outlives its engine, needs more. Hash algorithm and seed need no mention: each hash is chained from the seed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from tenuto.errors import InputError
from tenuto.home import home
from tenuto.tiers.key import tenant_mark

__all__ = ["Names", "weights_fingerprint"]

SETTINGS = ("config.json", "hf_quant_config.json", "adapter_config.json")
SHORTEST_HASH = 32
MOST = 1000
"""Files whose digests are kept."""
WHOLE = re.compile(r"[0-9a-f]{64}")


class Names:
    """Names of blocks for engines that agree in all ``facts``, and for nobody else.

    Args:
        facts: model, dtype, layout, machine, block size, ranks, codec, tenant, ...: JSON-ready values by name.
    """

    def __init__(self, facts: Mapping[str, object]) -> None:
        self._mark = tenant_mark(str(facts.get("tenant", "")))
        told = json.dumps(facts, sort_keys=True, separators=(",", ":"))
        self._prefix = hashlib.blake2b(told.encode(), digest_size=32, person=b"tenuto.vllm.2")

    def name(self, key: bytes) -> str | None:
        """A mark of the tenant and 64 hex digits for vLLM's key of a block; None if two prompts could have it.

        Args:
            key: the block's hash, and 4 bytes for its cache group.
        """
        if len(key) < SHORTEST_HASH + 4:
            return None
        digest = self._prefix.copy()
        digest.update(key)
        return self._mark + digest.hexdigest()


def weights_fingerprint(folder: Path) -> str:
    """A digest of a model folder: its configuration, and every byte of its weights.

    Costs about 1 s per 4 GB the first time; afterwards the digests of files are known by device, inode, size and times
    of change, and are kept in :func:`tenuto.home.home`.

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
        for path in [path for name in SETTINGS if (path := folder / name).is_file()]:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        known = _known()
        before = dict(known)
        for path in files:
            digest.update(bytes.fromhex(_hashed(path, known)))
        if known != before:
            _remember(known)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"The weights in {folder} cannot be read ({error}). Give the tier a 'revision'.") from error
    return digest.hexdigest()


def _hashed(path: Path, known: dict[str, str]) -> str:
    """The BLAKE3 digest of a file, from ``known`` if the file is as it was."""
    told = path.stat()
    same = f"{told.st_dev}-{told.st_ino}-{told.st_size}-{told.st_mtime_ns}-{told.st_ctime_ns}"
    if same not in known:
        digest = blake3(max_threads=blake3.AUTO)
        digest.update_mmap(path)
        known[same] = digest.hexdigest()
    return known[same]


def _place() -> Path:
    return home() / "weights.json"


def _known() -> dict[str, str]:
    try:
        told = json.loads(_place().read_text())
    except (OSError, ValueError):
        return {}
    whole = isinstance(told, dict) and all(isinstance(x, str) and WHOLE.fullmatch(x) for x in told.values())
    return told if whole else {}


def _remember(known: dict[str, str]) -> None:
    with suppress(OSError):  # where nothing can be kept, it is computed again
        _place().parent.mkdir(0o700, parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=_place().parent, prefix="weights", suffix=".part")
        with open(handle, "w") as file:
            file.write(json.dumps(dict(list(known.items())[-MOST:])))
        os.replace(draft, _place())
