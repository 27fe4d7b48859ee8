"""Ordinary uses of an attached model, drawn at random: each generation gives what it gives alone, or refuses.

TENUTO_DRAWS=2000 draws more of them.
"""

from __future__ import annotations

import os
from functools import cache

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import tenuto
from tenuto.calibration import Profile
from tenuto.diffusion.policy import FeaturePolicy
from tenuto.testing import TinyDiT, denoise
from tenuto.testing.feature_uses import SCHEDULERS, FeatureUse, Generation, law_as_alone

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation:DeprecationWarning"
    ),  # numpy 2 on diffusers' schedulers
]
DRAWS = settings(
    max_examples=int(os.environ.get("TENUTO_DRAWS", "60")),
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
CLOSED: tuple[FeaturePolicy, ...] = (
    tenuto.EveryN(n=1),
    tenuto.FirstBlock(threshold=0.0),
    tenuto.TaylorSeer(interval=1),
    tenuto.AdaCorrection(inner=tenuto.EveryN(n=1), tokens=0.5),
    tenuto.FastCache(rtol=0.0),
    tenuto.TeaCache(threshold=0.0),
)
OPEN: tuple[FeaturePolicy, ...] = (
    tenuto.EveryN(n=2),
    tenuto.FirstBlock(threshold=0.5),
    tenuto.TaylorSeer(interval=2, warmup=2),
    tenuto.AdaCorrection(inner=tenuto.EveryN(n=2)),
    tenuto.FastCache(rtol=0.5, span=1),
    tenuto.FastCache(rtol=0.5, tokens=0.5),
    tenuto.TeaCache(threshold=0.5),
)


@cache
def profile_of(policy: FeaturePolicy) -> Profile | None:
    """Fitted once on a few generations of five steps."""
    if not policy.profiled.calibrated:
        return None
    model = TinyDiT(blocks=3, width=8)
    return tenuto.calibrate(
        model, policy, lambda seed: denoise(model, seed, width=8, tokens=4, steps=5), seeds=range(100, 106), settings={}
    )


generations = st.builds(
    Generation,
    seed=st.integers(0, 9),
    batch=st.integers(1, 3),
    tokens=st.sampled_from([1, 4, 6]),
    steps=st.integers(1, 6),
    guidance=st.sampled_from(["batched", "separate", "none"]),
    scheduler=st.sampled_from(SCHEDULERS),
    mode=st.sampled_from(["no_grad", "inference", "enable_grad"]),
    fail=st.one_of(st.none(), st.none(), st.integers(0, 5)),
)
uses = st.builds(
    FeatureUse,
    generations=st.lists(generations, min_size=1, max_size=4).map(tuple),
    how=st.sampled_from(FeatureUse.HOW),
    named=st.booleans(),
    copied=st.booleans(),
    again=st.booleans(),
    dtype=st.sampled_from(["float32", "float32", "bfloat16", "float64"]),
)


@DRAWS
@given(policy=st.sampled_from(CLOSED), use=uses)
@example(policy=CLOSED[0], use=FeatureUse(generations=(Generation(), Generation(seed=1, tokens=6)), how="threads"))
def test_a_closed_policy_changes_nothing(policy: FeaturePolicy, use: FeatureUse) -> None:
    law_as_alone(policy, use, profile=profile_of(policy), closed=True)


@DRAWS
@given(policy=st.sampled_from(OPEN), use=uses)
@example(policy=OPEN[0], use=FeatureUse(generations=(Generation(steps=1), Generation(scheduler=SCHEDULERS[1]))))
@example(
    policy=OPEN[0], use=FeatureUse(generations=(Generation(steps=1, scheduler=SCHEDULERS[1]), Generation(steps=1)))
)
@example(
    policy=OPEN[0],
    use=FeatureUse(
        generations=(
            Generation(steps=1, scheduler="DPMSolverMultistepScheduler"),
            Generation(steps=2, scheduler="EulerDiscreteScheduler"),  # begins where the one before it ended
        )
    ),
)
@example(
    policy=OPEN[-1],
    use=FeatureUse(  # a scheduler that comes first, or after another, is known as well
        generations=(
            Generation(steps=1, batch=1, tokens=1),
            Generation(seed=1, steps=6, batch=1, tokens=1, scheduler="DPMSolverMultistepScheduler"),
        ),
        how="pipeline",
    ),
)
@example(policy=OPEN[0], use=FeatureUse(generations=(Generation(fail=2), Generation(seed=1)), how="woven"))
@example(
    policy=OPEN[1], use=FeatureUse(generations=(Generation(), Generation(seed=1), Generation(seed=2)), how="threads")
)
def test_generations_do_not_know_of_each_other(policy: FeaturePolicy, use: FeatureUse) -> None:
    law_as_alone(policy, use, profile=profile_of(policy))


def test_gradients_are_refused_where_a_step_would_be_estimated_and_nowhere_else() -> None:
    use = FeatureUse(generations=(Generation(mode="enable_grad"),))
    assert [str(error)[:9] for error in law_as_alone(tenuto.EveryN(n=2), use)] == ["Gradients"]
    assert not law_as_alone(tenuto.EveryN(n=1), use, closed=True)
