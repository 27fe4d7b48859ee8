"""``tenuto bench``: measure policies."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from tenuto.cli.group import (
    FILE,
    FOLDER,
    Group,
    Measuring,
    command,
    device_option,
    experts_option,
    guidance_option,
    json_option,
    language_option,
    main,
    model_option,
    print_runs,
    profile_option,
    steps_option,
    top_k_option,
    wide_console,
)

STORED = ("raw", "raw+zstd", "fp8", "int8", "delta8+zstd", "int4", "int4+zstd")


class Benches(Group):
    """Every one of them measures."""

    command_class = Measuring


@main.group(cls=Benches)
def bench() -> None:
    """Measure speed, memory and quality of policies against the uncached model."""


@bench.command()
@model_option
@click.option("--policies", required=True, help='For example "first_block:threshold=0.1,fastcache:alpha=0.05".')
@steps_option
@click.option("--samples", default=64, show_default=True, type=click.IntRange(1), help="Pictures per policy.")
@guidance_option
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the first picture.")
@click.option("--batch", type=click.IntRange(1), help="Most pictures at once [default: for five batches or more].")
@profile_option
@click.option("--shadow", is_flag=True, help="Afterwards record the true errors of estimates, and a bound (slow).")
@device_option
@click.option("--out", required=True, type=FOLDER, help="Folder for records and pictures.")
@json_option
def diffusion(
    model: str,
    policies: str,
    steps: int,
    samples: int,
    guidance: float,
    seed: int,
    batch: int | None,
    profile: tuple[Path, ...],
    shadow: bool,
    device: str,
    out: Path,
    as_json: bool,
) -> None:
    """Generate the same images uncached and with every policy."""
    from tenuto import catalog
    from tenuto.bench.diffusion.bench import bench
    from tenuto.bench.diffusion.job import Job
    from tenuto.calibration import Profile

    chosen = catalog.parse_list(policies, "diffusion")
    job = Job(steps=steps, samples=samples, guidance=guidance, seed=seed, batch=batch)
    given = [Profile.load(path) for path in profile]
    runs = bench(model, chosen, out, job, profiles=given, shadow=shadow, device=device, command=command())
    print_runs(runs, [], as_json)
    click.echo(f"Records: {out} (now: tenuto report {shlex.quote(str(out))})", err=as_json)


@bench.command()
@language_option
@click.option("--policies", required=True, help='For example "snapkv,adakv+kivi:bits=4".')
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
@click.option("--out", required=True, type=FOLDER, help="Folder for records; the same command goes on after a stop.")
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
    from tenuto.bench.reading import Entry
    from tenuto.budget import MemoryBudget

    chosen = catalog.parse_list(policies, "kv")
    allowed = [MemoryBudget.parse(text) for given in budgets for text in given.split(",")]
    rows = [Entry(policy=policy, budget=budget, every=every) for policy in chosen for budget in allowed]
    job = KVJob(
        contexts=read_lengths(context),
        tasks=tuple(read_tasks(tasks)),
        examples=examples,
        seed=seed,
        question=question,
    )
    runs = bench(model, rows, out, job, device=device, command=command())
    print_runs([], runs, as_json)
    click.echo(f"Records: {out} (now: tenuto report {shlex.quote(str(out))})", err=as_json)


@bench.command()
@language_option
@click.option("--store", "stores", multiple=True, help="An address; may be repeated [default: a folder, each codec].")
@click.option("--context", default=1500, show_default=True, type=click.IntRange(2), help="Tokens of the prompt.")
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(1), help="Turns of loading and computing.")
@device_option
@click.option("--out", type=FOLDER, help="Folder for one JSON record per row; `tenuto report` reads it.")
@json_option
def store(
    model: str, stores: tuple[str, ...], context: int, repeats: int, device: str, out: Path | None, as_json: bool
) -> None:
    """Load a prompt's keys and values from a store, against computing them."""
    import json
    from tempfile import TemporaryDirectory

    from tqdm import tqdm

    from tenuto.bench.reuse.bench import measure
    from tenuto.cli.tables import reuse_table
    from tenuto.measure.folders import check_folder
    from tenuto.records.reuse import write_reuse_run
    from tenuto.zoo.language import load_language

    if out:
        check_folder(out)
    language = load_language(model, device)
    with TemporaryDirectory(prefix="tenuto-store-") as folder:
        own = [f"disk:{folder}/{codec}?codec={codec.replace('+', '%2B')}" for codec in STORED]
        asked = list(stores) or own
        found = measure(language, asked, tokens=context, repeats=repeats, command=command())
        rows = []
        for row in tqdm(found, total=len(asked), leave=False, disable=None):
            rows.append(row)
            if out:
                out.mkdir(parents=True, exist_ok=True)
                write_reuse_run(row, out)
    if as_json:
        click.echo(json.dumps([row.row() for row in rows], indent=1, allow_nan=False))
    else:
        wide_console().print(reuse_table(rows))
    if out:
        click.echo(f"Records: {out} (now: tenuto report {shlex.quote(str(out))})", err=as_json)


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
@click.option("--out", type=FOLDER, help="Folder for one JSON record per row; `tenuto report` reads it.")
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
    import json

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
    if as_json:
        click.echo(json.dumps([row.row() for row in rows], indent=1, allow_nan=False))
    else:
        wide_console().print(prompt_table(rows))


