"""Language models load from folders without a network; what is damaged is refused in one line."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from tenuto.errors import InputError, ModelError
from tenuto.zoo.language import check_length, load_language

pytestmark = pytest.mark.usefixtures("one_thread")


def test_text_and_tokens(tiny_language: Path) -> None:
    language = load_language(str(tiny_language), "cpu")
    ids = language.encode("grüß dich")
    assert ids.shape == (1, language.count("grüß dich"))
    assert language.decode(ids[0]) == "grüß dich"
    assert language.chat([{"role": "user", "content": "hi"}]) == "user: hi\nassistant: "
    template, language.tokenizer.chat_template = language.tokenizer.chat_template, None
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}, {"role": "user", "content": "?"}]
    assert language.chat(said) == "hi\nho?\n"
    language.tokenizer.chat_template = template
    assert language.ends == {language.tokenizer.eos_token_id}
    assert language.model.dtype is torch.float32
    assert not language.model.training
    check_length(language, 2048)
    with pytest.raises(InputError, match="2049 tokens are too many"):
        check_length(language, 2049)


def test_what_cannot_be_loaded(tiny_language: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Give bundled:smollm2 or a folder"):
        load_language(str(tmp_path))
    damaged = shutil.copytree(tiny_language, tmp_path / "damaged")
    os.truncate(damaged / "model.safetensors", 2000)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_language(str(damaged))
    partial = shutil.copytree(tiny_language, tmp_path / "partial")
    config = (partial / "config.json").read_text()
    (partial / "config.json").write_text(config.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with pytest.raises(ModelError, match=r"do not fit its config.json"):
        load_language(str(partial))
