"""What all benches share: they choose threads, keep what is measured, and go on where they were stopped."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import click

from tenuto.cli.group import COMMAND, FOLDER, Group, Measuring, command, main
from tenuto.errors import InputError

__all__ = ["bench", "out_option", "print_rows", "say_where"]

RESUME = click.Option(
    ["--resume"], type=FOLDER, help="Go on with the unfinished benchmark in this --out folder; options may be left out."
)
out_option = click.option("--out", type=FOLDER, help="Folder for records, which `tenuto report` draws.")


class Benchmark(Measuring):
    """A bench: ``--resume DIR`` goes on with one that was stopped, with the options it was begun with."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        *others, last = super().get_params(ctx)
        return [*others, RESUME, last]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given, _, _ = self.make_parser(ctx).parse_args(list(args))
        words = args
        if folder := given.pop("resume", None):
            words = self._words(ctx, Path(folder), given)
        else:
            ctx.meta[COMMAND] = command()
        ctx.meta["words"] = words
        return super().parse_args(ctx, list(words))

    def _words(self, ctx: click.Context, folder: Path, given: dict[str, Any]) -> list[str]:
        """The words the benchmark in ``folder`` was begun with.

        Raises:
            InputError: there is none, it is of another bench, or an option is given that differs.
        """
        from tenuto.measure.resume import read_job

        job = read_job(folder)
        if job["bench"] != self.name:
            raise InputError(
                f"{folder} holds an unfinished benchmark of {job['bench']}. Go on with: tenuto bench {job['bench']} "
                f"--resume {folder}"
            )
        before, _, _ = self.make_parser(ctx).parse_args(list(job["words"]))
        for name, value in given.items():
            asked = isinstance(value, str | bool | tuple | list) and bool(value)  # else it was not given
            if asked and value != before.get(name) and name != "out":
                was = "not given" if before.get(name) is None else repr(before[name])
                raise InputError(
                    f"{folder} holds an unfinished benchmark of another job ({name}: {was}, now {value!r}). Leave the "
                    "option out, or give another --out."
                )
        ctx.meta[COMMAND] = job["command"]
        threads = (
            [] if isinstance(before.get("threads"), str) else ["--threads", str(job["threads"])]
        )  # timings that are compared
        return [*job["words"], *threads, "--out", str(folder)]

    def invoke(self, ctx: click.Context) -> Any:
        from tenuto.measure.resume import FOLDER as UNFINISHED
        from tenuto.measure.resume import asked

        ctx.params.pop("resume")
        out: Path | None = ctx.params.get("out")
        job = {"bench": self.name, "words": ctx.meta["words"], "command": ctx.meta[COMMAND]}
        token = asked.set(job)
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            kept = out is not None and (out / UNFINISHED).is_dir()
            go_on = (
                f"Go on with: tenuto bench {self.name} --resume {shlex.quote(str(out))}" if kept else "Nothing is kept."
            )
            click.echo(f"\nStopped. {go_on}", err=True)
            ctx.exit(130)
        finally:
            asked.reset(token)


class Benches(Group):
    """Every one of them measures."""

    command_class = Benchmark
    former: ClassVar[Mapping[str, str]] = {"moe": "shards", "store": "reuse"}


@main.group(cls=Benches)
def bench() -> None:
    """Measure speed, memory and quality of policies against the uncached model."""


def print_rows(rows: list[dict[str, Any]], table: Any, as_json: bool) -> None:
    """Records as one JSON list, or else the table."""
    from tenuto.cli.group import wide_console

    if as_json:
        click.echo(json.dumps(rows, indent=1, allow_nan=False))
    else:
        wide_console().print(table)


def say_where(out: Path | None, as_json: bool) -> None:
    """Where records went, and what draws them."""
    if out:
        click.echo(f"Records: {out} (now: tenuto report {shlex.quote(str(out))})", err=as_json)
