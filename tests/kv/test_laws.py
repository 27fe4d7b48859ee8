"""The public laws over every method of the KV family, found by itself, and over compositions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tenuto import catalog
from tenuto.testing.kv import KV_LAWS
from tenuto.testing.law import law_round_trip

pytestmark = pytest.mark.usefixtures("one_thread")
COMBINED = ["knorm:sinks=4+adakv", "adakv+kivi:bits=4,residual=8", "knorm+kivi:group=16,bits=8,residual=0"]


@pytest.mark.parametrize("law", [law_round_trip, *KV_LAWS], ids=lambda law: law.__name__)
@pytest.mark.parametrize("text", [*catalog.methods("kv"), *COMBINED])
def test_law(text: str, law: Callable[[Any], None]) -> None:
    sweep = catalog.method(text, "kv").cls.sweep if text in catalog.methods("kv") else ()
    law(catalog.parse(sweep[-1] if sweep else text, "kv"))
