"""``tenuto run``: a few pictures or a conversation under a policy."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

import click

from tenuto.cli.group import (
    FILE,
    MethodCommand,
    device_option,
    guidance_option,
    main,
    model_option,
    profile_option,
    steps_option,
)
from tenuto.errors import InputError

PICTURES = {"labels", "steps", "guidance", "seed", "profile", "out"}
WORDS = {"budget", "every", "prompt_file", "max_tokens", "store", "method"}


@main.command(cls=MethodCommand)
@model_option
@click.option("--policy", help="A method with its options, name:option=value [default: none, uncached].")
@click.option("--labels", default="0,1,2,3,4,5,6,7,8,9", show_default=True, help="Class numbers, one picture each.")
@steps_option
@guidance_option
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the first picture.")
@profile_option
@click.option("--out", default=Path("picture.png"), show_default=True, type=FILE, help="The PNG file to write.")
@click.option("--budget", help="Language models: keep=0.25, tokens=512 or bytes=20MiB.")
@click.option("--every", type=click.IntRange(1), help="Language models: compress while decoding too, every N tokens.")
@click.option("--prompt-file", type=FILE, help="Language models: the first prompt [default: asked for].")
@click.option("--max-tokens", default=256, show_default=True, type=click.IntRange(1), help="Of one answer.")
@click.option("--store", help="Language models: keep and find prompts there, for example disk:~/.cache/tenuto/kv.")
@click.option("--method", help="Language models: shorten prompts with a method of the family prompt.")
@device_option
@click.pass_context
def run(
    ctx: click.Context,
    model: str,
    policy: str | None,
    labels: str,
    steps: int,
    guidance: float,
    seed: int,
    profile: tuple[Path, ...],
    out: Path,
    budget: str | None,
    every: int | None,
    prompt_file: Path | None,
    max_tokens: int,
    store: str | None,
    method: str | None,
    device: str,
) -> None:
    """Generate images, or talk with a language model, under a policy; say what it saved."""
    from tenuto.calibration import Profile
    from tenuto.zoo.named import family_of

    words = family_of(model) == "kv"
    _only(ctx, PICTURES if words else WORDS, model)
    if words:
        _talk(model, policy, budget, every, prompt_file, max_tokens, store, method, device)
        return
    from tenuto import catalog
    from tenuto.bench.diffusion.job import Job
    from tenuto.bench.diffusion.single import draw, read_labels

    chosen = catalog.parse(policy, "diffusion") if policy else None
    asked = read_labels(labels)
    job = Job(steps=steps, samples=len(asked), guidance=guidance, seed=seed)
    given = [Profile.load(path) for path in profile]
    click.echo(draw(model, chosen, asked, job, profiles=given, device=device, out=out))


def _only(ctx: click.Context, other: set[str], model: str) -> None:
    """Refuse options of the other family."""
    typed = click.core.ParameterSource.COMMANDLINE
    if wrong := sorted(name for name in other if ctx.get_parameter_source(name) is typed):
        kind = "images" if other is WORDS else "text"
        raise InputError(
            f"--{wrong[0].replace('_', '-')} does not go with {model}, which generates {kind}. Leave it out."
        )


def _talk(
    model: str,
    policy: str | None,
    budget: str | None,
    every: int | None,
    prompt_file: Path | None,
    max_tokens: int,
    store: str | None,
    method: str | None,
    device: str,
) -> None:
    from tenuto import catalog
    from tenuto.bench.kv.chat import conversation, read_prompt
    from tenuto.budget import MemoryBudget
    from tenuto.reuse.prefix import PrefixStore

    if (policy is None) != (budget is None):
        lacking = "--budget, for example keep=0.25" if budget is None else "--policy"
        raise InputError(f"A policy and a budget go together; missing here: {lacking}.")
    chosen = catalog.parse(policy, "kv") if policy else None
    allowed = MemoryBudget.parse(budget) if budget else None
    merge = catalog.parse(method, "prompt") if method else None
    first = read_prompt(prompt_file) if prompt_file else None
    with ExitStack() as stack:
        kept = stack.enter_context(PrefixStore(store)) if store else None
        talk = conversation(
            model, chosen, allowed, every=every, most=max_tokens, device=device, store=kept, merge=merge
        )
        chat = stack.enter_context(talk)
        prompt = first if first is not None else _ask()
        while prompt:
            for piece in chat.say(prompt):
                click.echo(piece, nl=False)
            click.echo(f"\n\n{chat.summary()}")
            prompt = _ask() if sys.stdin.isatty() or first is None else None


def _ask() -> str | None:
    """The next line of the user, None at the end."""
    if sys.stdin.isatty():
        click.echo("> ", nl=False, err=True)
    return sys.stdin.readline().strip() or None
