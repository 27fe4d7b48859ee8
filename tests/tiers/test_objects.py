"""The object tier's own faults: half an upload, another's object, a store that is gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tenuto.errors import StoreError
from tenuto.tiers.objects import ObjectTier


def test_half_an_object_is_a_miss_and_is_removed(tmp_path: Path) -> None:
    tier = ObjectTier(f"file://{tmp_path}/pages")
    tier.put("a", bytes(100))
    tier.put("b", bytes(100))
    first, second = sorted((tmp_path / "pages").iterdir())
    first.write_bytes(first.read_bytes()[:50])
    second.write_bytes(first.read_bytes())
    with pytest.warns(RuntimeWarning, match="damaged data"):
        assert tier.get("a") is None and tier.get("b") is None
    assert tier.keys() == []
    tier.put("a", b"again")
    assert tier.get("a") == b"again"


def test_a_store_that_fails_is_a_miss_and_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = ObjectTier(f"file://{tmp_path}/pages")
    tier.put("a", b"a")

    def fail(*args: Any, **options: Any) -> Any:
        raise PermissionError("no credentials")

    for name in ("exists", "cat_file", "pipe_file", "ls"):
        monkeypatch.setattr(tier._files, name, fail)
    with pytest.warns(RuntimeWarning, match="no credentials") as caught:
        assert tier.get("a") is None and not tier.contains("a")
    assert len(caught) == 1
    for change in (lambda: tier.put("b", b"b"), lambda: tier.discard("a"), tier.keys, tier.bytes_used):
        with pytest.raises(StoreError, match="credentials"):
            change()


def test_a_page_that_another_thread_discards_first_is_discarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = ObjectTier(f"file://{tmp_path}/pages")
    tier.put("a", b"data")
    remove = tier._files.rm_file

    def twice(path: str) -> None:
        remove(path)
        remove(path)

    monkeypatch.setattr(tier._files, "rm_file", twice)
    tier.discard("a")
    assert tier.get("a") is None
