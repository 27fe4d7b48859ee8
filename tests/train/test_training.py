from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tenuto.errors import InputError, ModelError
from tenuto.train import training as module
from tenuto.train.tokens import Tokens
from tenuto.train.training import CHECKPOINT, Training, load_trained, read_log, train

pytestmark = pytest.mark.training


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_trained(folder)[0].state_dict())


@pytest.mark.parametrize("attention", ["mla", "olmoe", "window:window=16"])
def test_stopped_and_resumed_gives_the_same_bits(
    attention: str, little_text: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Training(attention=attention, seed=3, steps=8, size="tiny")
    whole = train(asked, tmp_path / "whole", little_text)
    monkeypatch.setattr(module, "EVERY", 3)
    step = module._Trainer._step

    def stop(self: module._Trainer, number: int) -> float:
        if number == 7:
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(module._Trainer, "_step", stop)
    with pytest.raises(KeyboardInterrupt):
        train(asked, tmp_path / "parts", little_text)
    with pytest.raises(ModelError, match="at step 6 of 8"):
        load_trained(tmp_path / "parts")
    monkeypatch.setattr(module._Trainer, "_step", step)
    torch.manual_seed(99)
    parts = train(asked, tmp_path / "parts", little_text)
    assert parts.losses == whole.losses and parts.resumed == (6,)
    assert not (tmp_path / "parts" / CHECKPOINT).exists()
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
    assert train(asked, tmp_path / "parts", little_text) == read_log(tmp_path / "parts") == parts


def test_the_loss_falls(little_text: Tokens, tmp_path: Path) -> None:
    log = train(Training(attention="mha", steps=20, size="tiny"), tmp_path, little_text)
    assert log.losses[0] == pytest.approx(torch.log(torch.tensor(512.0)).item(), abs=0.2)
    assert log.losses[-1] < log.losses[0] - 0.5
    assert log.tokens_per_s > 0 and log.tokens_per_cpu_s > 0 and log.finished


def test_a_folder_of_another_training_is_refused(little_text: Tokens, tmp_path: Path) -> None:
    train(Training(attention="mha", steps=1, size="tiny"), tmp_path, little_text)
    with pytest.raises(InputError, match="attention=mha, asked for was attention=mqa"):
        train(Training(attention="mqa", steps=1, size="tiny"), tmp_path, little_text)
    with pytest.raises(InputError, match="steps=1, asked for was steps=2"):
        train(Training(attention="mha", steps=2, size="tiny"), tmp_path, little_text)
    raw = (tmp_path / "training.json").read_text()
    (tmp_path / "training.json").write_text(raw.replace('"context": 64', '"context": 32'))
    with pytest.raises(InputError, match="context=32, asked for was context=64"):
        train(Training(attention="mha", steps=1, size="tiny"), tmp_path, little_text)
    with pytest.raises(ModelError, match=r"no readable training\.json"):
        read_log(tmp_path / "nothing")


def test_routers_are_kept_in_balance(little_text: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unbalanced = []
    for weight in (-1.0, 1.0):  # towards few experts, and towards all
        monkeypatch.setattr(module, "BALANCE", weight)
        folder = tmp_path / str(weight)
        train(Training(attention="olmoe:experts=4", steps=30, size="tiny"), folder, little_text)
        model, _ = load_trained(folder)
        with torch.no_grad():
            told = model(little_text.train[None, :500].long(), output_router_logits=True)
        unbalanced.append(float(told.aux_loss))
    assert unbalanced[1] < unbalanced[0], "2 is even"
