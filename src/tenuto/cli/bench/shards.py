"""``tenuto bench shards``: sharded caches."""

from __future__ import annotations

from pathlib import Path

import click

from tenuto.cli.bench.group import bench, out_option, print_rows, say_where
from tenuto.cli.group import FILE, command, experts_option, json_option, language_option, top_k_option


@bench.command()
@language_option
@click.option("--ranks", default=2, show_default=True, type=click.IntRange(1), help="Processes on this machine.")
@click.option("--placement", help="Methods of the family that place tokens [default: the plainest].")
@click.option("--selector", default="all", show_default=True, help="Methods that select pages; all: all are read.")
@click.option("--keep", default=0.125, show_default=True, help="Share of tokens that a selector but all reads.")
@click.option("--window", default=32, show_default=True, type=click.IntRange(0), help="Last tokens, always read.")
@click.option("--profile", type=FILE, help="Of `tenuto calibrate shards`, for methods that need one.")
@click.option("--page", default=16, show_default=True, type=click.IntRange(1), help="Tokens per page.")
@click.option("--codec", default="raw", show_default=True, help="Of old pages: raw, fp8, int8, int4, delta8.")
@click.option("--resident", default=1.0, show_default=True, help="Share of full pages that stay in memory.")
@click.option("--utility", default="lru", show_default=True, help="Which stay: a utility of the scheduler.")
@click.option("--lossy", is_flag=True, help="Delete the other pages in place of demoting them.")
@click.option("--context", default=256, show_default=True, type=click.IntRange(2), help="Tokens of each text.")
@click.option("--tokens", default=32, show_default=True, type=click.IntRange(1), help="Tokens after it, one by one.")
@click.option("--rows", default=2, show_default=True, type=click.IntRange(1), help="Texts at once.")
@experts_option
@top_k_option
@out_option
@json_option
def shards(
    model: str,
    ranks: int,
    placement: str | None,
    selector: str,
    keep: float,
    window: int,
    profile: Path | None,
    page: int,
    codec: str,
    resident: float,
    utility: str,
    lossy: bool,
    context: int,
    tokens: int,
    rows: int,
    experts: int,
    top_k: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Read texts with a KV cache sharded over processes, against the model's own cache.

    Placements, selectors and codecs may be lists with commas: everything is measured with everything.
    """
    from tenuto.bench.shards.bench import ShardingJob, default_placement, measure
    from tenuto.cli.tables import shards_table

    job = ShardingJob(
        model=model,
        ranks=ranks,
        placements=tuple((placement or default_placement()).split(",")),
        selectors=tuple(selector.split(",")),
        keep=keep,
        window=window,
        profile=str(profile.absolute()) if profile else None,
        page=page,
        codecs=tuple(codec.split(",")),
        resident=resident,
        utility=utility,
        lossy=lossy,
        context=context,
        tokens=tokens,
        rows=rows,
        experts=experts,
        top_k=top_k,
    )
    runs = measure(job, out, command=command())
    print_rows([run.row() for run in runs], shards_table(runs), as_json)
    say_where(out, as_json)
