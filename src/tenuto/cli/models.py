"""``tenuto models``: the models with a name."""

from __future__ import annotations

import json

import click

from tenuto.cli.group import Group, json_option, main, wide_console


@main.group(cls=Group)
def models() -> None:
    """List, fetch and find the models that have a name."""


@models.command("list")
@json_option
def list_models(as_json: bool) -> None:
    """What there is, and whether it is here."""
    from tenuto.zoo import named as zoo

    rows = [
        {"name": f"{zoo.PREFIX}{name}", "family": it.family, "here": zoo.is_here(name), "about": it.about}
        for name, it in zoo.MODELS.items()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    from rich.table import Table

    shown = Table("model", "family", "here", "about", box=None, pad_edge=False)
    for row, name in zip(rows, zoo.MODELS, strict=True):
        here = "yes" if row["here"] else f"no: tenuto models pull {name}"
        shown.add_row(str(row["name"]), str(row["family"]), here, str(row["about"]))
    wide_console().print(shown)


@models.command()
@click.argument("name")
def pull(name: str) -> None:
    """Fetch NAME, once."""
    from tenuto.zoo import named as zoo

    click.echo(zoo.pull(name))


@models.command()
@click.argument("name")
def path(name: str) -> None:
    """Print the folder of NAME."""
    from tenuto.errors import ModelError
    from tenuto.zoo import named as zoo

    found = zoo.find(name)
    if found is None:
        raise ModelError(f"{name} is not here yet. Fetch it once with: tenuto models pull {name}")
    click.echo(found)
