"""The bundled model: what it must be, and that the promises hold on it and not only on tiny models."""

import statistics

import pytest
import torch

import tenuto
from tenuto import catalog
from tenuto.bench.diffusion.clips import class_accuracy
from tenuto.bench.diffusion.scores import FashionJudge, psnr
from tenuto.calibration import find
from tenuto.diffusion.policies.fastcache import REHEARSED, false_reuse_rates
from tenuto.zoo import named as zoo
from tenuto.zoo.pipelines import load_model

pytestmark = pytest.mark.bundled
LABELS = list(range(10))
STEPS, GUIDANCE = 50, 1.5


@pytest.fixture(scope="module")
def model():
    return load_model("bundled:dit-fashion", "cpu")


def draw(model, seed, steps=STEPS):
    return model.draw(LABELS, range(seed, seed + len(LABELS)), steps, GUIDANCE)


@pytest.fixture(scope="module")
def uncached(model):
    return draw(model, 7000)


def test_it_is_small_enough_to_ship():
    files = [path for path in zoo.resolve("bundled:dit-fashion", "diffusion").rglob("*") if path.is_file()]
    sizes = {kept: sum(p.stat().st_size for p in files if ("profiles" in p.parts) == kept) for kept in (False, True)}
    assert sizes[False] <= 25 * 10**6, "the model"
    assert sizes[True] <= 18 * 10**6, "what was calibrated for it"


def test_it_has_ten_blocks_and_64_tokens(model):
    config = model.pipe.transformer.config
    assert config.num_layers >= 10
    assert (config.sample_size // config.patch_size) ** 2 == 64


def test_pictures_obey_their_labels(model, uncached):
    pictures = torch.cat([uncached, draw(model, 7100, 25), draw(model, 7200, 25), draw(model, 7300, 25)])
    assert FashionJudge().class_accuracy(pictures, torch.tensor(LABELS * 4)) >= 0.8


@pytest.mark.parametrize(
    "closed", ["every_n:n=1", "first_block:threshold=0", "teacache:threshold=0", "fastcache:rtol=0"]
)
def test_a_closed_gate_changes_no_bit(model, closed):
    plain = draw(model, 7400, 50 if "fastcache" in closed else 6)
    with tenuto.attach(model.pipe, catalog.parse(closed)) as run:
        cached = draw(model, 7400, 50 if "fastcache" in closed else 6)
    assert run.telemetry.reuse_ratio == 0
    assert torch.equal(cached, plain)


def test_fastcache_is_far_closer_than_plain_reuse(model, uncached):
    found = {}
    for text in ("every_n:n=2", "fastcache:rtol=0.1"):
        with tenuto.attach(model.pipe, catalog.parse(text)) as run:
            pictures = draw(model, 7000)
        found[text] = statistics.fmean(psnr(pictures, uncached).tolist()), run.telemetry.flops_speedup
    (plain, plain_speed), (fitted, fitted_speed) = found.values()
    assert fitted_speed >= 0.98 * plain_speed
    assert fitted >= plain + 5


def test_the_gate_keeps_its_false_reuse_rate(model):
    found = []
    for seed in range(8000, 8060, 10):
        policy = tenuto.FastCache(rtol=REHEARSED[seed // 10 % len(REHEARSED)])
        recorder = policy.recorder()
        with tenuto.attach(model.pipe, policy, count_flops=False, shadow=True, watcher=recorder) as run:
            draw(model, seed)
        found.append(recorder.closed)
        assert max(sums.worst for sums in run.telemetry.errors()) <= policy.rtol
    for alpha in (0.05, 0.2):
        rates = false_reuse_rates(run.profile, found, alpha)
        error = 2.571 * statistics.stdev(rates) / len(rates) ** 0.5  # t quantile of 95 %, 5 degrees of freedom
        assert abs(statistics.fmean(rates) - alpha) <= max(error, alpha / 3)


def test_a_profile_of_another_model_is_refused(model):
    profile = find("fastcache", model.fingerprint)
    foreign = tenuto.Profile(policy="fastcache", fingerprint="0" * 16, numbers=profile.numbers, tensors=profile.tensors)
    with (
        pytest.raises(tenuto.CalibrationError, match=f"0000000000000000.*{model.fingerprint}"),
        tenuto.attach(model.pipe, tenuto.FastCache(), profile=foreign),
    ):
        pass


def test_another_number_of_steps_is_refused_in_one_line(model):
    with (
        pytest.raises(tenuto.CalibrationError, match="50 denoising steps; this generation has 20"),
        tenuto.attach(model.pipe, tenuto.FastCache(fit="profile")),
    ):
        draw(model, 0, 20)


def test_unfitted_fastcache_is_far_closer_than_plain_reuse_that_is_slower(model, uncached):
    found = {}
    for text in ("every_n:n=2", "fastcache:fit=online,rtol=0.3"):
        with tenuto.attach(model.pipe, catalog.parse(text)) as run:
            pictures = draw(model, 7000)
        found[text] = statistics.fmean(psnr(pictures, uncached).tolist()), run.telemetry.flops_speedup
    (plain, plain_speed), (online, online_speed) = found.values()
    assert online_speed >= plain_speed
    assert online >= plain + 5


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2
@pytest.mark.parametrize("sampler", ["DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"])
def test_unfitted_fastcache_keeps_its_promise_with_other_samplers_and_fewer_steps(model, sampler, monkeypatch):
    import diffusers

    monkeypatch.setattr(model.pipe, "scheduler", getattr(diffusers, sampler).from_config(model.pipe.scheduler.config))
    errors, policy = [], tenuto.FastCache(rtol=0.3)  # the bundled profile is for 50 steps: these learn on the way
    for seed in (8100, 8200):
        with tenuto.attach(model.pipe, policy, count_flops=False, shadow=True) as run:
            draw(model, seed, 20)
        errors += [event.error for event in run.telemetry.events if event.error is not None]
    assert len(errors) > 10
    assert sum(error > policy.rtol for error in errors) <= policy.alpha * len(errors)


def test_clips_show_what_was_asked_for() -> None:
    """Chance is one in ten."""
    model = load_model("bundled:wan-fashion", "cpu")
    prompts = list(range(0, 60, 5))
    drawn = model.draw(prompts, range(len(prompts)), 12, 1.5)
    assert drawn.shape == (12, 8, 1, 32, 32)
    assert class_accuracy(drawn, torch.tensor(prompts), FashionJudge()) > 0.3
    moved = (drawn[:, 1:] - drawn[:, :-1]).abs().mean()
    assert 0.005 < float(moved) < 0.2, "frames differ, and follow from each other"
