"""Pages as objects of a file system that fsspec knows: S3, Google Cloud Storage, Azure, a local or shared folder."""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from tenuto.errors import InputError, StoreError, redact
from tenuto.tiers import record, segment
from tenuto.tiers.claimed import make_private
from tenuto.tiers.tier import Tier

__all__ = ["ObjectTier"]

OURS = re.compile(r"([0-9a-f]{2})+\.page")


class ObjectTier(Tier):
    """One object per page below ``url``; how many there may be, and what is removed, is the bucket's own rule.

    An object carries key and checksums as a record does, so half an upload or another's object is a miss. A store that
    cannot be reached is a miss in ``get`` and an error in ``put``. Timeouts and credentials are those of the fsspec
    package for this kind of store.

    Args:
        url: for example ``s3://bucket/folder``. The package that fsspec asks for (``s3fs``, ``gcsfs``) must be there.

    Raises:
        InputError: fsspec does not know such an address, or its package is missing.
    """

    def __init__(self, url: str) -> None:
        try:
            import fsspec

            self._files: Any
            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError, OSError) as error:
            raise InputError(
                f"{redact(url)!r} cannot be used as an object store ({redact(str(error))}). Give s3://BUCKET/FOLDER."
            ) from None
        self.name = redact(url)
        self._local = "file" in self._files.protocol

    def put(self, key: str, data: bytes) -> None:
        packed = record.pack(key, data)
        try:
            if not self._files.exists(self._path(key)):
                self._write(self._path(key), packed)
        except Exception as error:  # noqa: BLE001 (each file system has its own)
            raise StoreError(
                f"{self.name} did not take a page ({redact(str(error))}). Check address and credentials."
            ) from None

    def get(self, key: str) -> bytes | None:
        try:
            if self._local and not Path(self._path(key)).is_file():
                return None  # not there, or a pipe that would be waited for
            found = self._files.cat_file(self._path(key))
        except FileNotFoundError:
            return None
        except Exception as error:  # noqa: BLE001
            self._warn_once(f"{self.name} cannot be read ({redact(str(error))}). Its pages count as missing.")
            return None
        data = record.unpack(key, found)
        if data is None:
            self._warn_once(f"{self.name} gave damaged data for a page, which counts as missing.")
            with suppress(StoreError):
                self.discard(key)
        return data

    def contains(self, key: str) -> bool:
        try:
            return bool(self._files.exists(self._path(key)))
        except Exception as error:  # noqa: BLE001
            self._warn_once(f"{self.name} cannot be read ({redact(str(error))}). Its pages count as missing.")
            return False

    def discard(self, key: str) -> None:
        try:
            if self._files.exists(self._path(key)):
                with suppress(FileNotFoundError):  # discarded meanwhile
                    self._files.rm_file(self._path(key))
        except Exception as error:  # noqa: BLE001 (each file system has its own)
            raise StoreError(
                f"{self.name} did not discard a page ({redact(str(error))}). Check address and credentials."
            ) from None

    def keys(self) -> list[str]:
        return [bytes.fromhex(name).decode("utf-8", "surrogatepass") for name in self._sizes()]

    def bytes_used(self) -> int:
        return sum(self._sizes().values())

    def _write(self, path: str, data: bytes) -> None:
        """An object appears whole; a file does not, so it is written beside and renamed."""
        if not self._local:
            self._files.pipe_file(path, data)
            return
        make_private(Path(self._root))
        draft = f"{path}.{secrets.token_hex(4)}.part"
        try:
            with segment.opened(Path(draft), os.O_RDWR | os.O_CREAT | os.O_EXCL) as file:
                file.write(data)
            self._files.mv(draft, path)
        finally:
            if self._files.exists(draft):
                self._files.rm_file(draft)

    def _path(self, key: str) -> str:
        name = key.encode("utf-8", "surrogatepass").hex()
        return f"{self._root}/{name}.page"

    def _sizes(self) -> dict[str, int]:
        """Bytes of each page by its object's name."""
        try:
            if not self._files.exists(self._root):
                return {}
            listed = self._files.ls(self._root, detail=True, refresh=True)
        except Exception as error:  # noqa: BLE001 (each file system has its own)
            raise StoreError(
                f"{self.name} cannot be listed ({redact(str(error))}). Check address and credentials."
            ) from None
        names = ((entry["name"].rsplit("/", 1)[-1], entry["size"]) for entry in listed)
        return {name.removesuffix(".page"): int(size) for name, size in names if OURS.fullmatch(name)}
