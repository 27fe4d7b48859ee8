"""Ordinary uses of a diffusion model, and the law that a policy changes none of them.

A :class:`FeatureUse` is what a program does with one attached model: some generations, one after the other, woven step
by step or in threads, with a failure, a copy or another attachment in between. :func:`law_as_alone` runs it: every one
gives bit for bit what it gives alone under the policy, or refuses with a TenutoError; under a policy that never reuses
that is what the model gives without one.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import nn

from tenuto.calibration import Profile
from tenuto.diffusion.attach import attach
from tenuto.diffusion.policy import FeaturePolicy
from tenuto.errors import TenutoError
from tenuto.testing.diffusion import TinyDiT
from tenuto.testing.law import expect

__all__ = ["SCHEDULERS", "FeatureUse", "Generation", "law_as_alone"]

SCHEDULERS = (
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
)
WIDTH = 8
MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "enable_grad": torch.enable_grad,
}


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One generation: ``batch`` samples of ``tokens`` tokens in ``steps`` steps; ``guidance`` is "batched", "separate"
    or "none"; ``fail`` is the step in the middle of which it is interrupted, None for none."""

    seed: int = 0
    batch: int = 1
    tokens: int = 4
    steps: int = 4
    guidance: str = "batched"
    scheduler: str = SCHEDULERS[0]
    mode: str = "no_grad"
    fail: int | None = None


@dataclass(frozen=True, kw_only=True)
class FeatureUse:
    """What is done while a policy is attached.

    Attributes:
        generations: what is generated.
        how: "row" (one after the other), "pipeline" (the same, by a pipeline whose scheduler is exchanged), "woven"
            (a step of each in turn, each under a name of its own) or "threads" (all at once).
        named: in threads, under names too. copied: the model is copied before each generation, and the copy used too.
        again: the policy is taken off and put on again between generations.
        dtype: of weights and latents.
    """

    generations: tuple[Generation, ...]
    how: str = "row"
    named: bool = False
    copied: bool = False
    again: bool = False
    dtype: str = "float32"

    HOW: ClassVar[tuple[str, ...]] = ("row", "pipeline", "woven", "threads")


class Interrupted(Exception):
    """Raised in the middle of a step that is meant to fail."""