@bench.command()
@language_option
@click.option("--ranks", default=2, show_default=True, type=click.IntRange(1), help="Processes on this machine.")
@click.option("--placement", default="round_robin", show_default=True, help="blocks, expert, key_cluster, round_robin.")
@click.option("--selector", default="all", show_default=True, help="all, affinity, bound, both, centroid, router.")
@click.option("--keep", default=0.125, show_default=True, help="Share of tokens that a selector but all reads.")
@click.option("--window", default=32, show_default=True, type=click.IntRange(0), help="Last tokens, always read.")
@click.option("--profile", type=FILE, help="Of `tenuto calibrate moe`, for affinity.")
@click.option("--page", default=16, show_default=True, type=click.IntRange(1), help="Tokens per page.")
@click.option("--codec", default="raw", show_default=True, help="Of old pages: raw, fp8, int8, int4, delta8.")
@click.option("--resident", default=1.0, show_default=True, help="Share of full pages that stay in memory.")
@click.option("--utility", default="lru", show_default=True, help="Which stay: h2o, streaming_llm, lru, ...")
@click.option("--lossy", is_flag=True, help="Delete the other pages in place of demoting them.")
@click.option("--context", default=256, show_default=True, type=click.IntRange(2), help="Tokens of each text.")
@click.option("--tokens", default=32, show_default=True, type=click.IntRange(1), help="Tokens after it, one by one.")
@click.option("--rows", default=2, show_default=True, type=click.IntRange(1), help="Texts at once.")
@experts_option
@top_k_option
@click.option("--out", type=FOLDER, help="Folder for records, which `tenuto report` draws.")
@json_option
def moe(
    model: str,
    ranks: int,
    placement: str,
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

    Placements, selectors and codecs may be lists, for example centroid,router: everything is measured with everything.
    """
    import json

    from tenuto.bench.shards.bench import ShardingJob, measure
    from tenuto.cli.tables import shards_table

    job = ShardingJob(
        model=model,
        ranks=ranks,
        placements=tuple(placement.split(",")),
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
    if as_json:
        click.echo(json.dumps([run.row() for run in runs], indent=1, allow_nan=False))
    else:
        wide_console().print(shards_table(runs))


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
@click.option("--out", required=True, type=FOLDER, help="Folder for records; the same command goes on after a stop.")
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
    click.echo(f"Records: {out} (now: tenuto report {shlex.quote(str(out))})", err=as_json)
