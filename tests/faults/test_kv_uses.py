"""At a full budget an attached model is the plain one, or refuses: under random uses, and some that once failed.

TENUTO_DRAWS=2000 draws as many, other ones each time; by default 60, always the same.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenuto.testing.kv_uses import JOURNEYS, CacheUse, check_use

DRAWS = int(os.environ.get("TENUTO_DRAWS", "0"))
POLICIES = (
    "knorm",
    "snapkv:window=8",
    "h2o",
    "expected_attention",
    "streaming_llm",
    "pyramidkv:window=8",
    "cake:window=8",
    "scissorhands",
    "adakv",
    "kvzip",
    "quest",
)

uses = st.builds(
    CacheUse,
    policy=st.sampled_from(POLICIES),
    seed=st.integers(0, 3),
    dtype=st.sampled_from(["float32", "float64", "bfloat16"]),
    rows=st.integers(1, 3),
    length=st.integers(2, 24),
    pads=st.tuples(*[st.integers(0, 6)] * 3),
    side=st.sampled_from(["left", "right"]),
    chunk=st.sampled_from([0, 0, 1, 5, 8]),
    journey=st.lists(st.sampled_from(JOURNEYS), max_size=4).map(tuple),
    threads=st.sampled_from([1, 1, 1, 2]),
    again=st.booleans(),
    store=st.sampled_from([False, False, True]),
)
texts = st.builds(
    CacheUse,
    policy=st.sampled_from(POLICIES),
    seed=st.integers(0, 3),
    dtype=st.just("float64"),
    rows=st.integers(1, 3),
    length=st.integers(2, 24),
    pads=st.tuples(*[st.integers(0, 6)] * 3),
    chunk=st.sampled_from([0, 0, 3, 8]),
    generate=st.sampled_from([1, 1, 2]),
    threads=st.sampled_from([1, 1, 2]),
    again=st.booleans(),
    store=st.sampled_from([False, False, True]),
)


@settings(
    max_examples=DRAWS or 60,
    derandomize=not DRAWS,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
)
@given(use=st.one_of(uses, uses, texts))
def test_an_attached_model_at_a_full_budget_is_the_plain_one(use: CacheUse) -> None:
    check_use(use)


@pytest.mark.parametrize(
    "use",
    [
        CacheUse(policy="snapkv:window=8", rows=2, pads=(0, 5, 0), side="right", journey=("turn", "fork", "repeat")),
        CacheUse(policy="h2o", chunk=5, journey=("save", "step", "swap"), threads=2),
        CacheUse(policy="kvzip", rows=2, pads=(4, 0, 0), chunk=8, journey=("turn",)),
        CacheUse(policy="snapkv:window=8", dtype="float64", generate=1, lookup=True, length=24, threads=2),
        CacheUse(
            policy="snapkv:window=8",
            dtype="float64",
            generate=1,
            store=True,
            length=24,
            rows=2,
            pads=(3, 0, 0),
            again=True,
        ),
        # What is taken back is padding of the last row, which then has no new query to be judged by.
        CacheUse(policy="cake:window=8", rows=3, length=5, pads=(0, 0, 3), side="right", journey=("crop",)),
        CacheUse(policy="snapkv:window=8", rows=3, length=5, pads=(0, 0, 3), side="right", journey=("crop",)),
    ],
    ids=str,
)
def test_uses_that_are_made_and_not_refused(use: CacheUse) -> None:
    assert check_use(use)
