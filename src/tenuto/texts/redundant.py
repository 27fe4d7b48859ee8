"""Long texts of five kinds, more and less repetitive, made offline: what prompt compression is measured on.

Each is drawn from a seed. Facts to ask for can be put into any of them, in that kind's own form.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from random import Random

from tenuto.texts.haystack import draw_keys, draw_numbers, prose

__all__ = ["KINDS", "compose"]

PATHS = ("/health", "/api/v1/items", "/api/v1/users", "/login", "/static/app.js", "/metrics")
JOBS = ("ingest", "resize", "mailer", "billing", "indexer")
OPENINGS = ("Could you explain this to me:", "What does it mean when they write:", "I do not understand this:")


def logs(rng: Random) -> list[str]:
    """Lines of a server's log: few templates, changing times and numbers."""
    lines, second = [], rng.randrange(40_000)
    for _ in range(400):
        second += rng.randrange(1, 5)
        stamp = f"2024-03-{1 + second // 86400:02d} {second // 3600 % 24:02d}:{second // 60 % 60:02d}:{second % 60:02d}"
        kind = rng.random()
        if kind < 0.6:
            what = f"INFO [http] GET {rng.choice(PATHS)} 200 in {rng.randrange(2, 90)} ms"
        elif kind < 0.85:
            what = f"INFO [worker] job {rng.choice(JOBS)} finished, 0 errors, queue length {rng.randrange(9)}"
        elif kind < 0.95:
            what = "DEBUG [pool] connection returned to pool, 16 of 16 connections are idle"
        else:
            what = f"WARNING [disk] usage of volume data is {rng.randrange(70, 99)} percent"
        lines.append(f"{stamp} {what}\n")
    return lines


def repeated(rng: Random) -> list[str]:
    """A few paragraphs of real prose that come again and again, as in retrieved documents that overlap."""
    sentences = prose(rng)
    pages = [" ".join(sentences[3 * i : 3 * i + 3]) + "\n\n" for i in range(3)]
    return [page for _ in range(30) for page in rng.sample(pages, len(pages))]


def boilerplate(rng: Random) -> list[str]:
    """Letters of one wording in which a name, a day and an amount change."""
    names = (
        "Ada Lovelace",
        "Alan Turing",
        "Grace Hopper",
        "Kurt Goedel",
        "Emmy Noether",
        "Paul Erdos",
        "Mary Cartwright",
    )
    return [
        f"Dear {rng.choice(names)},\n\nthank you for your order of {rng.randrange(1, 29)} May. The amount of "
        f"{rng.randrange(10, 900)} euros has been received. Please keep this letter for your records. If you have any "
        "questions about your order, do not hesitate to contact our customer service, which is open from Monday to "
        "Friday from nine to five.\n\nWith kind regards,\nThe order department\n\n"
        for _ in range(80)
    ]


def manual(rng: Random) -> list[str]:
    """Prose that does not repeat itself."""
    return [f"{sentence} " for sentence in prose(rng)]


def code(rng: Random) -> list[str]:
    """Source text of Python's own library, from a random line on."""
    lines = _library()
    start = rng.randrange(len(lines))
    return [*lines[start:], *lines[:start]]


def conversation(rng: Random) -> list[str]:
    """Turns of a user who quotes and an assistant who answers at length, in the form of a chat template."""
    sentences, turns = prose(rng), []
    for at in range(0, 300, 5):
        question = f"{rng.choice(OPENINGS)} {sentences[at]}"
        answer = " ".join(sentences[at + 1 : at + 5])
        turns.append(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n")
    return turns


@cache
def _library() -> tuple[str, ...]:
    import argparse
    import textwrap
    import zipfile

    sources = (inspect.getsource(module) for module in (argparse, textwrap, zipfile))
    return tuple(line for source in sources for line in source.splitlines(keepends=True) if line.strip())


KINDS: dict[str, Callable[[Random], list[str]]] = {
    "logs": logs,
    "repeated": repeated,
    "boilerplate": boilerplate,
    "prose": manual,
    "code": code,
    "conversation": conversation,
}


def compose(kind: str, seed: int, facts: int = 0) -> tuple[list[str], list[tuple[str, str]]]:
    """Pieces of a text of this kind, in order, and the facts among them.

    Args:
        facts: how many sentences such as "The code of the silver owl is 48213." are put among the pieces.

    Returns:
        Pieces, longer than any context; the key and number of every fact.
    """
    rng = Random(f"{kind} {seed}")
    return KINDS[kind](rng), list(zip(draw_keys(rng, facts), draw_numbers(rng, facts, 5), strict=True))
