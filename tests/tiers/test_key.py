"""Keys: one per content, whatever the page grid, and none by accident."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tenuto.errors import InputError
from tenuto.tiers.key import KeySpace, page_key, tenant_mark

FIELDS = {"model": "m", "tokenizer": "t", "adapter": "", "dtype": "float32", "codec": "exact", "tenant": "a"}


def key(**changes: Any) -> str:
    return page_key(**{**FIELDS, "tokens": [1, 2, 3, 4], "start": 2, **changes})


def test_a_key_is_a_mark_and_64_hex_digits_and_stays_the_same() -> None:
    assert key() == "8110389ee95d7390-2dee95b052118e608e2aecb67bc9e5a53c95d89e5c4db4f71df0dc4e3d62b9d1"
    assert key().startswith(tenant_mark("a")) and not key(tenant="b").startswith(tenant_mark("a"))


@pytest.mark.parametrize("field", [*FIELDS, "tokens", "start"])
def test_any_other_field_is_another_key(field: str) -> None:
    other: Any = {"tokens": [1, 2, 3, 5], "start": 1}.get(field, FIELDS.get(field, "") + "x")
    assert key(**{field: other}) != key()


def test_nothing_is_gained_by_moving_letters_or_tokens() -> None:
    shifted = [key(**dict(zip(FIELDS, parts, strict=True))) for parts in itertools.permutations("abcdef")]
    joined = [key(model="ab", tokenizer=""), key(model="a", tokenizer="b"), key(model="", tokenizer="ab")]
    zeros = [key(tokens=[0] * n, start=s) for n in range(1, 5) for s in range(n)]
    sizes = [key(tokens=ids, start=1) for ids in ([1, 2**32], [1 + 2**32, 0], [1, 2, 0], [1, 0, 2])]
    texts = [key(tenant="\ud800"), key(tenant="é"), key(tenant="e\u0301")]
    everything = [*shifted, *joined, *zeros, *sizes, *texts, key()]
    assert len(set(everything)) == len(everything)


def test_the_chain_gives_the_keys_of_the_whole_prefixes() -> None:
    tokens = list(range(100, 135))
    chain = list(KeySpace(**FIELDS).keys(tokens, 8))
    assert chain == [key(tokens=tokens[: start + 8], start=start) for start in (0, 8, 16, 24)]


def test_a_change_in_one_page_changes_it_and_all_after_it() -> None:
    space = KeySpace(**FIELDS)
    one, other = (list(space.keys(tokens, 4)) for tokens in (range(16), [*range(5), 99, *range(6, 16)]))
    assert [a == b for a, b in zip(one, other, strict=True)] == [True, False, False, False]


def test_pages_of_a_long_prefix_cost_one_pass() -> None:
    assert len(list(KeySpace(**FIELDS).keys(range(200_000), 16))) == 12_500


def test_wrong_numbers_are_refused() -> None:
    for tokens, start in (([], 0), ([1], 1), ([1], -1), ([1, -1], 0), ([2**63], 0)):
        with pytest.raises(InputError):
            key(tokens=tokens, start=start)
    with pytest.raises(InputError, match="at least 1"):
        list(KeySpace(**FIELDS).keys([1], 0))
