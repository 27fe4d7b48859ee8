"""Shadow: a policy's true errors beside its budget, and a bound on what they can add up to in the picture.

Bound. One cached sampler step from ``x_t`` ends a distance ``eta_t`` from where the uncached step would. Later steps
can stretch a distance by at most their Lipschitz constant, so with ``L_s`` that of the uncached step s,

    |x_0 - x_0*|  <=  sum_t  eta_t  prod_{s after t} L_s .

``eta_t`` is measured, by one uncached step from every state of the cached run. ``L_s`` is the largest singular value of
the step's Jacobian there, by power iteration: a local constant, approached from below, so the bound is one to first
order. All norms are Euclidean, per picture, over the latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import wraps
from itertools import pairwise
from typing import Any

import torch

from tenuto.bench.diffusion.job import Job, labels_of
from tenuto.calibration import Profile
from tenuto.diffusion.attach import attach
from tenuto.diffusion.policy import FeaturePolicy
from tenuto.errors import InputError
from tenuto.zoo.pipelines import ImageModel

__all__ = ["NULL_CLASS", "Shadow", "check_shadow", "measure_shadow", "sampler_step"]

NULL_CLASS = 1000
SAMPLER = "DDIMScheduler"
ITERATIONS = 4
NUDGE = 1e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadow:
    """What a shadow run found.

    Attributes:
        estimates: how many spans were estimated; worst, mean: relative errors of their outputs (worst of a batch).
        largest_total: largest sum of errors of one span and guidance branch over one generation.
        rtol, total: the policy's ErrorBudget, None if it promises nothing (or no total).
        kept: whether every error stayed within it, None without a budget.
        output_error: relative error of the final latents against the uncached ones, mean over pictures.
        output_bound: the bound above, relative to the same norm, mean over pictures.
    """

    estimates: int
    worst: float
    mean: float
    largest_total: float
    rtol: float | None
    total: float | None
    kept: bool | None
    output_error: float
    output_bound: float

    def row(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return asdict(self)


State = tuple[Any, torch.Tensor]


@contextmanager
def _watched(scheduler: Any) -> Iterator[list[State]]:
    """The (timestep, latents) that go into every step of a sampler, and last those that come out."""
    states: list[State] = []
    original = scheduler.step

    @wraps(original)
    def step(output: torch.Tensor, timestep: Any, sample: torch.Tensor, *args: Any, **options: Any) -> Any:
        result = original(output, timestep, sample, *args, **options)
        states[-1:] = [(timestep, sample), (None, result.prev_sample)]
        return result

    scheduler.step = step
    try:
        yield states
    finally:
        del scheduler.step


def sampler_step(
    model: ImageModel, latents: torch.Tensor, timestep: Any, labels: Sequence[int], guidance: float
) -> torch.Tensor:
    """One uncached step of a DiTPipeline from ``latents [n, channels, height, width]`` to the next."""
    pipe, count = model.pipe, len(labels)
    classes = torch.tensor(labels, device=latents.device)
    given = pipe.scheduler.scale_model_input(latents, timestep)
    if guidance > 1:
        given, classes = torch.cat([given, given]), torch.cat([classes, torch.full_like(classes, NULL_CLASS)])
    times = torch.as_tensor(timestep, device=latents.device).expand(len(classes))
    output = pipe.transformer(given, timestep=times, class_labels=classes).sample[:, : latents.shape[1]]
    if guidance > 1:
        cond, uncond = output[:count], output[count:]
        output = uncond + guidance * (cond - uncond)
    stepped: torch.Tensor = pipe.scheduler.step(output, timestep, latents).prev_sample
    return stepped


def _norm(tensor: torch.Tensor) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(tensor.flatten(1).float(), dim=1)
    return norm


def _unit(tensor: torch.Tensor) -> torch.Tensor:
    return tensor / _norm(tensor).clamp_min(1e-12)[:, None, None, None]


def _stretch(
    step: Callable[[torch.Tensor], torch.Tensor], at: torch.Tensor, direction: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Largest singular value ``[n]`` of a step's Jacobian at ``at``, per picture, and its direction: power iteration
    from ``direction``, the Jacobian by differences, its transpose by back-propagation."""
    size = NUDGE * _norm(at)[:, None, None, None]
    found = torch.zeros(len(at))
    for _ in range(ITERATIONS):
        with torch.enable_grad():
            point = at.detach().requires_grad_(True)
            there = step(point)
            moved = (step(point.detach() + size * direction) - there.detach()) / size
            (back,) = torch.autograd.grad(there, point, moved.detach())
        found = torch.maximum(found, _norm(moved).detach().cpu())
        direction = _unit(back)
    return found, direction


def check_shadow(model: ImageModel) -> None:
    """Refuse a sampler whose step depends on more than its input: the bound repeats steps one by one.

    Raises:
        InputError: naming the sampler.
    """
    if model.sampler != SAMPLER:
        raise InputError(f"A shadow run repeats single steps, which {model.sampler} cannot. Use {SAMPLER}.")


def measure_shadow(
    model: ImageModel, policy: FeaturePolicy, profile: Profile | None, job: Job, samples: range
) -> Shadow:
    """Draw ``samples`` of a job uncached, cached, and cached in shadow mode, and compare."""
    labels, seeds, scheduler = labels_of(samples), job.seeds(samples), model.pipe.scheduler
    with _watched(scheduler) as plain:
        model.draw(labels, seeds, job.steps, job.guidance)
    attached = attach(model.pipe, policy, profile=profile, count_flops=False, shadow=True)
    with attached as run, _watched(scheduler) as cached:
        model.draw(labels, seeds, job.steps, job.guidance)
    count, bound = len(labels), torch.zeros(len(labels))
    direction = _unit(torch.randn(cached[0][1][:count].shape, generator=torch.Generator().manual_seed(0)))
    direction = direction.to(cached[0][1])
    for (timestep, before), (_, after) in pairwise(cached):

        def step(latents: torch.Tensor, now: Any = timestep) -> torch.Tensor:
            return sampler_step(model, latents, now, labels, job.guidance)

        with torch.no_grad():
            eta = _norm(after[:count] - step(before[:count])).cpu()
        stretch, direction = _stretch(step, before[:count], direction)  # from where the step before ended
        bound = bound * stretch + eta
    truth = plain[-1][1][:count]
    size = _norm(truth).cpu()
    errors = [event.error for event in run.telemetry.events if event.error is not None]
    sums, budget = run.telemetry.errors(), policy.budget
    worst, largest = max(errors, default=0.0), max((s.total for s in sums), default=0.0)
    total = budget.total if budget and budget.total < float("inf") else None
    return Shadow(
        estimates=len(errors),
        worst=worst,
        mean=sum(errors) / max(len(errors), 1),
        largest_total=largest,
        rtol=budget.rtol if budget else None,
        total=total,
        kept=worst <= budget.rtol and largest <= budget.total if budget else None,
        output_error=float((_norm(cached[-1][1][:count] - truth).cpu() / size).mean()),
        output_bound=float((bound / size).mean()),
    )
