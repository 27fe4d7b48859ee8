"""A conversation on one cache says what the model would say without one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tenuto
from tenuto.bench.kv.chat import conversation, read_prompt
from tenuto.budget import MemoryBudget
from tenuto.errors import InputError, ModelError

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_token_follows_from_all_before_it(tiny_language: Path) -> None:
    with conversation(str(tiny_language), None, None, most=6) as chat:
        first = chat.language.encode(chat.language.chat([{"role": "user", "content": "one"}]))[0].tolist()
        shown = "".join(chat.say("one"))
        before = len(chat.seen)
        list(chat.say("two"))
        assert "nothing saved" in chat.summary()
    assert chat.seen[: len(first)] == first
    second = chat.language.decode(torch.tensor(chat.seen[before:]))
    assert second.startswith("\nuser: two\nassistant: ")
    logits = chat.language.model(torch.tensor([chat.seen])).logits[0]
    for start in (len(first), before + chat.language.count("\nuser: two\nassistant: ")):
        told = chat.seen[start : start + 6]
        assert logits[start - 1 : start + len(told) - 1].argmax(-1).tolist() == told
    assert chat.turns[1] == {"role": "assistant", "content": shown}


def test_a_policy_saves_bytes_and_the_second_turn_too(tiny_language: Path) -> None:
    with conversation(str(tiny_language), tenuto.SnapKV(window=8), MemoryBudget.tokens(16), most=4) as chat:
        for prompt in ("a long prompt with many words in it", "and another one just as long"):
            list(chat.say(prompt))
            assert chat.cache.bytes_held < 0.7 * chat.cache.bytes_full
        assert "saved" in chat.summary()


def test_too_long(tiny_language: Path) -> None:
    with conversation(str(tiny_language), None, None, most=4) as chat:
        with pytest.raises(InputError, match="was made for 2048"):
            list(chat.say("x" * 2048))


def test_a_template_that_rewrites_earlier_turns(tiny_language: Path) -> None:
    with conversation(str(tiny_language), None, None, most=4) as chat:
        list(chat.say("one"))
        chat.language.tokenizer.chat_template = "{{ messages | length }}{{ messages[-1]['content'] }}"
        with pytest.raises(ModelError, match="rewrites earlier turns"):
            list(chat.say("two"))


def test_prompts_from_files(tmp_path: Path) -> None:
    (tmp_path / "good").write_text(" two\nlines \n")
    assert read_prompt(tmp_path / "good") == "two\nlines"
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, said in (("none", "cannot be read"), ("empty", "is empty"), ("binary", "not UTF-8")):
        with pytest.raises(InputError, match=said):
            read_prompt(tmp_path / name)
