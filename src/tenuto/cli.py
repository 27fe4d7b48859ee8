"""The command ``tenuto``. Heavy imports wait inside the commands, so that ``--help`` is quick."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tenuto import __version__
from tenuto.errors import TenutoError, closest

if TYPE_CHECKING:
    from tenuto.eval.run import Run

__all__ = ["main"]

WIDE = 150
DEFAULT_MODEL = "bundled:dit-fashion"
FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)


class _Failure(click.ClickException):
    """One line on standard error, exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(f"tenuto: error: {' '.join(self.format_message().split())}", err=True)


class _Group(click.Group):
    """A group that says what went wrong in one line, with a suggestion for a mistyped command."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            raise _Failure(f"No such command {args[0]!r}.{closest(args[0], self.commands)}")
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            raise _Failure(error.format_message()) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            raise _Failure(error.format_message()) from error
        except TenutoError as error:
            raise _Failure(str(error)) from error
        except ModuleNotFoundError as error:  # an optional dependency, see the extras
            raise _Failure(f"{error.name} is not installed. Install it with: pip install 'tenuto[all]'") from error


def _command() -> str:
    return shlex.join(["tenuto", *sys.argv[1:]])


def _print_runs(runs: Sequence[Run], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([run.row() for run in runs], indent=1, allow_nan=False))
        return
    from rich.console import Console

    from tenuto.eval.terminal import shadow_table, table

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    console.print(table(runs))
    if any(run.shadow for run in runs):
        console.print(shadow_table(runs))


model_option = click.option("--model", default=DEFAULT_MODEL, show_default=True, help="bundled:NAME or a folder.")
steps_option = click.option("--steps", default=50, show_default=True, type=click.IntRange(1), help="Denoising steps.")
guidance_option = click.option(
    "--guidance", default=1.5, show_default=True, type=click.FloatRange(0), help="Guidance scale, 1 for none."
)
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, ...")
profile_option = click.option("--profile", multiple=True, type=FILE, help="Calibration profile; may be repeated.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one list of objects and nothing else.")


@click.group(cls=_Group)
@click.version_option(__version__, prog_name="tenuto")
def main() -> None:
    """Caching for pretrained generative models: hold what has not changed, within an error budget you set."""


@main.command()
@json_option
def methods(as_json: bool) -> None:
    """List the caching methods with their options."""
    from tenuto import catalog

    found = catalog.methods().values()
    if as_json:
        click.echo(json.dumps([catalog.describe(info) for info in found], indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    shown = Table("policy", "options (default)", "calibrated", "what it does", box=None, pad_edge=False)
    for info in found:
        options = [f"{o.name}={'...' if o.required else o.default}" for o in info.options().values()]
        shown.add_row(info.name, ", ".join(options), "yes" if info.cls.calibrated else "no", info.summary)
    Console().print(shown)


@main.command()
@click.option("--out", default=Path(), type=FOLDER, help="Folder for the report and its records [default: here].")
@json_option
def demo(out: Path, as_json: bool) -> None:
    """Generate images with and without every policy; write tenuto-report.html."""
    from tenuto.eval.folders import check_folder
    from tenuto.eval.tasks import images
    from tenuto.report import write_report

    check_folder(out)
    records = out / "tenuto-report"
    runs = images.bench(DEFAULT_MODEL, images.demo_policies(), records, images.DEMO, command=_command())
    _print_runs(runs, as_json)
    click.echo(f"Report: {write_report(records, out / 'tenuto-report.html')}", err=as_json)


@main.group(cls=_Group)
def bench() -> None:
    """Measure speed, memory and quality of policies against the uncached model."""


@bench.command()
@model_option
@click.option("--policies", required=True, help='For example "first_block:threshold=0.1,fastcache:alpha=0.05".')
@steps_option
@click.option("--samples", default=64, show_default=True, type=click.IntRange(1), help="Pictures per policy.")
@guidance_option
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the first picture.")
@click.option("--batch", type=click.IntRange(1), help="Most pictures at once [default: for five batches or more].")
@profile_option
@click.option("--shadow", is_flag=True, help="Afterwards record the true errors of estimates, and a bound (slow).")
@device_option
@click.option("--out", required=True, type=FOLDER, help="Folder for records and pictures.")
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
    from tenuto.calibration import Profile
    from tenuto.eval.job import Job
    from tenuto.eval.tasks import images

    chosen = catalog.parse_list(policies, "diffusion")
    job = Job(steps=steps, samples=samples, guidance=guidance, seed=seed, batch=batch)
    given = [Profile.load(path) for path in profile]
    runs = images.bench(model, chosen, out, job, profiles=given, shadow=shadow, device=device, command=_command())
    _print_runs(runs, as_json)
    click.echo(f"Records: {out} (now: tenuto report {shlex.quote(str(out))})", err=as_json)


@main.group(cls=_Group)
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
    from tenuto.eval.job import Job
    from tenuto.tuner import tune as search

    job = Job(steps=steps, samples=samples, guidance=guidance, seed=seed)
    found = search(model, target, out, policies=names, trials=trials, job=job, device=device, command=_command())
    if as_json:
        click.echo(json.dumps(found.row(), indent=1, allow_nan=False))
    else:
        _print_runs(found.runs, False)
        click.echo(f"\n{found.snippet}\n")
    click.echo(f"tenuto: {found.sentence()}", err=as_json or not found.met)
    if not found.met:
        click.get_current_context().exit(1)


@main.command()
@click.argument("folder", type=FOLDER)
@click.option("--out", type=FILE, help="The file to write [default: FOLDER/tenuto-report.html].")
def report(folder: Path, out: Path | None) -> None:
    """Write one HTML file about the records in FOLDER."""
    from tenuto.report import write_report

    click.echo(f"Report: {write_report(folder, out)}")


@main.command()
@click.argument("policy")
@model_option
@steps_option
@guidance_option
@click.option("--runs", default=8, show_default=True, type=click.IntRange(1), help="Uncached generations to fit on.")
@click.option("--seed", default=1_000_000, show_default=True, type=click.IntRange(0), help="First seed to fit on.")
@device_option
@click.option("--out", type=FILE, help="The profile, *.safetensors [default: in your cache, where it will be found].")
def calibrate(
    policy: str, model: str, steps: int, guidance: float, runs: int, seed: int, device: str, out: Path | None
) -> None:
    """Fit the profile that POLICY needs for a model."""
    from tenuto import catalog
    from tenuto.eval.fitting import fit_profile, own_place
    from tenuto.eval.folders import check_file
    from tenuto.eval.pipelines import load_model

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


@main.command()
@model_option
@click.option("--policy", help="For example first_block:threshold=0.1 [default: none, uncached].")
@click.option("--labels", default="0,1,2,3,4,5,6,7,8,9", show_default=True, help="Class numbers, one picture each.")
@steps_option
@guidance_option
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the first picture.")
@profile_option
@device_option
@click.option("--out", default=Path("picture.png"), show_default=True, type=FILE, help="The PNG file to write.")
def run(
    model: str,
    policy: str | None,
    labels: str,
    steps: int,
    guidance: float,
    seed: int,
    profile: tuple[Path, ...],
    device: str,
    out: Path,
) -> None:
    """Generate images under a policy and say what it saved."""
    from tenuto import catalog
    from tenuto.calibration import Profile
    from tenuto.eval.job import Job
    from tenuto.eval.tasks.single import draw, read_labels

    chosen = catalog.parse(policy, "diffusion") if policy else None
    asked = read_labels(labels)
    job = Job(steps=steps, samples=len(asked), guidance=guidance, seed=seed)
    given = [Profile.load(path) for path in profile]
    click.echo(draw(model, chosen, asked, job, profiles=given, device=device, out=out))


@main.command()
@click.argument("names", nargs=-1)
def cite(names: tuple[str, ...]) -> None:
    """Print BibTeX entries of the papers behind NAMES, or behind all methods."""
    from tenuto import catalog

    for name in names or catalog.methods():
        click.echo(catalog.bibtex(catalog.method(name)))
