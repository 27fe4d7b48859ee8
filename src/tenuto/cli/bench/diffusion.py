"""``tenuto bench diffusion``: pictures under every policy."""

from __future__ import annotations

from pathlib import Path

import click

from tenuto.cli.bench.group import bench, say_where
from tenuto.cli.group import (
    FOLDER,
    command,
    device_option,
    guidance_option,
    json_option,
    model_option,
    print_runs,
    profile_option,
    steps_option,
)


@bench.command()
@model_option
@click.option("--policies", required=True, help="Diffusion methods, name:option=value,name,...")
@steps_option
@click.option("--samples", default=64, show_default=True, type=click.IntRange(1), help="Pictures per policy.")
@guidance_option
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the first picture.")
@click.option("--batch", type=click.IntRange(1), help="Most pictures at once [default: for five batches or more].")
@profile_option
@click.option("--shadow", is_flag=True, help="Afterwards record the true errors of estimates, and a bound (slow).")
@device_option
@click.option("--out", required=True, type=FOLDER, help="Folder for records, which `tenuto report` draws.")
@json_option
def diffusion(
    model: str,
    policies: str,
    steps: int,
    samples: int,
    guidance: float,
    seed: int,
    batch: int | None,
    profile: tuple[Path, ...],
    shadow: bool,
    device: str,
    out: Path,
    as_json: bool,
) -> None:
    """Generate the same images uncached and with every policy."""
    from tenuto import catalog
    from tenuto.bench.diffusion.bench import bench
    from tenuto.bench.diffusion.job import Job
    from tenuto.calibration import Profile

    chosen = catalog.parse_list(policies, "diffusion")
    job = Job(steps=steps, samples=samples, guidance=guidance, seed=seed, batch=batch)
    given = [Profile.load(path) for path in profile]
    runs = bench(model, chosen, out, job, profiles=given, shadow=shadow, device=device, command=command())
    print_runs(runs, [], as_json)
    say_where(out, as_json)
