"""The public laws over every method of the KV family, found by itself, and over compositions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tenuto import catalog
from tenuto.kv.policy import KVPolicy
from tenuto.testing.kv import KV_LAWS
from tenuto.testing.law import law_round_trip

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
COMBINED = [
    "knorm:sinks=4+adakv",
    "adakv+kivi:bits=4,residual=8",
    "knorm+kivi:group=16,bits=8,residual=0",
    "h2o+kivi:group=16,residual=0",
]

KINDS = ("scorer", "allocator", "selector", "losers", "codec")
DRAWN = [  # at random, a method or none for each kind; not drawn: allocators that want the scorer of their own paper
    ("zipcache", "kvzip", "streaming_llm", "kvmerger", None),
    ("h2o", "pyramidkv", "mikv", "kvmerger", "mikv"),
    ("cake", "cake", "cake", None, "zipcache"),
    ("snapkv", "cake", "pyramidkv", "razor_attention", "zipcache"),
    ("cake", "cake", "adakv", "razor_attention", None),
    ("adakv", "cake", "kvzip", "kvmerger", "zipcache"),
    ("razor_attention", "adakv", "pyramidkv", "kvmerger", "think"),
    ("zipcache", "pyramidkv", "h2o", None, "zipcache"),
    (None, None, "snapkv", "kvmerger", None),
    ("pyramidkv", "kvzip", "zipcache", "kvmerger", "kivi"),
]


@pytest.mark.parametrize("law", [law_round_trip, *KV_LAWS], ids=lambda law: law.__name__)
@pytest.mark.parametrize("text", [*catalog.methods("kv"), *COMBINED])
def test_law(text: str, law: Callable[[Any], None]) -> None:
    sweep = catalog.method(text, "kv").cls.sweep if text in catalog.methods("kv") else ()
    law(catalog.parse(sweep[-1] if sweep else text, "kv"))


@pytest.mark.parametrize("law", KV_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("drawn", DRAWN, ids=lambda drawn: "-".join(name or "none" for name in drawn))
def test_composition(drawn: tuple[str | None, ...], law: Callable[[Any], None]) -> None:
    blocks: dict[str, Any] = {kind: catalog.parse(name, "kv") for kind, name in zip(KINDS, drawn, strict=True) if name}
    law(KVPolicy(**blocks))
