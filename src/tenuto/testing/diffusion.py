"""The laws of the diffusion family, and a tiny transformer to hold them on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tenuto.calibration import Profile
from tenuto.diffusion.attach import attach
from tenuto.diffusion.calibrate import calibrate
from tenuto.diffusion.policy import FeaturePolicy
from tenuto.testing.law import LawError, expect, law_round_trip
from tenuto.testing.seeded import seeded

__all__ = ["LAWS", "STEPS", "LawError", "TinyDiT", "check_feature_policy", "denoise", "profile_for"]

STEPS = 10


class _TinyBlock(nn.Module):
    """Pre-norm attention and MLP, modulated by the timestep and the class."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Linear(width, 4 * width)
        self.attn = _TinyAttention(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, hidden_states: torch.Tensor, conditioning: torch.Tensor) -> torch.Tensor:
        scale, shift, gate, gate_mlp = self.modulate(conditioning)[:, None].chunk(4, -1)
        h = hidden_states + gate * self.attn(self.norm(hidden_states) * (1 + scale) + shift)
        output: torch.Tensor = h + gate_mlp * self.mlp(self.norm(h))
        return output


class _TinyAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(hidden_states).chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(query, key, value)


class TinyDiT(nn.Module):
    """A diffusion transformer small enough for tests: ``[batch, tokens, channels]`` in and out, random weights.

    Args:
        blocks, width: size; seed: of the weights.
    """

    def __init__(self, blocks: int = 4, width: int = 16, seed: int = 0) -> None:
        super().__init__()
        with seeded(seed):
            self.time = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
            self.label = nn.Embedding(11, width)
            self.blocks = nn.ModuleList(_TinyBlock(width) for _ in range(blocks))
            self.out = nn.Linear(width, width)
        self.eval()

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """``hidden_states [batch, tokens, channels]``, ``timestep [batch]`` up to 1000, ``label [batch]`` in 0..10."""
        conditioning = self.time(timestep[:, None] / 1000) + self.label(label)
        for block in self.blocks:
            hidden_states = block(hidden_states, conditioning)
        output: torch.Tensor = self.out(hidden_states)
        return output


@torch.no_grad()
def denoise(
    model: nn.Module,
    seed: int = 0,
    *,
    batch: int = 2,
    tokens: int = 6,
    width: int = 16,
    steps: int = STEPS,
    separate: bool = False,
    pause: Callable[[int], None] | None = None,
) -> torch.Tensor:
    """One generation of a :class:`TinyDiT` with guidance, batched or in separate calls; a seed fixes the result."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, tokens, width, generator=generator)
    label, null = torch.arange(batch) % 10, torch.full((batch,), 10)
    for index in range(steps):
        if pause:
            pause(index)
        time = torch.full((batch,), 1000.0 * (1 - index / steps))
        if separate:
            cond, uncond = model(x, time, label), model(x, time, null)
        else:
            both = model(torch.cat([x, x]), torch.cat([time, time]), torch.cat([label, null]))
            cond, uncond = both.chunk(2)
        x = x - 0.05 * (uncond + 1.5 * (cond - uncond))
    return x


def profile_for(policy: FeaturePolicy, model: nn.Module, *, separate: bool = False) -> Profile | None:
    """A profile fitted on a few generations of ``model``, None if the policy needs none."""
    if policy.profile_use == "no":
        return None
    return calibrate(model, policy, lambda s: denoise(model, s, separate=separate), seeds=range(100, 108), settings={})


@contextmanager
def _on(model: nn.Module, policy: FeaturePolicy, profile: Profile | None) -> Iterator[Any]:
    with attach(model, policy, profile=profile) as run:
        yield run


def law_closed_is_identity(closed: FeaturePolicy, profile: Profile | None = None) -> None:
    """A closed gate is bit-identical to no cache."""
    model = TinyDiT()
    plain = denoise(model)
    with _on(model, closed, profile or profile_for(closed, model)) as run:
        cached = denoise(model)
    expect(run.telemetry.reuse_ratio == 0, "a closed gate never reuses", run.summary())
    expect(torch.equal(cached, plain), "a closed gate is bit-identical", (cached - plain).abs().max())


def law_warm_up(policy: FeaturePolicy) -> None:
    """The first ``warmup`` steps of every generation compute."""
    model = TinyDiT()
    with _on(model, policy, profile_for(policy, model)) as run:
        denoise(model, 1)
        denoise(model, 2)
    early = {event.decision for event in run.telemetry.events if event.step < policy.warmup}
    expect(early == {"compute"}, f"the first {policy.warmup} steps compute", early)
    expect(len({event.generation for event in run.telemetry.events}) == 2, "two generations", run.summary())


def law_generations_apart(policy: FeaturePolicy) -> None:
    """A second generation starts cold, and interleaved ones do not share state."""
    model = TinyDiT()
    profile = profile_for(policy, model)
    alone = []
    for seed in (1, 2):
        with _on(model, policy, profile):
            alone.append(denoise(model, seed))
    with _on(model, policy, profile):
        row = [denoise(model, 1), denoise(model, 2)]
    expect(all(map(torch.equal, row, alone)), "a new generation starts cold", "other results in a row than alone")
    woven: dict[int, torch.Tensor] = {}
    with _on(model, policy, profile) as run:

        def second(index: int) -> None:
            if index == STEPS // 2:  # a whole other generation in the middle of the first
                with run.generation("other"):
                    woven[2] = denoise(model, 2)

        woven[1] = denoise(model, 1, pause=second)
    expect(torch.equal(woven[1], alone[0]), "an interleaved generation keeps its state", "another result")
    expect(torch.equal(woven[2], alone[1]), "an interleaving generation has its own state", "another result")


def law_guidance(policy: FeaturePolicy) -> None:
    """Batched and separate guidance both work, and every branch has a state of its own."""
    model = TinyDiT()
    for separate in (False, True):
        with _on(model, policy, profile_for(policy, model, separate=separate)) as run:
            result = denoise(model, 1, batch=3, separate=separate)
        expect(bool(torch.isfinite(result).all()), "finite output", result)
        branches = {event.branch for event in run.telemetry.events}
        expect(len(branches) == 1 + separate, "one state per guidance branch", branches)


def law_identical_inputs(policy: FeaturePolicy) -> None:
    """Inputs that do not change are reused after warm-up."""
    model = TinyDiT()
    profile = profile_for(policy, model)
    x, label = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(5)), torch.tensor([1, 2])
    with torch.no_grad(), _on(model, policy, profile) as run:
        for index in range(8):  # a creeping timestep: the input is the same, the model moves by 1e-6
            model(x, torch.full((2,), 500.0 - index * 1e-4), label)
    expect(run.telemetry.reuse_ratio > 0, "identical inputs are reused after warm-up", run.summary())


def law_detaches(policy: FeaturePolicy) -> None:
    """Leaving the block restores ``forward`` exactly, also after an exception."""
    model = TinyDiT()
    plain, profile = denoise(model), profile_for(policy, model)
    for fail in (False, True):
        try:
            with _on(model, policy, profile):
                denoise(model)
                if fail:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
        left = [name for name, module in model.named_modules() if "forward" in vars(module)]
        expect(not left, "no wrapper is left behind", left)
        expect(torch.equal(denoise(model), plain), "the model is as it was", f"another output (exception: {fail})")


def law_honest_books(policy: FeaturePolicy) -> None:
    """Bytes held go back to the surrogates' own when state is dropped; operations fall when something is reused."""
    model = TinyDiT()
    with _on(model, policy, profile_for(policy, model)) as run:
        denoise(model)
        held = run.telemetry.cache_bytes
        run.reset()
        left = run.telemetry.cache_bytes
    surrogate = run.denoisers[0].cache.composition.estimator.nbytes()
    expect(held > left == surrogate, "state is counted when held and uncounted when dropped", (held, left))
    if run.telemetry.reuse_ratio > 0:
        cheaper = run.telemetry.flops < run.telemetry.full_flops
        expect(cheaper, "reuse saves operations", run.summary())


