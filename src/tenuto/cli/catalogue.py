"""``tenuto methods`` and ``cite``: what there is, and where it comes from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from tenuto.cli.group import json_option, main, wide_console

if TYPE_CHECKING:
    from tenuto.catalog import MethodInfo


@main.command()
@click.argument("names", nargs=-1)
@json_option
def methods(names: tuple[str, ...], as_json: bool) -> None:
    """List the caching methods with their options, or tell all about NAMES."""
    from tenuto import catalog

    infos = [catalog.method(name) for name in names] or list(catalog.methods().values())
    if as_json:
        click.echo(json.dumps([catalog.describe(info) for info in infos], indent=1))
    elif names:
        for info in infos:
            click.echo(_card(info))
    else:
        _table(infos)


def _table(infos: list[MethodInfo]) -> None:
    from rich.table import Table

    from tenuto import catalog

    shown = Table("family", "policy", "options (default)", "calibrated", "what it does", box=None, pad_edge=False)
    for family in catalog.FAMILIES:
        for info in (info for info in infos if info.family == family):
            options = [f"{o.name}={'...' if o.required else o.default}" for o in info.options().values()]
            calibrated = "yes" if info.cls.calibrated else "no"
            shown.add_row(family, info.name, ", ".join(options), calibrated, info.summary)
    wide_console().print(shown)


def _card(info: MethodInfo) -> str:
    """All about one method, in lines."""
    cls, paper = info.cls, info.cls.paper
    lines = [f"{info.name}: {info.family}, class {cls.__name__}", f"  {info.summary}"]
    lines.append(f"  paper: {paper.title}, {paper.authors}, {paper.year}: {paper.url}" if paper else "  a baseline")
    for option in info.options().values():
        lines.append(f"  {option.name}={'...' if option.required else option.default} ({option.type.__name__})")
    lines += [f"  published: {it.quantity}: {it.value} ({it.model}; {it.source})" for it in cls.claims]
    lines += [f"  older name: {alias} is now {text}" for alias, text in cls.aliases.items()]
    return "\n".join(lines)


@main.command()
@click.argument("names", nargs=-1)
def cite(names: tuple[str, ...]) -> None:
    """Print BibTeX entries of the papers behind NAMES, or behind all methods."""
    from tenuto import catalog

    for info in [catalog.method(name) for name in names] or catalog.methods().values():
        if names or info.cls.paper:
            click.echo(catalog.bibtex(info))
