"""The public laws over every method of the reuse family, found by itself, in the settings that it names."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tenuto import catalog
from tenuto.reuse.policy import Assembler
from tenuto.testing import REUSE_LAWS, law_round_trip

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
TEXTS = [
    text for info in catalog.methods("reuse").values() for text in info.cls.trials or info.cls.sweep[-1:] or [info.name]
]


@pytest.mark.parametrize("law", [law_round_trip, *REUSE_LAWS], ids=lambda law: law.__name__)
@pytest.mark.parametrize("text", TEXTS)
def test_law(text: str, law: Callable[[Assembler], None]) -> None:
    law(catalog.parse(text, "reuse"))