def law_shadow_sees_every_error(policy: FeaturePolicy) -> None:
    """Shadow mode gives the cached output and the true error of every estimate."""
    model = TinyDiT()
    profile = profile_for(policy, model)
    with _on(model, policy, profile):
        cached = denoise(model, 1)
    with attach(model, policy, profile=profile, shadow=True) as run:
        shadowed = denoise(model, 1)
    expect(torch.equal(cached, shadowed), "shadow mode changes no output", (cached - shadowed).abs().max())
    known = {event.error is not None for event in run.telemetry.events if event.decision != "compute"}
    expect(known <= {True}, "every estimate has its error in shadow mode", run.summary())


def law_errors_within_budget(policy: FeaturePolicy) -> None:
    """The true errors that shadow mode measures never exceed the ErrorBudget the policy promises, if it promises one:
    at each step, and added up over a generation; batched and separate guidance, batches of one and two. The seeds are
    others than those the profile was fitted on, the classes are not."""
    budget, model = policy.budget, TinyDiT()
    if budget is None:
        return
    for separate in (False, True):
        profile = profile_for(policy, model, separate=separate)
        with attach(model, policy, profile=profile, shadow=True) as run:
            for seed in range(6):
                denoise(model, seed, batch=1 + seed % 2, separate=separate)
        for sums in run.telemetry.errors():
            expect(sums.worst <= budget.rtol, f"an error stays within rtol={budget.rtol}", sums)
            expect(sums.total <= budget.total, f"errors of a generation stay within {budget.total}", sums)


LAWS: tuple[Callable[[FeaturePolicy], None], ...] = (
    law_round_trip,
    law_warm_up,
    law_generations_apart,
    law_guidance,
    law_identical_inputs,
    law_detaches,
    law_honest_books,
    law_shadow_sees_every_error,
    law_errors_within_budget,
)


def check_feature_policy(policy: FeaturePolicy, closed: FeaturePolicy | None = None) -> None:
    """Check every law on a tiny model; ``closed`` is the same policy with settings that never reuse.

    Raises:
        LawError: naming the law, what was expected and what was seen.
    """
    for law in LAWS:
        law(policy)
    if closed is not None:
        law_closed_is_identity(closed)
