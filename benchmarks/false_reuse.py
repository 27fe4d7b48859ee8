"""Does the gate keep its word? The false-reuse rate of the bundled FastCache profile on generations it never saw.

    python benchmarks/false_reuse.py [--generations 20 --seed 5000]

Prints, per alpha, the share of estimates whose true error exceeded the gate's bound, with a 95 % interval over
generations of ten pictures (the pairs within one generation are correlated; generations are not).
"""

from __future__ import annotations

import argparse

from tqdm import tqdm

import tenuto
from tenuto.calibration import find
from tenuto.diffusion.policies.fastcache import MapRecorder, Trace, false_reuse_rates
from tenuto.diffusion.recording import Recording
from tenuto.eval.pipelines import load_model
from tenuto.eval.quality import mean_interval


def collect(generations: int, seed: int, steps: int, guidance: float) -> tuple[tenuto.Profile, list[Trace]]:
    """The bundled profile, and what a recorder saw of uncached generations."""
    model = load_model("bundled:dit-fashion", "auto")
    profile = find("fastcache", model.fingerprint)
    if profile is None:
        raise SystemExit("no bundled fastcache profile fits the bundled model: run `tenuto calibrate fastcache`")
    traces = []
    for number in tqdm(range(generations), desc="generations"):
        recorder = MapRecorder(profile.numbers["span"], profile.numbers["longest"])
        with tenuto.attach(model.pipe, Recording(watcher=recorder), count_flops=False):
            first = seed + 10 * number
            model.draw(list(range(10)), range(first, first + 10), steps, guidance)
        traces.append(recorder.trace)
    return profile, traces


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generations", type=int, default=20)
    parser.add_argument("--seed", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=1.5)
    args = parser.parse_args()
    profile, traces = collect(args.generations, args.seed, args.steps, args.guidance)
    for alpha in (0.01, 0.05, 0.2):
        rates = false_reuse_rates(profile, traces, alpha)
        low, high = mean_interval(rates)
        print(
            f"alpha {alpha:<5} false-reuse rate {sum(rates) / len(rates):.4f} (95 % interval {low:.4f} to {high:.4f})"
        )


if __name__ == "__main__":
    main()
