"""The public tiny model and the way through all laws."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

import tenuto
from tenuto.testing import STEPS, LawError, TinyDiT, check_feature_policy, denoise, profile_for

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_tiny_model_is_the_same_every_time_and_leaves_the_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second, other = TinyDiT(), TinyDiT(), TinyDiT(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(denoise(first), denoise(second))
    assert not torch.equal(denoise(first), denoise(other))


def test_models_that_threads_build_at_once_have_the_weights_of_their_seeds() -> None:
    """PyTorch's generator is one for all threads: without waiting, a quarter of 300 models had other weights."""
    wanted, before = TinyDiT().state_dict(), sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(3) as pool:
            found = [model.state_dict() for model in pool.map(lambda _: TinyDiT(), range(30))]
    finally:
        sys.setswitchinterval(before)
    assert all(torch.equal(each[name], wanted[name]) for each in found for name in wanted)


def test_a_generation_is_fixed_by_its_seed() -> None:
    model = TinyDiT(blocks=2, width=8)
    result = denoise(model, 3, batch=1, tokens=5, width=8, steps=4)
    assert result.shape == (1, 5, 8)
    assert torch.equal(result, denoise(model, 3, batch=1, tokens=5, width=8, steps=4))
    assert not torch.equal(result, denoise(model, 4, batch=1, tokens=5, width=8, steps=4))


def test_batched_and_separate_guidance_are_the_same_generation() -> None:
    model = TinyDiT()
    torch.testing.assert_close(denoise(model, separate=True), denoise(model))


def test_the_output_depends_on_timestep_and_class() -> None:
    model, x = TinyDiT(), torch.ones(1, 6, 16)
    with torch.no_grad():
        base = model(x, torch.tensor([500.0]), torch.tensor([1]))
        assert not torch.allclose(model(x, torch.tensor([900.0]), torch.tensor([1])), base, atol=1e-3)
        assert not torch.allclose(model(x, torch.tensor([500.0]), torch.tensor([2])), base, atol=1e-3)


def test_between_steps_a_test_may_look() -> None:
    seen: list[int] = []
    denoise(TinyDiT(), pause=seen.append)
    assert seen == list(range(STEPS))


def test_profiles_are_made_where_they_are_needed() -> None:
    model = TinyDiT()
    assert profile_for(tenuto.EveryN(), model) is None
    profile = profile_for(tenuto.TeaCache(), model)
    assert profile is not None and profile.policy == "teacache" and len(profile.numbers["coefficients"]) == 5


def test_all_laws_at_once() -> None:
    policy = tenuto.FirstBlock(threshold=0.4)
    check_feature_policy(policy)
    check_feature_policy(policy, closed=replace(policy, threshold=0.0))


def test_a_policy_that_is_not_closed_is_found_out() -> None:
    with pytest.raises(LawError, match="a closed gate never reuses; seen: "):
        check_feature_policy(tenuto.EveryN(n=2), closed=tenuto.EveryN(n=3))


def test_a_policy_that_never_reuses_is_found_out() -> None:
    with pytest.raises(LawError, match="identical inputs are reused after warm-up"):
        check_feature_policy(tenuto.EveryN(n=1))


def test_a_law_error_is_an_assertion() -> None:
    assert issubclass(LawError, AssertionError)
