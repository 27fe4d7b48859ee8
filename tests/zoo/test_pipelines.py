"""Models load from folders without a network; what is damaged is refused in one line; pictures depend on their seed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tenuto.errors import InputError, ModelError
from tenuto.measure.devices import device_words, versions
from tenuto.zoo.pipelines import load_model

pytestmark = pytest.mark.usefixtures("one_thread")
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_picture_depends_on_its_seed_and_label_only(tiny_model: Path) -> None:
    model = load_model(str(tiny_model))
    together = model.draw([0, 1, 2], [5, 6, 7], 3, 1.5)
    assert together.shape == (3, 1, 28, 28)
    assert 0 <= together.min() < together.max() <= 1
    alone = torch.cat([model.draw([label], [label + 5], 3, 1.5) for label in range(3)])
    assert torch.allclose(together, alone, atol=1e-4)
    assert torch.equal(together, model.draw([0, 1, 2], [5, 6, 7], 3, 1.5))
    assert not torch.allclose(together, model.draw([0, 1, 2], [8, 9, 10], 3, 1.5), atol=1e-2)


def test_the_global_generator_is_left_alone(tiny_model: Path) -> None:
    model = load_model(str(tiny_model))
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    model.draw([0], [5], 1, 1.0)
    assert torch.equal(torch.rand(4), expected)


def test_words(tiny_model: Path) -> None:
    model = load_model(str(tiny_model), "cpu")
    assert device_words(model.device, torch.float32).endswith("1 threads, float32")
    assert model.sampler == "DDIMScheduler"
    assert set(versions("diffusers")) == {"tenuto", "torch", "diffusers", "python"}


@pytest.mark.parametrize(("steps", "guidance", "said"), [(1001, 1.5, "1 to 1000"), (0, 1.5, "1 to"), (5, -1.0, "guid")])
def test_numbers_the_pipeline_cannot_run_with(tiny_model: Path, steps: int, guidance: float, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_model(str(tiny_model)).check(steps, guidance)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda m: os.truncate(m / WEIGHTS, 5000), "Unable to load weights"),
    "empty": (lambda m: os.truncate(m / WEIGHTS, 0), "Unable to load weights"),
    "ten bytes short": (lambda m: os.truncate(m / WEIGHTS, (m / WEIGHTS).stat().st_size - 10), "Unable to load"),
    "no weights": (lambda m: (m / WEIGHTS).unlink(), "no file named"),
    "no autoencoder": (lambda m: shutil.rmtree(m / "vae"), "vae/config.json is missing"),
    "no index": (lambda m: (m / "model_index.json").unlink(), "There is no model at"),
    "broken index": (lambda m: (m / "model_index.json").write_text("{"), "cannot be loaded"),
    "broken config": (lambda m: (m / "vae/config.json").write_text("{"), "not a valid JSON file"),
    "other pipeline": (lambda m: change(m / "model_index.json", _class_name="FluxPipeline"), "a FluxPipeline"),
    "more blocks": (lambda m: change(m / "transformer/config.json", num_layers=4), "do not fit its config.json"),
    "fewer blocks": (lambda m: change(m / "transformer/config.json", num_layers=2), "do not fit its config.json"),
    "other width": (lambda m: change(m / "transformer/config.json", attention_head_dim=4), "cannot be loaded"),
    "no channels": (lambda m: change(m / "transformer/config.json", out_channels=None), "has no out_channels"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_said_in_one_line(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    damage, said = DAMAGE[kind]
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    damage(copy)
    with pytest.raises(ModelError) as caught:
        load_model(str(copy))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_that_are_not_there(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match=r"no bundled model 'dit-fashon'. Did you mean 'dit-fashion'"):
        load_model("bundled:dit-fashon")
    with pytest.raises(ModelError, match="There is no model at nowhere"):
        load_model("nowhere")
    with pytest.raises(InputError, match=r"device=abacus cannot be used here .*Give auto, cpu or cuda"):
        load_model(str(tiny_model), "abacus")
