"""Does the gate keep its word? The false-reuse rate of the bundled FastCache profile on generations it never saw.

    python benchmarks/false_reuse.py [--generations 24 --seed 5000]

Cached generations run in shadow mode, which computes what is estimated as well. Prints, per alpha, the share of
estimates whose true error exceeded the gate's bound, with a 95 % interval over generations of ten pictures (the pairs
within one generation are correlated; generations are not).
"""

from __future__ import annotations

import argparse
from typing import Any

from tqdm import tqdm

import tenuto
from tenuto.diffusion.policies.fastcache import REHEARSED, false_reuse_rates
from tenuto.diffusion.refit import Sample
from tenuto.records.intervals import mean_interval
from tenuto.zoo.pipelines import load_model


def collect(generations: int, seed: int, steps: int, guidance: float) -> tuple[tenuto.Profile, list[list[Sample]]]:
    """The bundled profile, and every estimate of cached generations with its truth."""
    model = load_model("bundled:dit-fashion", "auto")
    found, profile = [], None
    for number in tqdm(range(generations), desc="generations"):
        policy = tenuto.FastCache(rtol=REHEARSED[number % len(REHEARSED)])
        recorder: Any = policy.recorder()  # a LadderRecorder: it keeps what it is shown
        with tenuto.attach(model.pipe, policy, count_flops=False, shadow=True, watcher=recorder) as run:
            first = seed + 10 * number
            model.draw(list(range(10)), range(first, first + 10), steps, guidance)
        profile = run.profile
        found.append(recorder.closed)
    if profile is None:
        raise SystemExit("give at least one generation")
    return profile, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generations", type=int, default=24)
    parser.add_argument("--seed", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=1.5)
    args = parser.parse_args()
    profile, found = collect(args.generations, args.seed, args.steps, args.guidance)
    for alpha in (0.01, 0.05, 0.2):
        rates = false_reuse_rates(profile, found, alpha)
        low, high = mean_interval(rates)
        print(
            f"alpha {alpha:<5} false-reuse rate {sum(rates) / len(rates):.4f} (95 % interval {low:.4f} to {high:.4f})"
        )


if __name__ == "__main__":
    main()
