"""Does the error budget hold? FastCache in shadow mode on the bundled model, estimate by estimate.

    python benchmarks/shadow_budget.py [--generations 200 --seed 20000]

Generations take turns in budget (rtol 0.05 to 0.8), batch (1, 2, 4) and guidance style (both branches in one call, or
one call each). Prints, per budget, how many estimates were made, the largest true error and its share of the budget.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence

import torch
from tqdm import tqdm

import tenuto
from tenuto.bench.diffusion.job import labels_of
from tenuto.bench.diffusion.shadow import NULL_CLASS
from tenuto.zoo.pipelines import ImageModel, load_model

BUDGETS = (0.05, 0.1, 0.2, 0.4, 0.8)
BATCHES = (1, 2, 4)


def draw_apart(model: ImageModel, labels: Sequence[int], seed: int, steps: int, guidance: float) -> None:
    """A generation whose guidance branches are separate calls of the denoiser."""
    pipe, generator = model.pipe, torch.Generator().manual_seed(seed)
    config = pipe.transformer.config
    latents = torch.randn(len(labels), config.in_channels, config.sample_size, config.sample_size, generator=generator)
    classes = torch.tensor(labels)
    pipe.scheduler.set_timesteps(steps)
    for time in pipe.scheduler.timesteps:
        times = time.expand(len(labels))
        cond, uncond = (
            pipe.transformer(latents, timestep=times, class_labels=given).sample
            for given in (classes, torch.full_like(classes, NULL_CLASS))
        )
        latents = pipe.scheduler.step(uncond + guidance * (cond - uncond), time, latents).prev_sample


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", type=int, default=200)
    parser.add_argument("--seed", type=int, default=20000)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=1.5)
    args = parser.parse_args()
    model = load_model("bundled:dit-fashion", "cpu")
    errors: dict[float, list[float]] = defaultdict(list)
    for number in tqdm(range(args.generations), desc="generations"):
        rtol, batch = BUDGETS[number % len(BUDGETS)], BATCHES[number // len(BUDGETS) % len(BATCHES)]
        seed, labels = args.seed + 10 * number, labels_of(range(number, number + batch))
        with tenuto.attach(model.pipe, tenuto.FastCache(rtol=rtol), count_flops=False, shadow=True) as run:
            if number // (len(BUDGETS) * len(BATCHES)) % 2:
                draw_apart(model, labels, seed, args.steps, args.guidance)
            else:
                model.draw(labels, range(seed, seed + batch), args.steps, args.guidance)
        errors[rtol] += [event.error for event in run.telemetry.events if event.error is not None]
    for rtol, found in sorted(errors.items()):
        over, worst = sum(error > rtol for error in found), max(found)
        print(f"rtol {rtol:<4} {len(found):5d} estimates, worst error {worst:.4f} ({worst / rtol:.0%}), over: {over}")


if __name__ == "__main__":
    main()
