"""``tenuto attention``: look at attentions before training them."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import click

from tenuto.cli.group import Group, json_option, main, wide_console


@main.group(cls=Group)
def attention() -> None:
    """Look at trainable attentions before training them."""


@attention.command()
@click.option("--window", default=256, show_default=True, type=int, help="Tokens of the window.")
@click.option("--stride", default=64, show_default=True, type=int, help="Tokens from skip to skip.")
@click.option("--variant", default="multiples", show_default=True, help="single, multiples or log.")
@click.option("--last", default=0, show_default=True, type=int, help="Multiples beyond the window, 0 for all.")
@click.option("--coprime", is_flag=True, help="Every head has a stride of its own.")
@click.option("--phases", is_flag=True, help="The skips of the heads are moved against each other.")
@click.option("--heads", default=8, show_default=True, type=click.IntRange(1), help="Query heads of a layer.")
@click.option("--layers", default=8, show_default=True, type=click.IntRange(1), help="Layers of the model.")
@click.option("--context", default=4096, show_default=True, type=click.IntRange(1), help="Tokens to look back.")
@json_option
def coverage(
    window: int,
    stride: int,
    variant: str,
    last: int,
    coprime: bool,
    phases: bool,
    heads: int,
    layers: int,
    context: int,
    as_json: bool,
) -> None:
    """Which earlier tokens can reach a query under a periodic pattern, layer by layer, beside the paper's receptive
    field."""
    from rich.table import Table

    from tenuto import catalog
    from tenuto.attention.coverage import by_residue, reachable
    from tenuto.attention.coverage import coverage as certificate

    repeats = next(info.cls for info in catalog.methods("attention").values() if "stride" in info.options())
    numbers = {"window": window, "stride": stride, "sinks": 0, "variant": variant, "last": last}
    made: Any = repeats.of({**numbers, "coprime": coprime, "phases": phases})
    patterns = [made.pattern(heads, layer) for layer in range(layers)]
    rows = certificate(patterns, context)
    shares = by_residue(reachable(patterns, context)[-1], stride, context)
    if as_json:
        found = [dataclasses.asdict(row) for row in rows]
        click.echo(json.dumps({"layers": found, "reached_by_distance_modulo_stride": shares}, indent=1))
        return
    names = (
        "layers",
        "distances reached",
        "farthest",
        "smallest not reached",
        "the paper's reach",
        "all up to (proved)",
    )
    table = Table(*names, title=f"{made}, {heads} heads, {context} tokens")
    for row in rows:
        gap = "none" if row.gap == context else str(row.gap)
        cells = (
            row.layers,
            row.distances,
            row.farthest,
            gap,
            row.paper,
            "" if row.guarantee is None else row.guarantee,
        )
        table.add_row(*map(str, cells))
    wide_console().print(table)
    whole = sum(share == 1 for share in shares)
    click.echo(
        f"By distance modulo {stride}, after {layers} layers: {whole} of {len(shares)} remainders are reached in full, "
        f"the worst at {min(shares):.0%} of its distances."
    )
