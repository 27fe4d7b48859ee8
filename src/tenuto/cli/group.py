"""What all commands share: one-line errors, common options, how rows are printed."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from tenuto import __version__
from tenuto.errors import TenutoError, closest, redact, redacted_command

if TYPE_CHECKING:
    from rich.console import Console

    from tenuto.records.diffusion import Run
    from tenuto.records.kv import KVRun

WIDE = 150
DEFAULT_MODEL = "bundled:dit-fashion"
DEFAULT_LANGUAGE = "bundled:smollm2"
FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
THREADS = click.Option(["--threads"], type=click.IntRange(1), help="Processor threads [default: the fastest now].")


class Failure(click.ClickException):
    """One line on standard error, exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        said = " ".join(self.format_message().split())
        click.echo(f"tenuto: error: {redact(said) if '://' in said else said}", err=True)


class Group(click.Group):
    """A group that says what went wrong in one line, with a suggestion for a mistyped command.

    Attributes:
        former: names that commands had one version ago, and what they are called now.
    """

    former: ClassVar[Mapping[str, str]] = {}

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        now = self.former.get(cmd_name)
        if now is None:
            return super().get_command(ctx, cmd_name)
        click.echo(f"tenuto: note: {cmd_name} is called {now} now; the old name goes with the next version.", err=True)
        return super().get_command(ctx, now)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            raise Failure(f"No such command {args[0]!r}.{closest(args[0], self.commands)}")
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            raise Failure(error.format_message()) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            raise Failure(error.format_message()) from error
        except TenutoError as error:
            raise Failure(str(error)) from error
        except ModuleNotFoundError as error:  # an optional dependency, see the extras
            raise Failure(f"{error.name} is not installed. Install it with: pip install 'tenuto[all]'") from error


class Measuring(click.Command):
    """A command that measures: it takes ``--threads``, and else chooses their number by a short measurement."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        *others, last = super().get_params(ctx)  # --help comes last
        return [*others, THREADS, last]

    def invoke(self, ctx: click.Context) -> Any:
        from tenuto.measure.threads import settle

        if line := settle(ctx.params.pop("threads")):
            click.echo(line, err=True)
        return super().invoke(ctx)


class MethodCommand(click.Command):
    """A command with ``--method TEXT`` that also takes a method of the family prompt by its own name, with settings:
    ``--NAME ratio=0.5`` is ``--method NAME:ratio=0.5``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own, words, rest = {opt for param in self.get_params(ctx) for opt in param.opts}, list[str](), iter(args)
        for word in rest:
            option, equals, value = word.partition("=")
            if not option.startswith("--") or option in own or (name := _prompt_method(option)) is None:
                words.append(word)
                continue
            settings = value if equals else next(rest, "")
            words += ["--method", f"{name}:{settings}" if settings else name]
        return super().parse_args(ctx, words)


def _prompt_method(option: str) -> str | None:
    """The method that an option such as ``--some-name`` is called after, None for any other option."""
    from tenuto import catalog

    name = option.removeprefix("--").replace("-", "_")
    return name if name in catalog.methods("prompt") else None


COMMAND = "tenuto.command"


def command() -> str:
    """The command line as it was given, but for the passwords of addresses: records are shown to others.

    Of a benchmark that goes on it is the one that began it.
    """
    ctx = click.get_current_context(silent=True)
    if ctx is not None and COMMAND in ctx.meta:
        return str(ctx.meta[COMMAND])
    return redacted_command(["tenuto", *sys.argv[1:]])


def wide_console() -> Console:
    """A console that is wide where nobody looks at it in a terminal."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=WIDE)


def print_runs(runs: Sequence[Run], kv_runs: Sequence[KVRun], as_json: bool) -> None:
    """Records of both families as tables, or as one JSON list."""
    if as_json:
        rows = [*(run.row() for run in runs), *(row for run in kv_runs for row in run.rows())]
        click.echo(json.dumps(rows, indent=1, allow_nan=False))
        return
    from tenuto.cli.tables import kv_table, shadow_table, table

    console = wide_console()
    if runs:
        console.print(table(runs))
    if any(run.shadow for run in runs):
        console.print(shadow_table(runs))
    if kv_runs:
        console.print(kv_table(kv_runs))


model_option = click.option("--model", default=DEFAULT_MODEL, show_default=True, help="bundled:NAME or a folder.")
language_option = click.option("--model", default=DEFAULT_LANGUAGE, show_default=True, help="bundled:NAME or a folder.")
steps_option = click.option("--steps", default=50, show_default=True, type=click.IntRange(1), help="Denoising steps.")
guidance_option = click.option(
    "--guidance", default=1.5, show_default=True, type=click.FloatRange(0), help="Guidance scale, 1 for none."
)
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, ...")
experts_option = click.option(
    "--experts", default=0, show_default=True, type=click.IntRange(0), help="Make a dense model a mixture."
)
top_k_option = click.option(
    "--top-k", default=0, show_default=True, type=click.IntRange(0), help="Experts per token, with --experts; 0: all."
)
profile_option = click.option("--profile", multiple=True, type=FILE, help="Calibration profile; may be repeated.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one list of objects and nothing else.")


@click.group(cls=Group)
@click.version_option(__version__, prog_name="tenuto")
def main() -> None:
    """Caching for pretrained generative models: hold what has not changed, within an error budget you set."""
    warnings.showwarning = _warn


def _warn(message: Warning | str, category: type[Warning], *where: Any, **others: Any) -> None:
    """One line on standard error, as errors are."""
    click.echo(f"tenuto: warning: {' '.join(str(message).split())}", err=True)
