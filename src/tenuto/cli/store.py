"""``tenuto store``: look at a store of prefixes, check it, cut it down, fill it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tenuto.cli.group import FILE, Group, device_option, json_option, language_option, main, wide_console

if TYPE_CHECKING:
    from tenuto.tiers.address import Level
    from tenuto.tiers.tier import Tier

MEBI = 2**20
address_argument = click.argument("address")


@main.group(cls=Group)
def store() -> None:
    """Stores of KV pages. ADDRESS is disk:FOLDER, redis://HOST:6379/0, s3://BUCKET/FOLDER, or several with commas."""


@contextmanager
def _opened(address: str) -> Iterator[list[Level]]:
    """The levels of an address; a folder that is not there is not made."""
    from tenuto.errors import InputError
    from tenuto.tiers.address import open_levels, split

    for text in split(address):
        folder = Path(text.strip().removeprefix("disk:").partition("?")[0]).expanduser()
        if text.strip().startswith("disk:") and not folder.is_dir():
            raise InputError(f"There is no store in {folder}. Give the folder of one.")
    with ExitStack() as stack:
        levels = open_levels(address)
        for level in levels:
            stack.enter_context(level.tier)
        yield levels


def _tiers(levels: list[Level]) -> Iterator[tuple[str, Tier]]:
    from tenuto.tiers.inventory import parts

    for level in levels:
        for tier in parts(level.tier):
            yield str(level.codec), tier


def _name(tier: Tier) -> str:
    return str(getattr(tier, "folder", None) or getattr(tier, "name", None) or "host")


@store.command()
@address_argument
@json_option
def stat(address: str, as_json: bool) -> None:
    """Count pages and bytes; reads no page."""
    with _opened(address) as levels:
        rows = [
            {
                "tier": _name(tier),
                "codec": codec,
                "pages": len(tier.keys()),
                "bytes_used": tier.bytes_used(),
                "bytes_allowed": getattr(tier, "capacity", None),
            }
            for codec, tier in _tiers(levels)
        ]
    _show(rows, as_json)


@store.command()
@address_argument
@json_option
def ls(address: str, as_json: bool) -> None:
    """List what is held by model, dtype and codec; reads every page."""
    from tenuto.tiers.inventory import survey

    found: dict[tuple[str, ...], list[int]] = {}
    with _opened(address) as levels:
        for _, tier in _tiers(levels):
            for page in _progress(survey(tier), len(tier.keys())):
                if page.facts is not None:
                    name = (_name(tier), page.facts.model, page.facts.dtype, page.facts.codec)
                    total = found.setdefault(name, [0, 0, 0])
                    for at, more in enumerate((1, page.facts.stop - page.facts.start, page.size)):
                        total[at] += more
    names = ("tier", "model", "dtype", "codec", "pages", "tokens", "bytes")
    _show([dict(zip(names, (*name, *total), strict=True)) for name, total in sorted(found.items())], as_json)


@store.command()
@address_argument
@click.option("--discard", is_flag=True, help="Remove damaged pages.")
@click.pass_context
def verify(ctx: click.Context, address: str, discard: bool) -> None:
    """Read and check every page; exit code 1 if some are damaged."""
    from tenuto.tiers.inventory import survey

    good, bad = 0, 0
    with _opened(address) as levels:
        for _, tier in _tiers(levels):
            for page in _progress(survey(tier), len(tier.keys())):
                good += not page.problem
                if page.problem:
                    bad += 1
                    click.echo(f"{_name(tier)}: {page.key or 'unreadable key'}: {page.problem}")
                    if discard and page.key is not None:
                        tier.discard(page.key)
    gone = ", removed" if discard and bad else ""
    click.echo(f"{good} pages are whole, {bad} damaged{gone}.")
    ctx.exit(int(bad > 0 and not discard))


@store.command()
@address_argument
@click.option("--to", "limit", required=True, help="What may stay, for example 2GiB.")
def prune(address: str, limit: str) -> None:
    """Drop the least recently used pages of a folder."""
    from tenuto.budget import read_bytes
    from tenuto.errors import InputError
    from tenuto.tiers.disk import DiskTier

    most, freed = read_bytes(limit), 0
    with _opened(address) as levels:
        tiers = [tier for _, tier in _tiers(levels)]
        if other := [tier for tier in tiers if not isinstance(tier, DiskTier)]:
            raise InputError(f"{_name(other[0])} is no folder: a server or bucket drops pages by its own settings.")
        for tier in tiers:
            if isinstance(tier, DiskTier):
                freed += tier.prune(most)
    click.echo(f"{freed / MEBI:.1f} MiB freed.")


@store.command()
@address_argument
@click.option("--salt", required=True, help="The tenant= (of vLLM's tier: salt) whose pages go; '' for none.")
def purge(address: str, salt: str) -> None:
    """Remove all that one tenant stored, and its bytes from a folder's files."""
    from tenuto.tiers.disk import DiskTier
    from tenuto.tiers.key import tenant_mark

    gone, mark = 0, tenant_mark(salt)
    with _opened(address) as levels:
        for _, tier in _tiers(levels):
            mine = [key for key in tier.keys() if key.startswith(mark)]  # noqa: SIM118 (a tier is no mapping)
            for key in mine:
                tier.discard(key)
            if isinstance(tier, DiskTier):
                tier.sweep()
            gone += len(mine)
    click.echo(f"{gone} pages removed.")


@store.command()
@address_argument
@click.argument("texts", nargs=-1, required=True, type=FILE)
@language_option
@click.option("--chat", is_flag=True, help="As a user's first turn, as `tenuto run --store` sends it.")
@click.option("--page", default=64, show_default=True, type=click.IntRange(1), help="Tokens per page.")
@click.option("--tenant", default="", help="Only who gives the same text finds the pages.")
@device_option
def warm(address: str, texts: tuple[Path, ...], model: str, chat: bool, page: int, tenant: str, device: str) -> None:
    """Read TEXTS with a model and keep their pages, so that requests that begin with them start at once."""
    from tenuto.bench.kv.chat import read_prompt
    from tenuto.bench.reuse.warming import warm as read
    from tenuto.reuse.prefix import PrefixStore
    from tenuto.zoo.language import load_language

    prompts = [read_prompt(path) for path in texts]
    language = load_language(model, device)
    with PrefixStore(address, page=page, tenant=tenant) as kept:
        bar = _progress(read(language, kept, prompts, chat=chat), len(prompts))
        for path, (seen, stored) in zip(texts, bar, strict=True):
            click.echo(f"{path}: {seen} tokens, {stored} of them in whole pages.")


def _progress(items: Iterator[Any], total: int) -> Iterator[Any]:
    from tqdm import tqdm

    return iter(tqdm(items, total=total, leave=False, disable=None))


def _show(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    if not rows:
        click.echo("No pages.")
        return
    from rich.table import Table

    shown = Table(*rows[0], box=None, pad_edge=False)
    for row in rows:
        shown.add_row(*(f"{value:,}" if isinstance(value, int) else str(value or "") for value in row.values()))
    wide_console().print(shown)
