"""``tenuto train``: small models of our own, to compare attentions."""

from __future__ import annotations

from pathlib import Path

import click

from tenuto.cli.group import FOLDER, Group, device_option, main


@main.group(cls=Group)
def train() -> None:
    """Train a small model from scratch."""


@train.command("mini-lm")
@click.option(
    "--attention",
    required=True,
    help="mha, gqa:kv_heads=2, mla:rank=64, olmoe:experts=8, or a method of the family attention.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of weights and order of the data.")
@click.option("--steps", type=click.IntRange(1), help="Of the optimiser [default: the size's own].")
@click.option("--size", default="cpu", show_default=True, help="tiny, cpu, moe or gpu.")
@click.option("--threads", type=click.IntRange(1), help="Processor threads [default: torch's].")
@device_option
@click.option("--out", required=True, type=FOLDER, help="Folder of the model; the same command goes on after a stop.")
def mini_lm(
    attention: str, seed: int, steps: int | None, size: str, threads: int | None, device: str, out: Path
) -> None:
    """A small decoder on text that is installed here, with one attention or another."""
    from tenuto.train.training import Training
    from tenuto.train.training import train as run

    asked = Training(attention=attention, seed=seed, steps=steps, size=size, device=device, threads=threads)
    log = run(asked, out)
    resumed = "".join(f", resumed at step {step}" for step in log.resumed)
    click.echo(
        f"{log.attention}, seed {log.seed}: {log.parameters:,} parameters, {log.steps} steps of "
        f"{log.tokens_per_step:,} tokens, last loss {log.losses[-1]:.3f} nats per token, "
        f"{log.tokens_per_s:,.0f} tokens/s{resumed}: {out}"
    )
