"""A store of prefixes: what was computed comes back, only to whom it belongs, and what is broken is computed again."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tenuto.errors import InputError, StoreError
from tenuto.reuse.prefix import ModelPages, PrefixStore, Stretch
from tenuto.tiers.address import Level
from tenuto.tiers.codec import PageCodec
from tenuto.tiers.host import HostTier

PAGE = 4
TOKENS = list(range(100, 123))  # five pages and three tokens


def stretch(tokens: list[int], level: int = 0) -> Stretch:
    """Entries that depend on their token alone, so that a wrong page is seen."""
    random = torch.Generator().manual_seed(0)
    table = torch.randn(200, 2, 3, 2, 8, generator=random)
    keys, values = table[tokens].movedim(0, 3).unbind(0)
    return Stretch(keys.contiguous(), values.contiguous(), level)


def shelf(store: PrefixStore, model: str = "m", adapter: str = "") -> ModelPages:
    return store.shelf(model, torch.float32, adapter)


def holds(found: Stretch | None, tokens: list[int]) -> bool:
    return (
        found is not None
        and torch.equal(found.keys, stretch(tokens).keys)
        and torch.equal(found.values, stretch(tokens).values)
    )


def test_the_longest_prefix_comes_back(tmp_path: Path) -> None:
    with PrefixStore(f"disk:{tmp_path}", page=PAGE) as store:
        mine = shelf(store)
        assert mine.read(TOKENS) is None and mine.missing(TOKENS) == 20
        mine.write(TOKENS, stretch(TOKENS))
        assert mine.missing(TOKENS) == 0 and mine.match(TOKENS) == 20
    with PrefixStore(f"disk:{tmp_path}", page=PAGE) as store:
        mine = shelf(store)
        assert holds(mine.read(TOKENS), TOKENS[:20])
        other = [*TOKENS[:10], 7, *TOKENS[11:]]
        assert holds(mine.read(other), TOKENS[:8]) and mine.match(other) == 8 and mine.missing(other) == 20
        assert mine.read([7, *TOKENS[1:]]) is None and mine.read(TOKENS[:3]) is None and mine.read([]) is None


def test_nobody_gets_the_pages_of_another(tmp_path: Path) -> None:
    with PrefixStore(f"disk:{tmp_path}", page=PAGE, tenant="a") as store:
        shelf(store).write(TOKENS, stretch(TOKENS))
        assert shelf(store, model="n").match(TOKENS) == shelf(store, adapter="lora").match(TOKENS) == 0
        assert store.shelf("m", torch.bfloat16).match(TOKENS) == 0
        for changes in ({"tenant": "b"}, {"page": 5, "tenant": "a"}):
            with PrefixStore(f"disk:{tmp_path}", **{"page": PAGE, **changes}) as other:
                assert shelf(other).match(TOKENS) == 0


def test_a_page_under_the_key_of_another_is_not_believed(tmp_path: Path) -> None:
    with PrefixStore(f"disk:{tmp_path}", page=PAGE) as store:
        mine, tier = shelf(store), store.levels[0].tier
        mine.write(TOKENS, stretch(TOKENS))
        first, second = mine.keys(0, TOKENS)[:2]
        data = tier.get(second) or b""
        tier.discard(first)
        tier.put(first, data)
        with pytest.warns(RuntimeWarning, match="under the key of"):
            assert mine.read(TOKENS) is None


def test_damaged_pages_end_the_prefix_and_are_written_again() -> None:
    tier, dice = HostTier(1 << 20), random.Random(0)
    with PrefixStore([Level(tier, PageCodec())], page=PAGE) as store:
        mine = shelf(store)
        mine.write(TOKENS, stretch(TOKENS))
        keys = mine.keys(0, TOKENS)
        with pytest.warns(RuntimeWarning, match="computed again") as caught:
            for place in (4, 2, 0):
                data = bytearray(tier.get(keys[place]) or b"")
                data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
                tier.discard(keys[place])
                tier.put(keys[place], bytes(data))
                found = mine.read(TOKENS)
                assert holds(found, TOKENS[: place * PAGE]) if place else found is None
        assert len(caught) == 1


def test_levels_of_other_codecs_are_asked_in_order() -> None:
    exact, small = HostTier(10_000), HostTier(1 << 20)
    levels = [Level(exact, PageCodec()), Level(small, PageCodec("int8"))]
    with PrefixStore(levels, page=PAGE) as store:
        mine = shelf(store)
        mine.write(TOKENS, stretch(TOKENS))
        found = mine.read(TOKENS)
        assert holds(found, TOKENS[:20]) and found is not None and found.level == 0
        exact.discard(mine.keys(0, TOKENS)[3])
        found = mine.read(TOKENS)
        assert found is not None and found.level == 1 and found.keys.shape[2] == 20
        kept = stretch(TOKENS).keys[:, :, :20]
        assert torch.equal(found.keys[:, :, :12], kept[:, :, :12]) and not torch.equal(found.keys, kept)
        assert torch.allclose(found.keys, kept, atol=0.05)
        longer = [*TOKENS[:20], 1, 2, 3, 4]
        mine.write(longer, stretch(longer, level=1))  # computed on pages of few bits: no exact page is made of it
        assert not exact.contains(mine.keys(0, longer)[5]) and small.contains(mine.keys(1, longer)[5])


def test_a_full_tier_keeps_the_beginning() -> None:
    tier = HostTier(4000)
    with PrefixStore([Level(tier, PageCodec())], page=PAGE) as store:
        mine = shelf(store)
        mine.write(TOKENS, stretch(TOKENS))
        assert holds(mine.read(TOKENS), TOKENS[: mine.match(TOKENS)]) and 0 < mine.match(TOKENS) < 20


def test_writing_goes_on_behind_and_is_waited_for() -> None:
    class Slow(HostTier):
        def put(self, key: str, data: bytes) -> None:
            assert going.wait(10)
            super().put(key, data)

    going, tier = threading.Event(), Slow(1 << 20)
    with PrefixStore([Level(tier, PageCodec())], page=PAGE) as store:
        mine = shelf(store)
        store.behind(mine, TOKENS, stretch(TOKENS))
        assert mine.match(TOKENS) == 0
        going.set()
        store.flush()
        assert mine.match(TOKENS) == 20


def test_a_tier_that_refuses_is_warned_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any) -> None:
        raise StoreError("The disk is full.")

    with PrefixStore("host:", page=PAGE) as store:
        monkeypatch.setattr(store.levels[0].tier, "put", refuse)
        with pytest.warns(RuntimeWarning, match=r"not stored. The disk is full") as caught:
            for _ in range(2):
                shelf(store).write(TOKENS, stretch(TOKENS))
        assert len(caught) == 1 and shelf(store).match(TOKENS) == 0


def test_impossible_stores_are_refused() -> None:
    with pytest.raises(InputError, match="at least 1"):
        PrefixStore("host:", page=0)
    with pytest.raises(InputError, match="no address"):
        PrefixStore("nowhere")
