"""``tenuto bench reuse``: stores of prefixes."""

from __future__ import annotations

from pathlib import Path

import click

from tenuto.cli.bench.group import bench, out_option, print_rows, say_where
from tenuto.cli.group import command, device_option, json_option, language_option

STORED = ("raw", "raw+zstd", "fp8", "int8", "delta8+zstd", "int4", "int4+zstd")


@bench.command()
@language_option
@click.option("--store", "stores", multiple=True, help="An address; may be repeated [default: a folder, each codec].")
@click.option("--context", default=1500, show_default=True, type=click.IntRange(2), help="Tokens of the prompt.")
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(1), help="Turns of loading and computing.")
@device_option
@out_option
@json_option
def reuse(
    model: str, stores: tuple[str, ...], context: int, repeats: int, device: str, out: Path | None, as_json: bool
) -> None:
    """Load a prompt's keys and values from a store, against computing them."""
    from tempfile import TemporaryDirectory

    from tenuto.bench.reuse.bench import bench
    from tenuto.cli.tables import reuse_table
    from tenuto.zoo.language import load_language

    language = load_language(model, device)
    with TemporaryDirectory(prefix="tenuto-store-") as folder:
        own = [f"disk:{folder}/{codec}?codec={codec.replace('+', '%2B')}" for codec in STORED]
        asked = list(stores) or own
        rows = bench(language, asked, tokens=context, repeats=repeats, out=out, command=command())
    print_rows([row.row() for row in rows], reuse_table(rows), as_json)
    say_where(out, as_json)
