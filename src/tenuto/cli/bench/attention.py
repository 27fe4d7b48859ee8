"""``tenuto bench attention``: trained models that differ in attention."""

from __future__ import annotations

from pathlib import Path

import click

from tenuto.cli.bench.group import bench, say_where
from tenuto.cli.group import FOLDER, command, device_option, json_option


@bench.command()
@click.argument("folders", nargs=-1, required=True, type=FOLDER, metavar="FOLDER...")
@click.option("--windows", default=48, show_default=True, type=click.IntRange(1), help="Of held-out text.")
@click.option("--rows", default=64, show_default=True, type=click.IntRange(1), help="Of recall, per context.")
@click.option(
    "--context", default="1024,2048,4096,8192,16384,32768", show_default=True, help="Where decoding is timed."
)
@click.option("--repeats", default=16, show_default=True, type=click.IntRange(1), help="Tokens decoded at each.")
@click.option(
    "--baseline", multiple=True, help="An attention to compare with; may be repeated [default: full attention]."
)
@device_option
@click.option("--out", required=True, type=FOLDER, help="Folder for records, which `tenuto report` draws.")
@json_option
def attention(
    folders: tuple[Path, ...],
    windows: int,
    rows: int,
    context: str,
    repeats: int,
    baseline: tuple[str, ...],
    device: str,
    out: Path,
    as_json: bool,
) -> None:
    """Compare models that `tenuto train mini-lm` trained with different attentions: bits per byte, recall, cost."""
    import json

    from tenuto.bench.attention.bench import AttentionJob, read_baselines
    from tenuto.bench.attention.bench import bench as measure
    from tenuto.bench.kv.job import read_lengths
    from tenuto.cli.attention_tables import attention_tables

    baselines = read_baselines(baseline, folders)
    job = AttentionJob(windows=windows, rows=rows, contexts=read_lengths(context), repeats=repeats)
    runs = measure(folders, out, job, device=device, command=command())
    if as_json:
        click.echo(json.dumps([run.row() for run in runs], indent=1, allow_nan=False))
    else:
        click.echo(attention_tables(runs, baselines))
    say_where(out, as_json)
