"""``tenuto bench prompt``: prompts in fewer entries than tokens."""

from __future__ import annotations

from pathlib import Path

import click

from tenuto.cli.bench.group import Benchmark, bench, out_option, print_rows, say_where
from tenuto.cli.group import MethodCommand, command, device_option, json_option, language_option


class PromptBenchmark(MethodCommand, Benchmark):
    """A bench of methods that may be given by their own names."""


@bench.command(cls=PromptBenchmark)
@language_option
@click.option("--ratio", default="0.5", show_default=True, help="Entries over tokens, for example 0.75,0.5,0.33.")
@click.option("--method", "texts", multiple=True, help="May be repeated [default: all of the family but baselines].")
@click.option("--policy", help="Also the method with a KV policy, which keeps half of its entries.")
@click.option("--kinds", default="logs,prose", show_default=True, help="Texts: see the docs; for example logs,code.")
@click.option("--context", default=2048, show_default=True, type=click.IntRange(2), help="Tokens of a context.")
@click.option("--examples", default=12, show_default=True, type=click.IntRange(1), help="Per kind and ratio.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the first example.")
@device_option
@out_option
@json_option
def prompt(
    model: str,
    ratio: str,
    texts: tuple[str, ...],
    policy: str | None,
    kinds: str,
    context: int,
    examples: int,
    seed: int,
    device: str,
    out: Path | None,
    as_json: bool,
) -> None:
    """Read the same contexts whole, with a method and with plain ways to shorten them; ask what is still known.

    Settings of one method can be given by its name as well: --NAME layer=4 is --method NAME:layer=4.
    """
    from tenuto import catalog
    from tenuto.bench.prompt.bench import bench as measure
    from tenuto.bench.prompt.bench import read_kinds, read_methods
    from tenuto.cli.tables import prompt_table
    from tenuto.measure.folders import check_folder
    from tenuto.zoo.language import load_language

    if out:
        check_folder(out)
    chosen = catalog.parse(policy, "kv") if policy else None
    asked, methods = read_kinds(kinds), read_methods(texts, ratio)
    rows = measure(
        load_language(model, device),
        methods,
        asked,
        policy=chosen,
        tokens=context,
        examples=examples,
        seed=seed,
        out=out,
        command=command(),
    )
    print_rows([row.row() for row in rows], prompt_table(rows), as_json)
    say_where(out, as_json)
