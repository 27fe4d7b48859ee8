"""Attentions as text."""

from __future__ import annotations

import pytest

from tenuto import catalog
from tenuto.attention import MKA, PiAttention, ShortConv, Window
from tenuto.errors import PolicyError


@pytest.mark.parametrize("name", catalog.methods("attention"))
def test_a_text_and_back(name: str) -> None:
    attention = catalog.parse(name, "attention")
    assert str(attention) == name and catalog.parse(str(attention), "attention") == attention
    assert hash(attention) == hash(catalog.parse(name))


def test_options_are_read() -> None:
    attention = catalog.parse("mka:window=64, horizons=0, original=true", "attention")
    assert attention == MKA(window=64, horizons=0, original=True)
    assert str(attention) == "mka:window=64,horizons=0,original=true"
    assert catalog.parse(str(attention)) == attention


def test_one_feeds_the_next() -> None:
    three = catalog.parse("short_conv+short_conv:kernel=3+window:window=8", "attention")
    assert three == ShortConv(then=ShortConv(kernel=3, then=Window(window=8)))
    assert str(three) == "short_conv+short_conv:kernel=3+window:window=8"
    assert three.attending == Window(window=8)
    with pytest.raises(PolicyError, match="attends by itself"):
        catalog.parse("short_conv+mka+window")


def test_the_name_of_older_records_is_read() -> None:
    assert catalog.parse("pi:stride=16", "attention") == PiAttention(stride=16)
    assert catalog.parse("short_conv+pi:stride=16") == ShortConv(then=PiAttention(stride=16))
    assert str(PiAttention(stride=16)) == "pi_attention:stride=16"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mkas", "Did you mean"),
        ("mka:windw=3", "Did you mean"),
        ("mka:window=x", "a whole number"),
        ("mka:original=maybe", "true or false"),
        ("mka:window=0", "1 or more"),
        ("mka:then=window", "no option 'then'"),
        ("short_conv:then=window", "no option 'then'"),
        ("short_conv+snapkv", "'snapkv' is a method of the family kv, not of attention"),
    ],
)
def test_a_wrong_text_is_one_sentence_that_helps(text: str, said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        catalog.parse(text, "attention")
