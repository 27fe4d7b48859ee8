"""What is read from a store is believed only if it is what the model would have computed, as far as can be seen."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

import tenuto
from tenuto.errors import StoreError
from tenuto.testing.kv import TinyLM, tokens
from tenuto.tiers import page as pages
from tenuto.tiers.address import Level
from tenuto.tiers.codec import PageCodec, zstandard_package
from tenuto.tiers.host import HostTier

pytestmark = pytest.mark.usefixtures("one_thread")
ALL, IDS = tenuto.MemoryBudget.keep(1.0), tokens(40)
Change = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


def each(change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    return lambda named: {name: change(part) for name, part in named.items()}


def packed(named: dict[str, torch.Tensor]) -> Change:
    data = zstandard_package().ZstdCompressor().compress(save(named))
    return lambda _: {"zstd": torch.frombuffer(bytearray(data), dtype=torch.uint8)}


def one_number(value: float) -> Change:
    def change(part: torch.Tensor) -> torch.Tensor:
        part = part.clone()
        part.view(-1)[7] = value
        return part

    return each(change)


CHANGES: dict[str, tuple[str, Change]] = {
    "a layer too many": ("raw", each(lambda part: torch.cat([part, part[:1]]))),
    "heads as layers": ("raw", each(lambda part: part.transpose(0, 1).contiguous())),
    "half the width": ("raw", each(lambda part: part[..., ::2].contiguous())),
    "float64": ("raw", each(lambda part: part.double())),
    "another float": ("raw", each(lambda part: part.half())),
    "three dimensions": ("raw", each(lambda part: part[0])),
    "one infinity": ("raw", one_number(float("inf"))),
    "one NaN": ("raw", one_number(float("nan"))),
    "no values": ("raw", lambda named: {"keys": named["keys"]}),
    "a tensor too many": ("raw", lambda named: named | {"more": named["keys"]}),
    "scales that are not finite": ("int8", lambda named: named | {"key_scales": named["key_scales"] * float("inf")}),
    "codes in floats": ("int8", lambda named: named | {"keys": named["keys"].float()}),
    "steps in float64": ("delta8", lambda named: named | {"keys_step": named["keys_step"].double()}),
    "a label that is no dtype": ("raw+zstd", packed({"keys.ones": torch.zeros(4, 2, dtype=torch.uint8)})),
    "a frame of nothing": ("raw+zstd", packed({})),
}


@pytest.mark.parametrize(("codec", "change"), CHANGES.values(), ids=CHANGES)
def test_a_page_of_another_kind_is_a_miss_and_is_replaced(codec: str, change: Change) -> None:
    model, tier = TinyLM().eval(), HostTier(1 << 24)

    def read() -> tuple[Any, int]:
        with tenuto.PrefixStore([Level(tier, PageCodec.parse(codec))], page=8) as store:
            tier.close = lambda: None  # type: ignore[method-assign]
            with tenuto.attach(model, tenuto.Knorm(), budget=ALL, store=store) as run:
                cache = run.restore(IDS)
                held = cache.get_seq_length()
                return model(IDS[:, held:], past_key_values=cache).logits[:, -1], held

    want, none = read()
    assert none == 0 and read()[1] == 32
    for key in tier.keys():  # noqa: SIM118 (a tier is no mapping)
        page = pages.decode(tier.get(key) or b"")
        tier._pages[key] = pages.encode(change(page.tensors), page.facts)
    with pytest.warns(RuntimeWarning, match="computed again"):
        got, held = read()
    assert held == 0 and torch.allclose(got, want, atol=1e-4)
    assert read()[1] == 32, "what was computed took the place of what was refused"


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["keys", "values", "key_scales", "value_scales", "keys_step", "values_step", "zstd", "x"]),
        st.tuples(
            st.sampled_from([torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.bool]),
            st.lists(st.integers(0, 5), max_size=5),
        ),
    ),
    st.sampled_from(["raw", "fp8", "int8", "int4", "delta8", "raw+zstd", "delta8+zstd"]),
)
def test_any_tensors_are_the_right_shape_or_refused(named: dict[str, Any], codec: str) -> None:
    made = {name: torch.ones(shape, dtype=dtype) for name, (dtype, shape) in named.items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            keys, values = PageCodec.parse(codec).decode(made, torch.float32, (1, 2, 3, 4))
    except StoreError:
        return
    assert keys.shape == values.shape == (1, 2, 3, 4)
    assert keys.dtype == values.dtype == torch.float32
    assert bool(keys.isfinite().all()) and bool(values.isfinite().all())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_bytes_that_were_changed_anywhere_are_refused_in_one_line(data: st.DataObject) -> None:
    facts = pages.PageFacts(model="m", dtype="float32", codec="raw", start=0, stop=4)
    whole = pages.encode({"keys": torch.ones(1, 1, 4, 2), "values": torch.ones(1, 1, 4, 2)}, facts)
    at, by = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.binary(max_size=9))
    other = whole[:at] + by + whole[at + data.draw(st.integers(0, 9)) :]
    if other != whole:
        with pytest.raises(StoreError) as error:
            pages.decode(other)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize(("around", "width"), [(100.0, 0.3), (0.0, 1e-6), (-5000.0, 1.0), (3e-7, 3e-8), (7e4, 10.0)])
def test_small_ranges_come_back_within_a_step(bits: str, around: float, width: float) -> None:
    codec = PageCodec.parse(bits)
    x = around + width * torch.rand(2, 2, 64, 32, generator=torch.Generator().manual_seed(0))
    step = width / (2 ** (8 if bits == "int8" else 4) - 1)
    for found in codec.decode(codec.encode(x, x), torch.float32, (2, 2, 64, 32)):
        rounding = 4 * torch.finfo(torch.float32).eps * abs(around)  # of the group's start, step and sum
        assert float((found - x).abs().max()) <= 0.75 * step + rounding


def test_pages_of_the_layout_before_have_another_name() -> None:
    for name in ("int8", "int4", "int8+zstd"):
        codec = PageCodec.parse(name)
        assert codec.label != name and PageCodec.labelled(codec.label) == PageCodec.labelled(name) == codec
    assert PageCodec.parse("raw+zstd").label == "raw+zstd"
