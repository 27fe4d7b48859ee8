"""``tenuto bench prompt``: prompts in fewer entries than tokens."""

from __future__ import annotations

from pathlib import Path

import click

from tenuto.cli.bench.group import bench, out_option, print_rows, say_where
from tenuto.cli.group import command, device_option, json_option, language_option


@bench.command()
@language_option
@click.option("--ratio", default="0.5", show_default=True, help="Entries over tokens, for example 0.75,0.5,0.33.")
@click.option("--semtoken", default="", help="Settings, for example layer=4,most=8.")
@click.option("--policy", help="Also SemToken with a KV policy, for example snapkv+kivi:bits=4.")
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
    semtoken: str,
    policy: str | None,
    kinds: str,
    context: int,
    examples: int,
    seed: int,
    device: str,
    out: Path | None,
    as_json: bool,
) -> None:
    """Read the same contexts whole, with SemToken and with plain ways to shorten them; ask what is still known."""
    from tenuto import catalog
    from tenuto.bench.prompt.bench import bench as measure
    from tenuto.bench.prompt.bench import read_kinds, read_ratios
    from tenuto.cli.tables import prompt_table
    from tenuto.measure.folders import check_folder
    from tenuto.zoo.language import load_language

    if out:
        check_folder(out)
    chosen = catalog.parse(policy, "kv") if policy else None
    asked, ratios = read_kinds(kinds), read_ratios(ratio, semtoken)
    rows = measure(
        load_language(model, device),
        ratios,
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
