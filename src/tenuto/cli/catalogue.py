"""``tenuto methods`` and ``cite``: what there is."""

from __future__ import annotations

import json

import click

from tenuto.cli.group import json_option, main


@main.command()
@json_option
def methods(as_json: bool) -> None:
    """List the caching methods with their options."""
    from tenuto import catalog

    found = catalog.methods().values()
    if as_json:
        click.echo(json.dumps([catalog.describe(info) for info in found], indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    shown = Table("policy", "options (default)", "calibrated", "what it does", box=None, pad_edge=False)
    for info in found:
        options = [f"{o.name}={'...' if o.required else o.default}" for o in info.options().values()]
        shown.add_row(info.name, ", ".join(options), catalog.calibration(info), info.summary)
    Console().print(shown)


@main.command()
@click.argument("names", nargs=-1)
def cite(names: tuple[str, ...]) -> None:
    """Print BibTeX entries of the papers behind NAMES, or behind all methods."""
    from tenuto import catalog

    for name in names or catalog.methods():
        click.echo(catalog.bibtex(catalog.method(name)))
