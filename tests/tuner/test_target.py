"""What a target says, and that its allowances are as large as they claim to be."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tenuto.bench.diffusion.tuning import TrialOutcome
from tenuto.errors import InputError
from tenuto.records.diffusion import Run
from tenuto.tuner.target import Target, lower_bound, predicted_speedup


def outcome(psnr: float = 40.0, flops: float | None = 2.0, spread: float = 1.0) -> TrialOutcome:
    return TrialOutcome(psnr=(psnr - spread, psnr + spread) * 10, flops_speedup=flops, speedup=1.9)


@pytest.mark.parametrize("given", ["psnr>=30", " psnr >= 30.0 ", "speedup>=2", "ssim>=.98", "flops_speedup>=1.5"])
def test_reads(given: str) -> None:
    target = Target.parse(given)
    assert Target.parse(str(target)) == target
    assert target.is_speed == ("speedup" in given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("psnr", "is malformed. Write METRIC>=NUMBER"),
        ("psnr<=30", "is malformed"),
        ("psnr>30", "is malformed"),
        ("psrn>=30", "Did you mean 'psnr'?"),
        ("psnr>=high", "has no number: 'high'"),
        ("psnr>=nan", "lies between 0 and 100"),
        ("psnr>=inf", "lies between 0 and 100"),
        ("speedup>=0.5", "lies between 1 and 1000"),
        ("ssim>=30", "lies between 0 and 1"),
    ],
)
def test_refuses(given: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        Target.parse(given)
    assert said in str(caught.value)


@pytest.mark.parametrize("n", [4, 20, 64])
def test_the_bound_holds_for_as_many_other_pictures(n: int) -> None:
    rng = np.random.default_rng(n)
    draws = rng.normal(40, 5, (4000, 2, n))
    held = [float(other.mean()) >= lower_bound(mine.tolist()) for mine, other in draws]
    assert 0.94 < sum(held) / len(held) < 0.96


def test_margin_and_gain() -> None:
    quality, speed = Target("psnr", 39.0), Target("speedup", 2.0)
    assert quality.margin(outcome(), 1.0) == pytest.approx(lower_bound(outcome().psnr) - 39)
    assert quality.margin(outcome(spread=4.0), 1.0) < 0, "the mean meets it, the bound must not"
    assert speed.margin(outcome(), 2.1) == pytest.approx(0, abs=1e-9)
    assert speed.margin(outcome(), 2.0) < 0, "no allowance for another minute"
    assert Target("flops_speedup", 2.0).margin(outcome(flops=3.0), 0.1) == pytest.approx(math.log(3 / 2.04))
    assert quality.gain(outcome(), 3.0) > quality.gain(outcome(), 2.0)
    assert speed.gain(outcome(50.0), 2.0) > speed.gain(outcome(40.0), 9.0)
    with pytest.raises(InputError, match="too small for SSIM"):
        Target("ssim", 0.9).margin(outcome(), 1.0)


def test_predicted_speedup() -> None:
    assert predicted_speedup(outcome(flops=4.0), 0.05) == pytest.approx(1 / 0.3)
    assert predicted_speedup(outcome(flops=None), 0.05) == 1.0
    assert outcome().overhead == pytest.approx(1 / 1.9 - 0.5)


def test_met_is_what_was_measured() -> None:
    def record(psnr: float, withheld: str | None = None) -> Run:
        return Run(
            policy="p", model="m", fingerprint="f", settings={}, versions={}, device="d", psnr=psnr,
            withheld=withheld,
        )  # fmt: skip

    target = Target("psnr", 30.0)
    assert target.met(record(30.0))
    assert not target.met(record(29.99))
    assert not target.met(record(100.0, withheld="nothing was reused"))
    assert not Target("speedup", 2.0).met(record(30.0))
