"""Profiles: given, found, or fitted on seeds that the benchmark does not judge by."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import tenuto
from tenuto.bench.diffusion import fitting
from tenuto.bench.diffusion.fitting import fit_profile, profiles_for
from tenuto.bench.diffusion.job import CALIBRATION_OFFSET, Job
from tenuto.calibration import Profile
from tenuto.errors import CalibrationError, InputError, PolicyError
from tenuto.zoo.pipelines import ImageModel, load_model

pytestmark = pytest.mark.usefixtures("offline")
JOB = Job(steps=6, samples=4, seed=3)
MILD, STRONG = tenuto.TeaCache(threshold=0.1), tenuto.TeaCache(threshold=0.5)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> ImageModel:
    return load_model(str(tiny_model))


@pytest.fixture(scope="module")
def profile(model: ImageModel, offline: None) -> Profile:
    return fit_profile(model, MILD, steps=6, guidance=1.5, seed=500, runs=2)


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> Profile:
        raise AssertionError("fitted although a profile was at hand")

    monkeypatch.setattr(fitting, "fit_profile", refuse)


def test_what_a_profile_says_of_itself(model: ImageModel, profile: Profile) -> None:
    assert (profile.policy, profile.fingerprint) == ("teacache", model.fingerprint)
    told = {key: value for key, value in profile.settings.items() if key != "seconds"}
    sampling = {"kind": "plain", "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    assert told == {"steps": 6, "guidance": 1.5, "sampler": "DDIMScheduler", "seed": 500, "pictures": 20, **sampling}
    assert profile.settings["seconds"] > 0


def test_fitted_once_for_all_policies_it_serves(model: ImageModel, tmp_path: Path, monkeypatch) -> None:
    seeds: list[int] = []
    draw = ImageModel.draw

    def watched(self: ImageModel, labels: list[int], given: list[int], steps: int, guidance: float) -> object:
        seeds.extend(given)
        return draw(self, labels, given, steps, guidance)

    monkeypatch.setattr(ImageModel, "draw", watched)
    monkeypatch.setattr(fitting, "RUNS", 2)
    found = profiles_for(model, [tenuto.EveryN(), MILD, STRONG], JOB, [], tmp_path / "profiles")
    assert set(found) == {MILD, STRONG}
    assert found[MILD] is found[STRONG]
    assert found[MILD].seconds > 0
    assert min(seeds) >= CALIBRATION_OFFSET > JOB.seed + JOB.samples
    (path,) = (tmp_path / "profiles").iterdir()
    assert Profile.load(path).numbers == found[MILD].profile.numbers


def test_a_given_profile_is_used_and_costs_nothing(
    model: ImageModel, profile: Profile, never: None, tmp_path: Path
) -> None:
    found = profiles_for(model, [MILD], JOB, [profile], tmp_path / "profiles")
    assert found[MILD].profile is profile
    assert found[MILD].seconds == 0
    assert not (tmp_path / "profiles").exists()


def test_a_found_profile_must_be_for_the_same_settings(
    model: ImageModel, profile: Profile, never: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENUTO_HOME", str(tmp_path))
    profile.save(tmp_path / "profiles" / "teacache.safetensors")
    assert profiles_for(model, [MILD], JOB, [], tmp_path)[MILD].seconds == 0
    with pytest.raises(AssertionError, match="at hand"):
        profiles_for(model, [MILD], replace(JOB, steps=7), [], tmp_path)


def test_seeds_to_fit_on_and_to_judge_by_are_kept_apart(model: ImageModel, profile: Profile, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"fitted on the seeds 500 to 519, which overlap the seeds 515 to 518"):
        profiles_for(model, [MILD], replace(JOB, seed=515), [profile], tmp_path)
    profiles_for(model, [MILD], replace(JOB, seed=520), [profile], tmp_path)
    profiles_for(model, [MILD], replace(JOB, seed=496), [profile], tmp_path)


def test_a_policy_that_may_do_without_is_not_fitted(model: ImageModel, tmp_path: Path) -> None:
    policies = [tenuto.FastCache(), tenuto.FastCache(fit="online")]
    assert profiles_for(model, policies, JOB, [], tmp_path / "profiles") == {}
    assert not (tmp_path / "profiles").exists()


def test_profiles_that_do_not_belong_here(model: ImageModel, profile: Profile, tmp_path: Path) -> None:
    other = replace(profile, fingerprint="0123456789abcdef")
    with pytest.raises(CalibrationError, match=f"0123456789abcdef.*{model.fingerprint}"):
        profiles_for(model, [MILD], JOB, [other], tmp_path)
    with pytest.raises(InputError, match="A profile for 'teacache' was given, but the policies are: none"):
        profiles_for(model, [tenuto.EveryN()], JOB, [profile], tmp_path)


def test_nothing_to_fit(model: ImageModel) -> None:
    with pytest.raises(PolicyError, match="needs no calibration"):
        fit_profile(model, tenuto.EveryN(), steps=6, guidance=1.5, seed=0)
    with pytest.raises(InputError, match="runs=0"):
        fit_profile(model, MILD, steps=6, guidance=1.5, seed=0, runs=0)
