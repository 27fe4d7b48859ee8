from __future__ import annotations

import pytest

from tenuto.errors import StoreError
from tenuto.vllm.block import seal, unseal

NAME, OTHER = "ab" * 32, "cd" * 32


def test_a_page_comes_back() -> None:
    page = seal(b"payload", name=NAME, codec="raw.1", size=7)
    assert bytes(unseal(page, name=NAME, codec="raw.1", size=7)) == b"payload"


def test_every_changed_cut_or_added_byte_is_seen() -> None:
    page = seal(b"payload", name=NAME, codec="raw.1", size=7)
    broken = [page[:i] + bytes([page[i] ^ 1]) + page[i + 1 :] for i in range(len(page))]
    broken += [page[:i] for i in range(len(page))] + [page + b"x"]
    for data in broken:
        with pytest.raises(StoreError, match="Compute the block again"):
            unseal(data, name=NAME, codec="raw.1", size=7)


@pytest.mark.parametrize(
    "asked",
    [
        {"name": OTHER, "codec": "raw.1", "size": 7},
        {"name": NAME, "codec": "raw.2", "size": 7},
        {"name": NAME, "codec": "raw.1", "size": 8},
    ],
)
def test_the_page_of_another_block_is_not_taken(asked: dict[str, object]) -> None:
    page = seal(b"payload", name=NAME, codec="raw.1", size=7)
    with pytest.raises(StoreError, match="no page of this block"):
        unseal(page, **asked)  # type: ignore[arg-type]
