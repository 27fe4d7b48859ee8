"""The pass key: told once, in the context alone."""

from __future__ import annotations

from tenuto.texts.passkey import Passkey


def test_passkey() -> None:
    example = Passkey().make(0, 120, lambda text: len(text.split()))
    (question,) = example.questions
    (key,) = question.answers
    assert len(key) == 5
    assert f"The pass key is {key}" in example.context
    assert key not in question.text
    assert example.questions != Passkey().make(1, 120, lambda text: len(text.split())).questions
