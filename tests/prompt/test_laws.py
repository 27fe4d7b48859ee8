"""The public laws over every method of the prompt family, found by itself, in the settings that it names."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tenuto import catalog
from tenuto.prompt.policy import PromptMethod
from tenuto.testing import PROMPT_LAWS, law_round_trip

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
TEXTS = [
    text
    for info in catalog.methods("prompt").values()
    for text in info.cls.trials or info.cls.sweep[-1:] or [info.name]
]


@pytest.mark.parametrize("law", [law_round_trip, *PROMPT_LAWS], ids=lambda law: law.__name__)
@pytest.mark.parametrize("text", TEXTS)
def test_law(text: str, law: Callable[[PromptMethod], None]) -> None:
    law(catalog.parse(text, "prompt"))
