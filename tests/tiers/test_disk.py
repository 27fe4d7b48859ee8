"""The disk tier on a folder that survives: reopening, sharing, room, compaction, damage."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tenuto.errors import InputError, StoreError
from tenuto.tiers import segment
from tenuto.tiers.disk import DiskTier
from tenuto.tiers.segment import Damage


def page(key: str, size: int = 500) -> bytes:
    return (key.encode() * size)[:size]


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.seg"))


def tier(folder: Path, capacity: int = 1 << 20) -> DiskTier:
    return DiskTier(folder, capacity=capacity, segment_bytes=4000)


def test_a_folder_opened_again_has_every_page_in_the_order_written(tmp_path: Path) -> None:
    keys = [f"key{i}" for i in range(50)]
    with tier(tmp_path) as first:
        for key in keys:
            first.put(key, page(key))
        first.discard("key7")
    keys.remove("key7")
    (tmp_path / "0000000099-0a0b0c0d.part").write_bytes(segment.MAGIC[:3])
    with tier(tmp_path) as second:
        assert second.keys() == keys
        assert second.get_many(keys) == [page(key) for key in keys]
        assert second.get("key7") is None
        assert not list(second.verify())
    assert len(segments(tmp_path)) > 5 and not list(tmp_path.glob("*.part"))


def test_two_on_one_folder_see_each_other(tmp_path: Path) -> None:
    one, two = tier(tmp_path), tier(tmp_path)
    one.put("a", page("a"))
    assert two.contains("a") and two.get("a") == page("a")
    used = one.bytes_used()
    two.put("a", page("a"))
    assert used == two.bytes_used() == one.bytes_used() == sum(path.stat().st_size for path in segments(tmp_path))
    two.put("b", page("b"))
    two.discard("a")
    assert one.get("a") is None and not one.contains("a") and one.get("b") == page("b")
    one.put("a", page("a"))
    assert two.get("a") == page("a")
    assert one.prune(0) > 0
    assert two.get("b") is None and two.bytes_used() == 0


def test_files_never_take_more_than_the_capacity_and_recent_pages_stay(tmp_path: Path) -> None:
    dice, one = random.Random(0), tier(tmp_path, 40_000)
    for number in range(400):
        key = f"k{number}"
        one.put(key, page(key, dice.randrange(1, 2000)))
        if number:
            assert one.get("k0") is not None  # in use, so it moves from segment to segment and is never dropped
        assert sum(path.stat().st_size for path in segments(tmp_path)) <= 40_000
    assert one.get("k399") is not None and one.get("k1") is None
    assert tier(tmp_path, 40_000).get("k0") is not None
    assert len(one.keys()) > 15


def test_prune_frees_what_it_says(tmp_path: Path) -> None:
    one = tier(tmp_path)
    for number in range(40):
        one.put(f"k{number}", page(f"k{number}"))
    before = one.bytes_used()
    assert before - one.prune(before // 2) == one.bytes_used() <= before // 2
    assert one.keys()[-1] == "k39" and one.prune(before) == 0
    with pytest.raises(InputError, match="zero or more"):
        one.prune(-1)


def test_flipped_bits_are_misses_and_nothing_else_is_lost(tmp_path: Path) -> None:
    keys = [f"key{i}" for i in range(20)]
    writer = tier(tmp_path)
    for key in keys:
        writer.put(key, page(key))
    dice = random.Random(1)
    for path in segments(tmp_path):
        whole = path.read_bytes()
        for _ in range(60):
            at, bit = dice.randrange(len(whole)), 1 << dice.randrange(8)
            path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
            opened = tier(tmp_path)
            assert len(list(opened.verify())) == 1
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(opened, "_warn_once", lambda message: None)
                found = [opened.get(key) for key in keys]
            assert all(data in (None, page(key)) for key, data in zip(keys, found, strict=True))
            assert found.count(None) <= 7  # at worst what follows in the same segment
            path.write_bytes(whole)
            writer = tier(tmp_path)
            assert writer.get_many(keys) == [page(key) for key in keys]


def test_a_damaged_page_is_warned_of_dropped_and_can_be_put_again(tmp_path: Path) -> None:
    one = tier(tmp_path)
    for key in "abc":
        one.put(key, page(key))
    (path,) = segments(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"bbbb", b"bXbb", 1))
    ((where, offset, key),) = one.verify()
    assert (where, key) == (path, "b") and offset > 500
    with pytest.warns(RuntimeWarning, match="damaged") as caught:
        assert one.get_many("abcb") == [page("a"), None, page("c"), None]
    assert len(caught) == 1 and not list(one.verify())
    one.put("b", page("b"))
    assert tier(tmp_path).get("b") == page("b")


def test_every_truncation_keeps_the_pages_before_it(tmp_path: Path) -> None:
    writer = tier(tmp_path)
    ends = []
    for key in "abc":
        writer.put(key, page(key, 40))
        ends.append(writer.bytes_used())
    (path,) = segments(tmp_path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        opened = tier(tmp_path)
        kept = sum(end <= length for end in ends)
        assert opened.get_many("abc") == [page(key, 40) if i < kept else None for i, key in enumerate("abc")]
        opened.put("d", page("d"))
        assert tier(tmp_path).get("d") == page("d")
        assert list(opened.verify()) == ([Damage(path, 0, None)] if length < len(segment.MAGIC) else [])
        for other in segments(tmp_path)[1:]:
            other.unlink()


def test_a_writer_does_not_write_behind_a_torn_end(tmp_path: Path) -> None:
    one = tier(tmp_path)
    one.put("a", page("a"))
    (path,) = segments(tmp_path)
    with path.open("ab") as file:
        file.write(b"\0TKR torn")
    one.put("b", page("b"))
    assert len(segments(tmp_path)) == 2
    assert tier(tmp_path).get_many("ab") == [page("a"), page("b")]


def test_a_compaction_cut_short_leaves_both_copies_and_one_discard_ends_both(tmp_path: Path) -> None:
    one = tier(tmp_path)
    one.put("a", page("a"))
    (path,) = segments(tmp_path)
    (tmp_path / "0000000002-c0c0c0c0.seg").write_bytes(path.read_bytes())
    two = tier(tmp_path)
    assert two.get("a") == page("a") and two.keys() == ["a"]
    two.discard("a")
    assert tier(tmp_path).get("a") is None and one.get("a") is None


def test_a_reader_follows_a_page_that_was_moved(tmp_path: Path) -> None:
    reader, writer = tier(tmp_path), tier(tmp_path)
    for key in "abcdef":
        writer.put(key, page(key))
    assert reader.contains("f")
    before = segments(tmp_path)
    for key in "abcd":
        writer.discard(key)
    writer.prune(writer.bytes_used() - 1)
    assert not set(before) & set(segments(tmp_path))
    assert reader.get_many("aef") == [None, page("e"), page("f")]


def test_a_lock_that_is_held_is_waited_for_and_then_said(tmp_path: Path) -> None:
    one = DiskTier(tmp_path, capacity=1000, lock_timeout=0.05)
    one.put("a", b"a")
    with segment.locked(tmp_path, 1.0):
        with pytest.raises(StoreError, match=r"for 0\.05 s"):
            one.put("b", b"b")
        assert one.get("a") == b"a"
    one.put("b", b"b")


def test_a_durable_tier_syncs_pages_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")).suffix))
    with DiskTier(tmp_path, capacity=10_000, durable=True) as one:
        one.put("a", b"a")
        one.put("b", b"b")
        one.discard("a")
    assert synced == [".part", "", ".seg", ".seg", ".seg"]
