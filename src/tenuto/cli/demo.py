"""``tenuto demo`` and ``report``: pages to look at."""

from __future__ import annotations

from pathlib import Path

import click

from tenuto.cli.group import (
    DEFAULT_LANGUAGE,
    DEFAULT_MODEL,
    FILE,
    FOLDER,
    Measuring,
    command,
    json_option,
    main,
    print_runs,
)


@main.command(cls=Measuring)
@click.option("--out", default=Path(), type=FOLDER, help="Folder for the report and its records [default: here].")
@json_option
def demo(out: Path, as_json: bool) -> None:
    """Generate images and answers with and without caching; write tenuto-report.html."""
    from tenuto.bench.diffusion import bench as diffusion_bench
    from tenuto.bench.kv import bench as kv_bench
    from tenuto.measure.folders import check_folder
    from tenuto.report import write_report
    from tenuto.zoo import named as zoo

    check_folder(out)
    records = out / "tenuto-report"
    runs = diffusion_bench.bench(
        DEFAULT_MODEL, diffusion_bench.demo_policies(), records, diffusion_bench.DEMO, command=command()
    )
    kv_runs = []
    if zoo.is_here(DEFAULT_LANGUAGE):
        kv_runs = kv_bench.bench(DEFAULT_LANGUAGE, kv_bench.demo_rows(), records, kv_bench.DEMO, command=command())
    else:
        click.echo("Without a language model: fetch one with `tenuto models pull smollm2`.", err=True)
    print_runs(runs, kv_runs, as_json)
    written = write_report(records, out / "tenuto-report.html")
    click.echo(f"Report: {written.path}", err=as_json)


@main.command()
@click.argument("folder", type=FOLDER)
@click.option("--out", type=FILE, help="The file to write [default: FOLDER/tenuto-report.html].")
def report(folder: Path, out: Path | None) -> None:
    """Write one HTML file about the records in FOLDER."""
    from tenuto.report import write_report

    written = write_report(folder, out)
    for line in written.refused:
        click.echo(f"Not shown: {line}", err=True)
    click.echo(f"Report: {written.path}")
