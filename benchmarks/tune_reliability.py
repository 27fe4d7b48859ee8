"""Does the tuner keep its word? How often what it chooses meets the target on seeds that its search never saw.

    python benchmarks/tune_reliability.py --target "psnr>=45" [--policy fastcache --runs 10 --samples 40 --trials 8]

Every run has seeds of its own, for the search and for the measurement after it. Prints one line per run, then the count
with its 95 % (Clopper-Pearson) interval.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from scipy.stats import binomtest
from tqdm import tqdm

from tenuto.bench.diffusion.job import Job
from tenuto.tuner import Tuned, tune


def line(seed: int, found: Tuned) -> str:
    run = found.run
    (trial,) = [it for it in found.trials if it["policy"] == found.policy]
    speed = "none" if run.speedup is None else f"{run.speedup:.2f}x"
    return (
        f"seed {seed:<6} {'met   ' if found.met else 'missed'} {found.policy:<36} speed-up {speed:<6} "
        f"(predicted {trial['predicted_speedup']:.2f}x)  PSNR {run.psnr:.2f} (in the search {trial['psnr']:.2f})  "
        f"{len(found.trials)} trials, {len(found.rejected)} rejected, {found.seconds:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True)
    parser.add_argument("--policy", action="append", default=[])
    parser.add_argument("--model", default="bundled:dit-fashion")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=1.5)
    parser.add_argument("--seed", type=int, default=10_000, help="of the first run")
    args = parser.parse_args()
    met = 0
    for number in tqdm(range(args.runs), desc="runs"):
        seed = args.seed + 2 * args.samples * number
        job = Job(steps=args.steps, samples=args.samples, guidance=args.guidance, seed=seed)
        with tempfile.TemporaryDirectory() as out:
            found = tune(args.model, args.target, Path(out), policies=args.policy, trials=args.trials, job=job)
        met += found.met
        print(line(seed, found), flush=True)
    interval = binomtest(met, args.runs).proportion_ci(0.95)
    print(f"{args.target}: met in {met} of {args.runs} runs (95 % interval {interval.low:.2f} to {interval.high:.2f})")


if __name__ == "__main__":
    main()
