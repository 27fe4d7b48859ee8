from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tenuto.errors import InputError
from tenuto.vllm.naming import Names, weights_fingerprint

KEY = bytes(range(32)) + b"\0\0\0\0"
FACTS = {"model": ["m"], "dtype": "bfloat16", "ranks": [0, 1], "codec": "raw.1", "tenant": ""}


def test_every_fact_and_every_bit_of_the_key_changes_the_name() -> None:
    name = Names(FACTS).name(KEY)
    assert name is not None
    assert len(bytes.fromhex(name)) == 32
    assert name == Names(dict(reversed(FACTS.items()))).name(KEY)
    others = {Names(FACTS | {fact: "other"}).name(KEY) for fact in FACTS}
    others |= {Names(FACTS).name(bytes([KEY[0] ^ 1]) + KEY[1:]), Names(FACTS).name(KEY[:-1] + b"\1")}
    assert len(others - {name}) == len(FACTS) + 2


def test_a_hash_that_can_be_forged_names_nothing() -> None:
    assert Names(FACTS).name(KEY[:16] + KEY[-4:]) is None


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


def test_other_formats_are_read_whole(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"0" * 100_000)
    first = weights_fingerprint(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"0" * 99_999 + b"1")
    assert weights_fingerprint(tmp_path) != first


def test_weights_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no weights"):
        weights_fingerprint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(InputError, match="cannot be read"):
        weights_fingerprint(tmp_path)