def steps_of(model: nn.Module, given: Generation, scheduler: Any, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """The latents after each step."""
    scheduler.set_timesteps(given.steps)
    draw = torch.Generator().manual_seed(given.seed)
    x = torch.randn(given.batch, given.tokens, WIDTH, generator=draw).to(dtype)
    label, null = torch.arange(given.batch) % 10, torch.full((given.batch,), 10)
    for index, timestep in enumerate(scheduler.timesteps):
        with MODES[given.mode]():
            scaled = scheduler.scale_model_input(x, timestep) if "Flow" not in given.scheduler else x
            time = timestep.to(dtype).expand(given.batch)
            with _interrupting(model) if index == given.fail else nullcontext():
                guided = _guided(model, scaled.to(dtype), time, label, null, given.guidance)
            x = scheduler.step(guided, timestep, x).prev_sample.to(dtype)
        yield x.detach()


def _guided(model: nn.Module, x: Any, time: Any, label: Any, null: Any, guidance: str) -> torch.Tensor:
    if guidance == "none":
        plain: torch.Tensor = model(x, time, label)
        return plain
    if guidance == "separate":
        cond, uncond = model(x, time, label), model(x, time, null)
    else:
        cond, uncond = model(torch.cat([x, x]), torch.cat([time, time]), torch.cat([label, null])).chunk(2)
    guided: torch.Tensor = uncond + 1.5 * (cond - uncond)
    return guided


def _interrupting(model: nn.Module) -> AbstractContextManager[Any]:
    """A hook on the second block that raises in this thread's calls."""
    mine, stack = threading.get_ident(), ExitStack()

    def interrupt(*given: Any) -> None:
        if threading.get_ident() == mine:
            raise Interrupted

    handle = model.get_submodule("blocks.1.norm").register_forward_pre_hook(interrupt)
    stack.callback(handle.remove)
    return stack


def _scheduler(name: str) -> Any:
    import diffusers

    return getattr(diffusers, name)()


def _last(steps: Iterator[torch.Tensor]) -> torch.Tensor | None:
    """The last latents; None where it was interrupted on purpose."""
    result = None
    try:
        for result in steps:  # noqa: B007 (the last is wanted)
            pass
    except Interrupted:
        return None
    return result


class _Trial:
    """One use of one policy: what each generation gave, or that it refused."""

    def __init__(self, policy: FeaturePolicy, profile: Profile | None, use: FeatureUse) -> None:
        self.policy, self.profile, self.use = policy, profile, use
        self.dtype: torch.dtype = getattr(torch, use.dtype)
        self.model = TinyDiT(blocks=3, width=WIDTH).to(self.dtype)
        self.pipe = SimpleNamespace(components={"transformer": self.model}, scheduler=None)
        self.target = self.pipe if use.how == "pipeline" else self.model

    def attached(self) -> AbstractContextManager[Any]:
        return attach(self.target, self.policy, profile=self.profile)

    def steps(self, given: Generation) -> Iterator[torch.Tensor]:
        scheduler = _scheduler(given.scheduler)
        if self.use.how == "pipeline":
            self.pipe.scheduler = scheduler
        return steps_of(self.model, given, scheduler, self.dtype)

    def in_a_row(self, check: Callable[[int, torch.Tensor | None], None]) -> None:
        with ExitStack() as stack:
            run = stack.enter_context(self.attached())
            for place, given in enumerate(self.use.generations):
                if self.use.again and place:
                    stack.close()
                    run = stack.enter_context(self.attached())
                if self.use.copied:
                    self._copy(given)
                with run.generation(f"number {place}") if self._like_one(place) else nullcontext():
                    check(place, _last(self.steps(given)))

    def _like_one(self, place: int) -> bool:
        """Whether a bare model's calls go on from the generation before as if they were more steps of it, or more calls
        of its last step, so that a program has to say that they are not."""
        if not place or self.use.how == "pipeline":
            return False
        before, given = self.use.generations[place - 1 : place + 1]
        last, first = self._timesteps(before)[-1], self._timesteps(given)[0]
        return first <= last or (before.steps == 1 and place > 1)

    def _timesteps(self, given: Generation) -> list[float]:
        scheduler = _scheduler(given.scheduler)
        scheduler.set_timesteps(given.steps)
        timesteps: list[float] = scheduler.timesteps.to(self.dtype).tolist()
        return timesteps

    def _copy(self, given: Generation) -> None:
        """A copy made now is plain: without weights of its own it gives nothing of the original's."""
        plain = _last(
            steps_of(TinyDiT(blocks=3, width=WIDTH).to(self.dtype), given, _scheduler(given.scheduler), self.dtype)
        )
        made = _last(steps_of(copy.deepcopy(self.model), given, _scheduler(given.scheduler), self.dtype))
        expect(_same(plain, made), "a copy of an attached model is plain", self.use)

    def woven(self, check: Callable[[int, torch.Tensor | None], None]) -> None:
        with self.attached() as run:
            going = {place: self.steps(given) for place, given in enumerate(self.use.generations)}
            latest: dict[int, torch.Tensor | None] = dict.fromkeys(going)
            while going:
                for place in list(going):
                    try:
                        with run.generation(f"number {place}"):
                            latest[place] = next(going[place])
                    except StopIteration:
                        del going[place]
                        check(place, latest[place])
                    except Interrupted:
                        del going[place]

    def in_threads(self, check: Callable[[int, torch.Tensor | None], None]) -> None:
        failures: list[BaseException] = []
        found: dict[int, torch.Tensor | None] = {}
        for given in self.use.generations:  # diffusers' names appear one by one while it is first imported
            _scheduler(given.scheduler)

        def work(place: int) -> None:
            name = run.generation(f"number {place}") if self.use.named else nullcontext()
            try:
                with name:
                    found[place] = _last(self.steps(self.use.generations[place]))
            except BaseException as error:  # noqa: BLE001 (told by the thread that waits)
                failures.append(error)

        with self.attached() as run:
            threads = [threading.Thread(target=work, args=(place,)) for place in range(len(self.use.generations))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        for failure in failures:
            raise failure
        for place, latest in found.items():
            check(place, latest)


def _same(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return first.dtype == second.dtype and torch.equal(first, second)


def law_as_alone(
    policy: FeaturePolicy, use: FeatureUse, *, profile: Profile | None = None, closed: bool = False
) -> Sequence[TenutoError]:
    """Every generation of a use gives what it gives alone, or refuses; nothing is left on the model.

    Args:
        policy: to attach; profile: for a calibrated one.
        closed: the policy never reuses, so that "alone" is the model without a policy.

    Returns:
        what was refused.

    Raises:
        LawError: a generation gave something else, or something of ours was left.
    """
    trial, refused = _Trial(policy, profile, use), []
    before = [dict(vars(module)) for module in trial.model.modules()]

    def check(place: int, found: torch.Tensor | None) -> None:
        given = use.generations[place]
        alone = _Trial(policy, profile, use)
        with nullcontext() if closed else alone.attached():
            wanted = _last(alone.steps(given))
        expect(_same(found, wanted), "a generation gives what it gives alone", (given, use, policy))

    run = {"woven": trial.woven, "threads": trial.in_threads}.get(use.how, trial.in_a_row)
    try:
        run(check)
    except TenutoError as error:
        refused.append(error)
    left = [dict(vars(module)) for module in trial.model.modules()]
    expect(before == left, "nothing is left on the model", [set(a) ^ set(b) for a, b in zip(before, left, strict=True)])
    return refused
