"""``tenuto tune`` and ``calibrate``: find settings, fit profiles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import click

from tenuto.cli.group import (
    FILE,
    FOLDER,
    Group,
    command,
    device_option,
    experts_option,
    guidance_option,
    language_option,
    main,
    model_option,
    print_runs,
    steps_option,
    top_k_option,
)


@main.group(cls=Group)
def tune() -> None:
    """Find the policy and its numbers that meet a target."""


@tune.command("diffusion")
@model_option
@click.option("--target", required=True, help='"psnr>=30", "ssim>=0.98", "speedup>=2" or "flops_speedup>=2".')
@click.option("--policy", "names", multiple=True, help="Search this policy only; may be repeated [default: all].")
@click.option("--trials", default=8, show_default=True, type=click.IntRange(1), help="Most settings per policy.")
@steps_option
@click.option("--samples", default=40, show_default=True, type=click.IntRange(2), help="Pictures per setting.")
@guidance_option
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the first picture.")
@device_option
@click.option("--out", required=True, type=FOLDER, help="Folder for the policy, its profile and the records.")
@click.option("--json", "as_json", is_flag=True, help="Print one object and nothing else.")
def tune_diffusion(
    model: str,
    target: str,
    names: tuple[str, ...],
    trials: int,
    steps: int,
    samples: int,
    guidance: float,
    seed: int,
    device: str,
    out: Path,
    as_json: bool,
) -> None:
    """Search policies for a target; measure what was found on other seeds. Exit code 1 if the target is not met."""
    from tenuto.bench.diffusion.job import Job
    from tenuto.tuner import tune as search

    job = Job(steps=steps, samples=samples, guidance=guidance, seed=seed)
    found = search(model, target, out, policies=names, trials=trials, job=job, device=device, command=command())
    if as_json:
        click.echo(json.dumps(found.row(), indent=1, allow_nan=False))
    else:
        print_runs(found.runs, [], False)
        click.echo(f"\n{found.snippet}\n")
    click.echo(f"tenuto: {found.sentence()}", err=as_json or not found.met)
    if not found.met:
        click.get_current_context().exit(1)


class Fits(Group):
    """A first word that is no family is a diffusion policy's: ``tenuto calibrate fastcache``."""

    former: ClassVar[Mapping[str, str]] = {"moe": "shards"}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        plain = bool(args) and args[0] not in (*self.commands, *self.former, "--help")
        return super().parse_args(ctx, ["diffusion", *args] if plain else args)


@main.group(cls=Fits)
def calibrate() -> None:
    """Fit the profile that a policy needs for a model; `calibrate POLICY` is short for `calibrate diffusion POLICY`."""


@calibrate.command("shards")
@language_option
@experts_option
@top_k_option
@click.option("--tokens", default=512, show_default=True, type=click.IntRange(64), help="Of the text to fit on.")
@device_option
@click.option("--out", required=True, type=FILE, help="The profile, *.safetensors.")
def calibrate_shards(model: str, experts: int, top_k: int, tokens: int, device: str, out: Path) -> None:
    """Fit which experts' tokens attend to which, for `bench shards --selector affinity`.

    Give --experts and --top-k as there.
    """
    from tenuto.bench.likelihood import text_of
    from tenuto.bench.shards.bench import FITTED_SEED, as_mixture
    from tenuto.measure.folders import check_file
    from tenuto.shards import calibrate_affinity
    from tenuto.zoo.language import load_language

    check_file(out, ".safetensors")
    language = load_language(model, device)
    if experts:
        as_mixture(language, experts, top_k)
    profile = calibrate_affinity(language.model, text_of(language, FITTED_SEED, tokens))
    path = profile.save(out)
    click.echo(f"Profile for affinity, {len(profile.tensors)} layers, model {profile.fingerprint}: {path}")


@calibrate.command("diffusion")
@click.argument("policy")
@model_option
@steps_option
@guidance_option
@click.option("--runs", default=8, show_default=True, type=click.IntRange(1), help="Uncached generations to fit on.")
@click.option("--seed", default=1_000_000, show_default=True, type=click.IntRange(0), help="First seed to fit on.")
@device_option
@click.option("--out", type=FILE, help="The profile, *.safetensors [default: in your cache, where it will be found].")
def calibrate_diffusion(
    policy: str, model: str, steps: int, guidance: float, runs: int, seed: int, device: str, out: Path | None
) -> None:
    """Fit the profile that POLICY needs for a model."""
    from tenuto import catalog
    from tenuto.bench.diffusion.fitting import fit_profile, own_place
    from tenuto.measure.folders import check_file
    from tenuto.zoo.pipelines import load_model

    chosen = catalog.parse(policy, "diffusion")
    check_file(out or own_place(chosen), ".safetensors")
    profile = fit_profile(load_model(model, device), chosen, steps=steps, guidance=guidance, seed=seed, runs=runs)
    path = profile.save(out or own_place(chosen, profile))
    for rung in profile.numbers.get("ladder", ()):
        click.echo(
            f"  {rung['rung']:<9} in {rung['cells']} cells; everywhere: error {rung['rms_error']:.4f}, "
            f"{rung['bytes'] / 2**20:.1f} MiB, {rung['flops_per_token']:.0f} operations per token"
        )
    click.echo(f"Profile for {profile.policy}, model {profile.fingerprint}: {path} ({profile.settings['seconds']} s)")
