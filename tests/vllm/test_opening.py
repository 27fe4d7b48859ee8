from __future__ import annotations

from pathlib import Path

import pytest

from tenuto.errors import InputError
from tenuto.tiers.chain import Chain
from tenuto.tiers.disk import DiskTier
from tenuto.tiers.remote import RemoteTier
from tenuto.vllm.opening import open_address


def test_addresses(tmp_path: Path) -> None:
    with open_address([f"disk:{tmp_path}/a?max=2MiB", "redis://127.0.0.1:1/0"]) as chain:
        assert isinstance(chain, Chain)
        disk, server = chain.tiers
        assert isinstance(disk, DiskTier)
        assert (disk.folder, disk.capacity) == (tmp_path / "a", 2 * 2**20)
        assert isinstance(server, RemoteTier)


@pytest.mark.parametrize("address", ["", "disk:", "disk:x", "disk:x?max=10", "disk:x?max=tenGiB", "http://x"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(InputError, match="Give disk:PATH"):
        open_address(address)
