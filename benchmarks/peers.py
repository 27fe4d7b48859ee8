"""Our policies and other libraries' caches on the same model, pictures and seeds, in turn, six settings each.

    python benchmarks/peers.py --samples 1000 --out build/peers [--points 6] [--only NAME,...] [--rows TEXT ...]
    python benchmarks/markdown.py build/peers

Every method has a ladder of six settings, from about 1.5 times to six times fewer operations; every rung is a row. The
ladders were set on a few pictures of seeds that are not judged here. ``--points`` takes that many rungs, spread evenly.
A run that was cut off goes on where it stopped when the same command is given again. Where a library does not work on
this model the row has its own words. ``--rows`` measures those rows only, for example ``--rows every_n:n=2
cache_dit:threshold=0.1,first=1,warmup=4``. The peers need `pip install cache-dit`; diffusers is there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from peers import cache_dit, diffusers_hooks

from tenuto import catalog
from tenuto.bench.diffusion import bench as diffusion_bench
from tenuto.bench.diffusion.job import Job
from tenuto.bench.diffusion.rows import ImageEntry
from tenuto.errors import TenutoError, redacted_command
from tenuto.zoo.pipelines import ImageModel, load_model

MODEL = "bundled:dit-fashion"

BUDGETS = ("0.07", "0.12", "0.25", "0.5", "1.0,warmup=1", "2.0,warmup=1")
OURS = {
    "every_n": [f"every_n:n={n}" for n in (2, 3, 4, 5, 6, 7)],
    "first_block": [f"first_block:threshold={t}" for t in (0.03, 0.05, 0.08, 0.12, 0.2, 0.3)],
    "teacache": [f"teacache:threshold={t}" for t in (0.07, 0.1, 0.15, 0.2, 0.3, 0.4)],
    "taylorseer": [f"taylorseer:interval={n}" for n in (2, 3, 4, 5, 6, 8)],
    "every_n+adacorrection": [f"every_n:n={n}+adacorrection:gain=0.8" for n in (2, 3, 4, 5, 6, 7)],
    "fastcache+adacorrection": [f"fastcache:rtol={r}+adacorrection:gain=0.5" for r in BUDGETS],
    "fastcache": [f"fastcache:rtol={r}" for r in BUDGETS],
    "fastcache_online": [f"fastcache:fit=online,rtol={r}" for r in (0.15, 0.3, 0.45, 0.7, 1.0, 2.0)],
}
FEWER = (33, 25, 17, 12, 10, 8)

PEERS: dict[str, list[Callable[[], ImageEntry]]] = {
    "cache_dit": [
        partial(cache_dit.dbcache, threshold, warmup=warmup)
        for threshold, warmup in ((0.03, 4), (0.05, 4), (0.1, 4), (0.15, 4), (0.2, 2), (0.4, 2))
    ],
    "cache_dit_taylorseer": [
        partial(cache_dit.dbcache, threshold, warmup=warmup, order=2)
        for threshold, warmup in ((0.03, 4), (0.05, 4), (0.1, 4), (0.15, 4), (0.2, 4), (0.25, 2))
    ],
    "diffusers_fbc": [
        partial(diffusers_hooks.first_block_cache, threshold) for threshold in (0.03, 0.05, 0.08, 0.12, 0.2, 0.3)
    ],
    "diffusers_taylorseer": [
        partial(diffusers_hooks.taylorseer, interval, order)
        for interval, order in ((2, 1), (3, 3), (4, 3), (6, 2), (8, 2), (10, 2))
    ],
}
MAGCACHE = [(0.02, 3, 0.2), (0.06, 3, 0.2), (0.12, 4, 0.1), (0.3, 6, 0.1), (0.5, 12, 0.1), (1.0, 20, 0.1)]
"""Threshold, longest skip, fraction of steps that always compute."""


def spread(ladder: Sequence[object], points: int) -> list:
    """That many rungs of a ladder, evenly from the first to the last."""
    if points >= len(ladder):
        return list(ladder)
    return [ladder[round(i * (len(ladder) - 1) / max(points - 1, 1))] for i in range(points)]


def rivals(wanted: Callable[[str], bool], points: int, model: ImageModel, job: Job) -> list[ImageEntry]:
    """The peers' rows: first as documented, where that fails on this model, then the ladders."""
    entries = [entry for entry in diffusers_hooks.untouched() if wanted(entry.name)]
    for name, ladder in PEERS.items():
        entries += [rung() for rung in spread(ladder, points) if wanted(name)]
    if wanted("diffusers_magcache"):
        ratios = diffusers_hooks.mag_ratios(model, job)
        entries += [diffusers_hooks.mag_cache(ratios, *numbers) for numbers in spread(MAGCACHE, points)]
    return entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=1.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--points", type=int, default=6, help="rungs of every ladder")
    parser.add_argument("--only", help="methods, separated by commas")
    parser.add_argument("--rows", nargs="+", help="these rows only, by their text")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    known = {*OURS, *PEERS, "diffusers_magcache", "fewer_steps"}
    only = set(args.only.split(",")) if args.only else known
    if unknown := only - known:
        parser.error(f"unknown method {sorted(unknown)[0]!r}: give some of {', '.join(sorted(known))}")
    job = Job(steps=args.steps, samples=args.samples, guidance=args.guidance, seed=args.seed)
    ours = [text for name, ladder in OURS.items() if name in only for text in spread(ladder, args.points)]
    theirs = rivals(only.__contains__, args.points, load_model(MODEL), job)
    fewer = spread(FEWER, args.points) if "fewer_steps" in only else []
    if args.rows:
        theirs = [entry for entry in theirs if entry.name in args.rows]
        fewer = [n for n in fewer if f"fewer_steps:n={n}" in args.rows]
        ours = [
            row for row in args.rows if row not in {*(e.name for e in theirs), *(f"fewer_steps:n={n}" for n in fewer)}
        ]
    try:
        diffusion_bench.bench(
            MODEL,
            [catalog.parse(text, "diffusion") for text in ours],
            args.out,
            job,
            rivals=theirs,
            fewer=fewer,
            command=redacted_command(["python", *sys.argv]),
        )
    except TenutoError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
