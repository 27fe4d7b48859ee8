"""Nothing read from a file is believed: what is wrong in a saved cache is one InputError, whatever its checksum."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from tenuto import InputError, Kivi, MemoryBudget, attach
from tenuto.kv.plausible import digest
from tenuto.testing import TinyLM
from tenuto.testing.kv import tokens

POLICY = Kivi(bits=4, group=16, residual=16)


class Saved:
    """A file as it was written, and the model that wrote it."""

    def __init__(self, folder: Path) -> None:
        self.model, self.path, ids = TinyLM(), folder / "cache", tokens(50, rows=2)
        mask = torch.ones_like(ids)
        mask[1, :3] = 0
        with torch.no_grad(), attach(self.model, POLICY, budget=MemoryBudget.keep(1.0)) as run:
            self.model(ids, attention_mask=mask, past_key_values=(cache := run.cache()))
            run.save(self.path, cache)
        with safe_open(str(self.path), "pt") as file:
            self.header: dict[str, str] = file.metadata()
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)

    def load(self, facts: Any = None, tensors: dict[str, torch.Tensor] | None = None, text: str | None = None) -> None:
        """What is given in place of what was written, under a right checksum."""
        given = self.tensors if tensors is None else tensors
        said = text if text is not None else json.dumps(json.loads(self.header["facts"]) | (facts or {}))
        header = {"format": self.header["format"], "facts": said, "digest": digest(said, given)}
        save_file({name: tensor.contiguous() for name, tensor in given.items()}, self.path, metadata=header)
        with attach(self.model, POLICY, budget=MemoryBudget.keep(1.0)) as run:
            run.load(self.path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return Saved(tmp_path_factory.mktemp("saved"))


def test_what_was_written_is_read(saved: Saved) -> None:
    saved.load()


@pytest.mark.parametrize(
    "facts",
    [
        {"columns": 5},
        {"columns": "50"},
        {"columns": 2**70},
        {"seen": []},
        {"seen": [50, 50]},
        {"seen": [50, -1]},
        {"since": 99},
        {"lengths": []},
        {"lengths": [[50, 50, 50, 50]] * 3},
        {"lengths": None},
        {"sliding": [4]},
    ],
    ids=str,
)
def test_facts_that_cannot_be_are_refused(saved: Saved, facts: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        saved.load(facts)


@pytest.mark.parametrize("text", ["null", "[]", "{}", "", "1e999"])
def test_facts_of_another_form_are_refused(saved: Saved, text: str) -> None:
    with pytest.raises(InputError):
        saved.load(text=text)


@settings(max_examples=40, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_tensors_that_cannot_be_are_refused(saved: Saved, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(saved.tensors)))
    change = data.draw(st.sampled_from(["missing", "nan", "double", "shorter", "more", "negative"]))
    tensor = saved.tensors[name]
    if change in ("nan", "double") and not tensor.is_floating_point():
        change = "missing"
    if change == "negative" and (tensor.is_floating_point() or tensor.dtype in (torch.bool, torch.uint8)):
        change = "missing"
    spare = name.endswith("key_scales") and change == "more"  # scales that no entry points at do no harm
    if not tensor.numel() or spare or (name == "padding" and change == "missing"):
        return
    changed = {
        "nan": tensor * float("nan"),
        "double": tensor.double(),
        "shorter": tensor.reshape(-1)[:-1],
        "more": torch.cat([tensor, tensor]),
        "negative": tensor - 10**6,
    }
    kept = {key: value for key, value in saved.tensors.items() if key != name}
    with pytest.raises(InputError):
        saved.load(tensors=kept if change == "missing" else kept | {name: changed[change]})


def test_one_changed_bit_is_seen(saved: Saved, tmp_path: Path) -> None:
    saved.load()
    raw = bytearray(saved.path.read_bytes())
    raw[-2000] ^= 4
    (tmp_path / "bit").write_bytes(bytes(raw))
    with attach(saved.model, POLICY, budget=MemoryBudget.keep(1.0)) as run, pytest.raises(InputError, match="damaged"):
        run.load(tmp_path / "bit")
