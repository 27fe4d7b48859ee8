"""Profiles: one file that travels, refused when it is damaged, foreign or for another model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tenuto import calibration
from tenuto.calibration import Profile, find, fingerprint
from tenuto.errors import CalibrationError
from tenuto.testing import TinyDiT


def profile(**changes: Any) -> Profile:
    given: dict[str, Any] = {
        "policy": "teacache",
        "fingerprint": "0123456789abcdef",
        "settings": {"steps": 50, "guidance": 1.5},
        "numbers": {"coefficients": [1.5, -2.0], "pairs": 12},
        "tensors": {"map": torch.arange(6.0).reshape(2, 3), "half": torch.ones(2, dtype=torch.float16)},
    }
    return Profile(**{**given, **changes})


def assert_equal(found: Profile, expected: Profile) -> None:
    for name in ("policy", "fingerprint", "settings", "numbers"):
        assert getattr(found, name) == getattr(expected, name)
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert found.tensors[name].dtype == tensor.dtype and torch.equal(found.tensors[name], tensor)


def one_line(error: pytest.ExceptionInfo[CalibrationError], *said: object) -> None:
    text = str(error.value)
    assert "\n" not in text
    assert all(str(part) in text for part in said), text


@pytest.mark.parametrize("given", [profile(), profile(tensors={}), profile(settings={}, numbers={})])
def test_saved_and_loaded(given: Profile, tmp_path: Path) -> None:
    path = given.save(tmp_path / "new" / "folder" / "teacache.safetensors")
    assert_equal(Profile.load(path), given)
    assert os.listdir(path.parent) == [path.name], "nothing else is left"


def test_a_profile_can_be_replaced_and_transposed_tensors_are_fine(tmp_path: Path) -> None:
    path = profile().save(tmp_path / "a.safetensors")
    other = profile(tensors={"map": torch.arange(6.0).reshape(2, 3).T})
    other.save(path)
    assert_equal(Profile.load(path), other)


def test_a_profile_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = profile().save(tmp_path / "a.safetensors")

    def full(*given: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(calibration, "save_file", full)
    with pytest.raises(CalibrationError) as error:
        profile(policy="other").save(path)
    one_line(error, f"cannot be written to {path}", "No space left on device")
    assert_equal(Profile.load(path), profile())


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(CalibrationError) as error:
        profile().save(tmp_path / "taken" / "a.safetensors")
    one_line(error, "cannot be written to", "Choose another place")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError) as error:
        Profile.load(tmp_path / "absent.safetensors")
    one_line(error, f"no profile at {tmp_path / 'absent.safetensors'}", "tenuto calibrate")


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_a_truncated_file(tmp_path: Path, keep: int) -> None:
    path = profile().save(tmp_path / "a.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CalibrationError) as error:
        Profile.load(path)
    one_line(error, path, "damaged or not a profile", "Calibrate again")


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"format": '"pt"'},
        {"format": "pt"},
        {"format": '"1"', "policy": '"teacache"'},
        {"format": '"0"', "policy": '"t"', "fingerprint": '"f"', "settings": "{}", "numbers": "{}"},
    ],
)
def test_a_foreign_file(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(2)}, path, metadata=metadata)
    with pytest.raises(CalibrationError) as error:
        Profile.load(path)
    one_line(error, path, "Calibrate again")


def test_check_names_both() -> None:
    profile().check("teacache", "0123456789abcdef")
    with pytest.raises(CalibrationError) as error:
        profile().check("fastcache", "0123456789abcdef")
    one_line(error, "'teacache'", "'fastcache'")
    with pytest.raises(CalibrationError) as error:
        profile().check("teacache", "fedcba9876543210")
    one_line(error, "0123456789abcdef", "fedcba9876543210", "tenuto calibrate teacache")


def test_found_by_policy_model_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENUTO_HOME", str(tmp_path))
    monkeypatch.setattr(calibration, "__file__", str(tmp_path / "package" / "calibration.py"))
    mark = profile().fingerprint
    assert find("teacache", mark) is None
    for steps in (20, 50):
        given = profile(settings={"steps": steps, "guidance": 1.5})
        given.save(tmp_path / "profiles" / f"teacache-{steps}.safetensors")
    found = find("teacache", mark, {"steps": 50, "sampler": "of which the profile says nothing"})
    assert found is not None and found.settings["steps"] == 50
    assert find("teacache", mark, {"steps": 30}) is None
    assert find("teacache", "another") is None
    assert find("fastcache", mark) is None
    own = profile(settings={"steps": 50, "from": "the package"})
    own.save(tmp_path / "package" / "bundled" / "model" / "profiles" / "teacache.safetensors")
    found = find("teacache", mark, {"steps": 50})
    assert found is not None and found.settings != own.settings, "your own come first"
    found = find("teacache", mark, {"steps": 50}, accept=lambda it: "from" in it.settings)
    assert found is not None and found.settings == own.settings


def test_the_fingerprint_is_of_the_weights() -> None:
    model = TinyDiT()
    mark = fingerprint(model)
    assert [len(half) for half in mark.split("-")] == [16, 32] and int(mark.replace("-", ""), 16) >= 0
    assert fingerprint(TinyDiT()) == mark
    assert fingerprint(TinyDiT(seed=1)) != mark
    assert fingerprint(TinyDiT(blocks=3)) != mark


def test_the_fingerprint_survives_half_precision() -> None:
    model = TinyDiT()
    mark = fingerprint(model)
    assert fingerprint(model.to(torch.bfloat16)) == mark
    assert fingerprint(model.to(torch.float32)) == mark
    assert fingerprint(model.to(torch.float64)) == mark
    model = TinyDiT().half()  # weights shipped as float16 ...
    assert fingerprint(model.float()) == fingerprint(model.half())  # ... have one fingerprint however they are loaded


@pytest.mark.parametrize("index", [0, -1])
def test_the_fingerprint_changes_with_one_weight(index: int) -> None:
    model = TinyDiT()
    mark = fingerprint(model)
    with torch.no_grad():
        model.blocks[2].modulate.weight.view(-1)[index] += 0.5
    assert fingerprint(model) != mark


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    path = profile().save(tmp_path / "a.safetensors")
    size = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]
    assert json.loads(header["policy"]) == "teacache"
    assert json.loads(header["settings"]) == {"steps": 50, "guidance": 1.5}


def test_a_profile_that_will_not_serve_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENUTO_HOME", str(tmp_path))
    for number in (1, 2):
        made = Profile(policy="p", fingerprint="f", numbers={"span": number})
        made.save(tmp_path / "profiles" / f"p-{number}.safetensors")
    found = find("p", "f", accept=lambda profile: profile.numbers["span"] == 2)
    assert found is not None and found.numbers == {"span": 2}
    assert find("p", "f", accept=lambda profile: False) is None
