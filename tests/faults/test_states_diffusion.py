"""State belongs to a generation: threads, tasks and names are kept apart; what is over or bad is let go."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

import tenuto
from tenuto import catalog
from tenuto.diffusion import run as running
from tenuto.diffusion.policy import FeaturePolicy
from tenuto.errors import AttachError
from tenuto.testing import TinyDiT, denoise, profile_for

pytestmark = pytest.mark.usefixtures("one_thread")


def alone(seed: int, **given: Any) -> torch.Tensor:
    model = TinyDiT()
    with tenuto.attach(model, tenuto.EveryN(n=2), count_flops=False):
        return denoise(model, seed, **given)


def together(work: Callable[[int, Callable[[int], None]], None], count: int = 3) -> list[BaseException]:
    """``work(seed, pause)`` in threads that go on step by step together."""
    barrier, errors = threading.Barrier(count), []

    def guarded(seed: int) -> None:
        try:
            work(seed, lambda step: barrier.wait(30))
        except BaseException as error:  # noqa: BLE001 (looked at by the caller)
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=guarded, args=(seed,)) for seed in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("count_flops", [True, False])
def test_threads_side_by_side(named: bool, count_flops: bool) -> None:
    model, found = TinyDiT(), {}
    with tenuto.attach(model, tenuto.EveryN(n=2), count_flops=count_flops) as run:

        def work(seed: int, pause: Callable[[int], None]) -> None:
            if named:
                with run.generation(f"request {seed}"):
                    found[seed] = denoise(model, seed, separate=True, pause=pause)
            else:
                found[seed] = denoise(model, seed, separate=True, pause=pause)

        assert not together(work)
        denoise(model, 9)
        assert {event.generation for event in run.telemetry.events} == {0, 1, 2, 3}
    for seed, got in found.items():
        assert torch.equal(got, alone(seed, separate=True))


def test_a_policy_with_tokens_in_threads() -> None:
    """Narrowed attention is narrowed in one thread only."""
    policy = tenuto.AdaCorrection(inner=tenuto.EveryN(n=2), tokens=0.5)
    model, found, expected = TinyDiT(), {}, {}
    for seed in range(3):
        with tenuto.attach(model, policy, count_flops=False):
            expected[seed] = denoise(model, seed, tokens=4 + seed)
    with tenuto.attach(model, policy, count_flops=False):
        assert not together(
            lambda seed, pause: found.update({seed: denoise(model, seed, tokens=4 + seed, pause=pause)})
        )
    assert all(torch.equal(found[seed], expected[seed]) for seed in range(3))


def test_one_generation_in_two_threads_is_refused_or_right() -> None:
    model = TinyDiT()
    entered, leave = threading.Event(), threading.Event()

    def wait(*given: Any) -> None:
        entered.set()
        leave.wait(30)

    with tenuto.attach(model, tenuto.EveryN(n=2), count_flops=False) as run:

        def work() -> None:
            with run.generation("the same"):
                denoise(model, 1, steps=1)

        handle = model.blocks[0].attn.register_forward_pre_hook(wait)
        thread = threading.Thread(target=work)
        thread.start()
        entered.wait(30)
        handle.remove()
        with pytest.raises(AttachError, match=r"two threads.*run\.generation"), run.generation("the same"):
            denoise(model, 1)
        leave.set()
        thread.join()
        with run.generation("the same"):
            assert torch.equal(denoise(model, 2), alone(2)), "it is usable again"


def test_asynchronous_tasks() -> None:
    model, found = TinyDiT(), {}

    async def work(run: Any, seed: int) -> None:
        with run.generation(f"task {seed}"):
            generator = torch.Generator().manual_seed(seed)
            x, label = torch.randn(2, 6, 16, generator=generator), torch.tensor([1, 2])
            for step in range(6):
                with torch.no_grad():
                    x = x - 0.05 * model(x, torch.full((2,), 1000.0 - 100 * step), label)
                await asyncio.sleep(0)
            found[seed] = x

    async def all_of(run: Any, seeds: tuple[int, ...]) -> None:
        await asyncio.gather(*(work(run, seed) for seed in seeds))

    expected = {}
    for seeds in ((1,), (2,), (1, 2)):
        with tenuto.attach(model, tenuto.EveryN(n=2)) as run:
            asyncio.run(all_of(run, seeds))
        if len(seeds) == 1:
            expected.update(found)
    assert all(torch.equal(found[seed], expected[seed]) for seed in (1, 2))


def test_branches_named_in_two_threads() -> None:
    from architectures import ARCHITECTURES

    model = ARCHITECTURES["flux"].build()
    seen: dict[int, Any] = {}
    with tenuto.attach(model, tenuto.EveryN()) as run:

        def work(seed: int, pause: Callable[[int], None]) -> None:
            with model.cache_context(f"branch {seed}"):
                pause(0)
                seen[seed] = run.denoisers[0].context

        assert not together(work)
    assert seen == {seed: f"branch {seed}" for seed in range(3)}


def test_what_is_over_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "MOST_NAMED", 4)
    model = TinyDiT()
    with tenuto.attach(model, tenuto.EveryN(n=2), count_flops=False) as run:
        for seed in range(20):
            with run.generation(f"request {seed}"):
                denoise(model, seed, steps=3)
        assert len(run.denoisers[0].cache.sessions()) == 4 == len(run.denoisers[0].clock._sessions)
        with pytest.raises(ZeroDivisionError), run.generation("fails"):
            denoise(model, 1, steps=2)
            _ = 1 / 0
        assert ("named", "fails") not in run.denoisers[0].cache.sessions()
        threads = [threading.Thread(target=denoise, args=(model, seed)) for seed in range(5)]
        for thread in threads:
            thread.start()
            thread.join()
        denoise(model, 1)
        assert len(run.denoisers[0].cache.sessions()) <= 4 + 1, "threads that have ended are forgotten"
        run.reset()
        assert run.telemetry.cache_bytes == 0


def test_after_the_last_step_of_a_known_length_nothing_is_held() -> None:
    from types import SimpleNamespace

    from diffusers import DDIMScheduler

    model, scheduler = TinyDiT(), DDIMScheduler()
    pipe = SimpleNamespace(components={"transformer": model}, scheduler=scheduler)
    with tenuto.attach(pipe, tenuto.EveryN(n=2)) as run:
        scheduler.set_timesteps(4)
        denoise(model, steps=3, separate=True)
        assert run.telemetry.cache_bytes > 0
        scheduler.set_timesteps(4)
        denoise(model, steps=4, separate=True)
        assert run.telemetry.cache_bytes == 0
    assert run.telemetry.reuse_ratio == pytest.approx((1 + 2) / (3 + 4))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", catalog.methods("diffusion"))
def test_one_bad_step_does_not_stay(name: str, bad: float) -> None:
    policy: FeaturePolicy = catalog.parse(catalog.method(name).cls.sweep[-1])
    model = TinyDiT()
    profile, label = profile_for(policy, model), torch.tensor([1, 2])
    x = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad(), tenuto.attach(model, policy, profile=profile) as run:
        for step in range(10):
            time = torch.full((2,), 500.0 - step * 1e-4)  # creeping, so that all policies reuse
            for branch in range(2):
                given = x * bad if (step, branch) == (4, 0) else x
                assert bool(model(given, time, label).isfinite().all()) == (given is x), (step, branch)
    assert run.telemetry.reuse_ratio > 0


def test_an_estimate_that_overflows_is_computed() -> None:
    """Half precision: the state is finite, its extrapolation is not."""
    model = TinyDiT().to(torch.bfloat16)
    x, label = torch.full((1, 4, 16), 3e38, dtype=torch.bfloat16), torch.tensor([1])
    with torch.no_grad(), tenuto.attach(model, tenuto.TaylorSeer(interval=2, warmup=2)) as run:
        for step, size in enumerate((0.1, 0.5, 1.0)):
            model(x * size, torch.full((1,), 900.0 - step, dtype=torch.bfloat16), label)
        out = model(x, torch.full((1,), 800.0, dtype=torch.bfloat16), label)
        plain = [event.decision for event in run.telemetry.events]
    assert out.shape == x.shape and plain[-1] in ("compute", "forecast")
