from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tenuto.errors import InputError
from tenuto.tiers.key import tenant_mark
from tenuto.vllm.naming import Names, weights_fingerprint

KEY = bytes(range(32)) + b"\0\0\0\0"
FACTS = {"model": ["m"], "dtype": "bfloat16", "ranks": [0, 1], "codec": "raw.1", "tenant": ""}


def test_every_fact_and_every_bit_of_the_key_changes_the_name() -> None:
    name = Names(FACTS).name(KEY)
    assert name is not None
    assert len(bytes.fromhex(name[-64:])) == 32 and name[:-64] == tenant_mark("")
    assert name == Names(dict(reversed(FACTS.items()))).name(KEY)
    others = {Names(FACTS | {fact: "other"}).name(KEY) for fact in FACTS}
    others |= {Names(FACTS).name(bytes([KEY[0] ^ 1]) + KEY[1:]), Names(FACTS).name(KEY[:-1] + b"\1")}
    assert len(others - {name}) == len(FACTS) + 2


def test_a_hash_that_can_be_forged_names_nothing() -> None:
    assert Names(FACTS).name(KEY[:16] + KEY[-4:]) is None


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("TENUTO_HOME", str(home))
    return home


def weights(folder: Path, **tensors: torch.Tensor) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    save_file(tensors, folder / "model.safetensors")
    return weights_fingerprint(folder)


def test_the_fingerprint_is_that_of_the_weights_not_of_the_place(tmp_path: Path) -> None:
    one = {"a": torch.arange(4000.0), "b": torch.ones(3)}
    first = weights(tmp_path / "here", **one)
    assert weights(tmp_path / "there", **one) == first
    assert weights(tmp_path / "there", **one | {"b": torch.tensor([1.0, 1.0, 1.5])}) != first
    assert weights(tmp_path / "there", **one | {"a": torch.arange(4000.0) + 1}) != first
    assert weights(tmp_path / "there", a=one["a"], c=one["b"]) != first
    weights(tmp_path / "there", **one)
    (tmp_path / "there" / "config.json").write_text('{"rope_theta": 2}')
    assert weights_fingerprint(tmp_path / "there") != first


def test_any_byte_of_the_weights_counts_and_files_are_read_once(tmp_path: Path, own_home: Path) -> None:
    one = torch.zeros(100_000)
    first = weights(tmp_path / "a", w=one)
    one[70_123] = 1  # far from the beginning
    assert weights(tmp_path / "a", w=one) != first
    kept = own_home / "weights.json"
    before = kept.read_bytes()
    assert kept.stat().st_mode & 0o777 == 0o600
    assert weights_fingerprint(tmp_path / "a") != first and kept.read_bytes() == before
    kept.write_text("[1]")  # damaged: read again
    assert weights_fingerprint(tmp_path / "a") != first


def test_other_formats_are_read_whole(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"0" * 100_000)
    first = weights_fingerprint(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"0" * 99_999 + b"1")
    assert weights_fingerprint(tmp_path) != first


def test_weights_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no weights"):
        weights_fingerprint(tmp_path)
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        weights_fingerprint(tmp_path)
