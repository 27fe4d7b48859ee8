"""Does AdaCorrection improve a policy at equal speed-up? Measured around three policies on the bundled model.

    python benchmarks/adacorrection.py [--samples 40 --inner every_n,first_block --gains 0.5,0.6 --tokens 0.25]

Prints a markdown table: the executed-FLOP speed-up and the PSNR against the uncached pictures of the same seeds (mean,
95 % interval), and for corrected policies how many dB they are above the inner policy's curve at the same speed-up
(linear between its measured points, in the logarithm of the speed-up; empty beyond its ends).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import pairwise
from math import log

import torch
from tqdm import tqdm

import tenuto
from tenuto import catalog
from tenuto.bench.diffusion.job import Job, labels_of
from tenuto.bench.diffusion.scores import psnr
from tenuto.records.intervals import mean_interval
from tenuto.zoo.pipelines import ImageModel, load_model

CURVES = {
    "every_n": [f"every_n:n={n}" for n in (2, 3, 4, 6)],
    "first_block": [f"first_block:threshold={t}" for t in (0.05, 0.1, 0.2, 0.3)],
    "fastcache": [f"fastcache:rtol={r}" for r in (0.1, 0.2, 0.4, 0.8)],
}
MIDDLE = 1  # which point of a curve tokens and the published form are tried at


@dataclass(frozen=True, slots=True)
class Point:
    """One measured policy."""

    policy: str
    speedup: float
    decibels: list[float]

    @property
    def mean(self) -> float:
        return sum(self.decibels) / len(self.decibels)


def draw(model: ImageModel, job: Job, batches: list[range]) -> torch.Tensor:
    return torch.cat([model.draw(labels_of(b), job.seeds(b), job.steps, job.guidance) for b in batches])


def measure(model: ImageModel, job: Job, text: str, reference: torch.Tensor) -> Point:
    with tenuto.attach(model.pipe, catalog.parse(text, "diffusion")) as run:
        pictures = draw(model, job, job.batches)
    return Point(text, run.telemetry.flops_speedup or 1.0, psnr(pictures, reference).tolist())


def above(point: Point, curve: list[Point]) -> float | None:
    """Decibels above the curve at the point's speed-up, None beyond its ends."""
    for low, high in pairwise(sorted(curve, key=lambda p: p.speedup)):
        if low.speedup <= point.speedup * (1 + 1e-3) and point.speedup <= high.speedup:
            share = max(log(point.speedup / low.speedup), 0.0) / log(high.speedup / low.speedup)
            return point.mean - (low.mean + share * (high.mean - low.mean))
    return None


def row(point: Point, curve: list[Point]) -> str:
    low, high = mean_interval(point.decibels)
    gain = above(point, curve) if "+" in point.policy else None
    shown = "" if gain is None else f"{gain:+.1f}"
    return f"| `{point.policy}` | {point.speedup:.2f} | {point.mean:.1f} ({low:.1f} to {high:.1f}) | {shown} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--seed", type=int, default=20000)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=1.5)
    parser.add_argument("--inner", default=",".join(CURVES))
    parser.add_argument("--gains", default="0.5,0.6,0.8")
    parser.add_argument("--tokens", default="0.25", help="fractions; empty for none, and not the published form")
    args = parser.parse_args()
    job = Job(steps=args.steps, samples=args.samples, guidance=args.guidance, seed=args.seed, batch=20)
    model = load_model("bundled:dit-fashion", "auto")
    reference = draw(model, job, job.batches)
    gains = [f"adacorrection:gain={gain}" for gain in args.gains.split(",")]
    middle = [f"adacorrection:gain={g},tokens={f}" for f in args.tokens.split(",") if f for g in (0.0, 0.6)]
    middle += ["adacorrection:published=true"] if middle else []
    print("| policy | speed-up by FLOPs | PSNR, dB | above the inner policy at equal speed-up, dB |")
    print("| --- | --- | --- | --- |")
    for name in args.inner.split(","):
        curve = [measure(model, job, text, reference) for text in tqdm(CURVES[name], desc=name, leave=False)]
        wrapped = [f"{text}+{gain}" for text in CURVES[name] for gain in gains]
        wrapped += [f"{CURVES[name][MIDDLE]}+{wrapper}" for wrapper in middle]
        points = [measure(model, job, text, reference) for text in tqdm(wrapped, desc=f"{name}+", leave=False)]
        for point in (*curve, *points):
            print(row(point, curve), flush=True)


if __name__ == "__main__":
    main()
