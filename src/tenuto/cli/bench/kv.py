"""``tenuto bench kv``: contexts under every policy and budget."""

from __future__ import annotations

from pathlib import Path

import click

from tenuto.cli.bench.group import bench, say_where
from tenuto.cli.group import FOLDER, command, device_option, json_option, language_option, print_runs


@bench.command()
@language_option
@click.option("--policies", required=True, help="KV methods, name,name:option=value,name+name,...")
@click.option("--budget", "budgets", required=True, multiple=True, help="keep=0.25, tokens=512, bytes=20MiB.")
@click.option("--context", default="1024", show_default=True, help="Tokens of the contexts, for example 1024,2048.")
@click.option(
    "--tasks", default="niah_single", show_default=True, help="For example niah_single,multi_turn,perplexity."
)
@click.option("--examples", default=20, show_default=True, type=click.IntRange(1), help="Per task and length.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the first example.")
@click.option("--question", default="after", show_default=True, help="after: unknown when compressing; inside: known.")
@click.option("--every", type=click.IntRange(1), help="Compress while decoding too, every so many tokens.")
@device_option
@click.option("--out", required=True, type=FOLDER, help="Folder for records, which `tenuto report` draws.")
@json_option
def kv(
    model: str,
    policies: str,
    budgets: tuple[str, ...],
    context: str,
    tasks: str,
    examples: int,
    seed: int,
    question: str,
    every: int | None,
    device: str,
    out: Path,
    as_json: bool,
) -> None:
    """Read the same contexts uncompressed and with every policy; ask what is still known."""
    from tenuto import catalog
    from tenuto.bench.kv.bench import bench
    from tenuto.bench.kv.cases import read_tasks
    from tenuto.bench.kv.job import KVJob, read_lengths
    from tenuto.bench.reading import CacheEntry
    from tenuto.budget import MemoryBudget

    chosen = catalog.parse_list(policies, "kv")
    allowed = [MemoryBudget.parse(text) for given in budgets for text in given.split(",")]
    rows = [CacheEntry(policy=policy, budget=budget, every=every) for policy in chosen for budget in allowed]
    job = KVJob(
        contexts=read_lengths(context),
        tasks=tuple(read_tasks(tasks)),
        examples=examples,
        seed=seed,
        question=question,
    )
    runs = bench(model, rows, out, job, device=device, command=command())
    print_runs([], runs, as_json)
    say_where(out, as_json)
