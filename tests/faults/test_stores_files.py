"""A store changes only files it made: others stay, are not opened, and are not counted."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tenuto.errors import InputError, StoreError
from tenuto.tiers import segment
from tenuto.tiers.address import open_tier
from tenuto.tiers.disk import DiskTier
from tenuto.tiers.objects import ObjectTier

STRANGERS = {
    "film.mkv.part": b"a download",
    "mine.seg": b"somebody's",
    "0000000001-0a0b0c0d.seg": b"a name like ours, content of another",
    "0000000001-0a0b0c0d.part": b"the same, unfinished",
    "notes.page": b"text",
}


def strange(folder: Path) -> Path:
    for name, data in STRANGERS.items():
        (folder / name).write_bytes(data)
    os.mkfifo(folder / "0000000002-0a0b0c0d.seg")
    (folder / "0000000003-0a0b0c0d.seg").symlink_to(folder / "mine.seg")
    return folder


def test_files_of_others_stay_whatever_is_done(tmp_path: Path) -> None:
    folder = strange(tmp_path)
    with DiskTier(folder, capacity=4000) as tier:
        for number in range(20):
            tier.put(f"k{number}", bytes(500))
        assert tier.keys() and not list(tier.verify())
        assert tier.bytes_used() <= 4000
        tier.sweep()
        tier.prune(0)
        assert tier.keys() == [] and tier.bytes_used() == 0
    assert {name: (folder / name).read_bytes() for name in STRANGERS} == STRANGERS
    assert (folder / "0000000002-0a0b0c0d.seg").is_fifo() and (folder / "0000000003-0a0b0c0d.seg").is_symlink()


def test_a_folder_that_others_use_is_refused_unless_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no store's \(.*\.\.\.\).*\?foreign=true") as error:
        open_tier(f"disk:{strange(tmp_path)}")
    assert "\n" not in str(error.value) and not (tmp_path / "tenuto-store").exists()
    with open_tier(f"disk:{tmp_path}?foreign=true") as tier:
        tier.put("k", b"page")
    with open_tier(f"disk:{tmp_path}") as tier:  # it says now that a store lives there
        assert tier.get("k") == b"page"


def test_a_store_of_before_is_taken_over(tmp_path: Path) -> None:
    with open_tier(f"disk:{tmp_path}") as tier:
        tier.put("k", b"page")
    (tmp_path / "tenuto-store").unlink()
    with open_tier(f"disk:{tmp_path}") as tier:
        assert tier.get("k") == b"page"


def test_what_is_made_is_for_its_owner_only(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        with open_tier(f"disk:{tmp_path}/a/b") as tier:
            tier.put("k", b"page")
        objects = ObjectTier(f"file://{tmp_path}/c/d")
        objects.put("k", b"page")
    finally:
        os.umask(old)
    assert objects.get("k") == b"page" and objects.keys() == ["k"]
    made = [path for path in tmp_path.rglob("*") if path != tmp_path]
    assert len(made) >= 8
    for path in made:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_a_lock_that_is_no_file_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(tmp_path / "lock")
    else:
        (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    tier = DiskTier(tmp_path, capacity=4000)
    with pytest.raises(StoreError, match="was not changed"):
        tier.put("k", b"page")
    assert tier.get("k") is None and not (tmp_path / "elsewhere").exists()


def test_objects_of_others_are_no_pages(tmp_path: Path) -> None:
    objects = ObjectTier(f"file://{tmp_path}")
    objects.put("k", b"page")
    (tmp_path / "notes.page").write_text("no name of ours")
    os.mkfifo(tmp_path / f"{b'pipe'.hex()}.page")
    assert sorted(objects.keys()) == ["k", "pipe"] and objects.get("pipe") is None and objects.get("k") == b"page"
    assert (tmp_path / "notes.page").exists()


def test_a_sweep_leaves_no_byte_of_a_discarded_page(tmp_path: Path) -> None:
    with DiskTier(tmp_path, capacity=1 << 20) as tier:
        tier.put("secret", b"the secret page")
        tier.put("other", b"the other page")
        tier.discard("secret")
        assert tier.sweep() > 0
        assert tier.get("other") == b"the other page"
    left = b"".join(path.read_bytes() for path in tmp_path.glob("*.seg"))
    assert b"secret" not in left and b"other page" in left
    assert all(segment.ours(path) for path in tmp_path.glob("*.seg"))
