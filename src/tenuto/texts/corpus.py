"""Real text without downloads: what is installed anyway, as documents, split into training and held-out ones.

Python's reference manual and the docstrings of its library, the docstrings of torch, NumPy and SciPy, the descriptions
of some packages, and the King James Bible where Debian's package ``bible-kjv`` is. The order is fixed, a paragraph that
came before is left out, and a document is held out by the hash of its name: no held-out paragraph is trained on. Other
versions of the packages give another text; its digest tells them apart.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import inspect
import re
import shutil
import subprocess
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

from tqdm import tqdm

__all__ = ["BIBLE", "Corpus", "Document", "collect", "split"]

BIBLE = "bible"
"""Debian's program that prints the King James Bible."""

PACKAGES = ("numpy", "scipy", "torch")
DESCRIBED = ("accelerate", "click", "diffusers", "numpy", "pillow", "rich", "scipy", "torch", "tqdm", "transformers")
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "testing", "idlelib", "lib2to3", "_vendor", "__pycache__"}
CHAPTERS = 10
"""Chapters of the Bible in a document."""

HELD_OUT = 20
"""One document in so many is held out."""

LEAST = 200
"""Characters of the shortest document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A text with the name that decides whether it is held out."""

    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Documents, none in both parts, no paragraph twice.

    Attributes:
        train, held: documents in order. bible: whether the Bible is among them.
    """

    train: tuple[Document, ...]
    held: tuple[Document, ...]
    bible: bool

    @property
    def digest(self) -> str:
        """SHA-256 of names and texts, 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for document in (*self.train, *self.held):
            digest.update(f"{document.name}\0{document.text}\0".encode())
        return digest.hexdigest()[:16]


def collect() -> Corpus:
    """Everything there is; about 15 MB, some 20 seconds."""
    found = [*_bible(), *_manual(), *_library(), *_packages(), *_descriptions()]
    return split(found)


def split(documents: Iterable[Document]) -> Corpus:
    """Leave out paragraphs that came before, then documents that became too short, and part the others by name."""
    seen: set[str] = set()
    train: list[Document] = []
    held: list[Document] = []
    bible = False
    for document in documents:
        paragraphs = re.split(r"\n\s*\n", document.text.strip())
        fresh = [p for p in dict.fromkeys(paragraphs) if " ".join(p.split()) not in seen]
        seen.update(" ".join(p.split()) for p in fresh)
        text = "\n\n".join(fresh) + "\n"
        if len(text) >= LEAST:
            bible = bible or document.name.startswith(f"{BIBLE}/")
            kept = Document(name=document.name, text=text)
            (held if _is_held(document.name) else train).append(kept)
    return Corpus(train=tuple(train), held=tuple(held), bible=bible)


def _is_held(name: str) -> bool:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % HELD_OUT == 0


def _bible() -> Iterator[Document]:
    """Ten chapters a document, a line a verse; nothing where the program is not installed."""
    program = shutil.which(BIBLE)
    if program is None:
        return
    done = subprocess.run([program, "-f", "Gen1:1-Rev22:21"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    parts: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        if verse := re.fullmatch(r"(\w+?)(\d+):(\d+) (.+)", line):
            part = f"{BIBLE}/{verse[1]} {(int(verse[2]) - 1) // CHAPTERS}"
            parts.setdefault(part, []).append(verse[4] if verse[3] != "1" else f"\nChapter {verse[2]}\n\n{verse[4]}")
    for part, lines in parts.items():
        yield Document(name=part, text="\n".join(lines))


def _manual() -> Iterator[Document]:
    for topic in sorted(topics):
        yield Document(name=f"manual/{topic}", text=topics[topic])


def _library() -> Iterator[Document]:
    yield from _docstrings("library", Path(sysconfig.get_path("stdlib")))


def _packages() -> Iterator[Document]:
    for package in PACKAGES:
        found = importlib.util.find_spec(package)
        for place in (found.submodule_search_locations or ()) if found else ():
            yield from _docstrings(package, Path(place))


def _docstrings(name: str, root: Path) -> Iterator[Document]:
    """One document per source file."""
    files = [path for path in sorted(root.rglob("*.py")) if not SKIPPED & set(path.relative_to(root).parts)]
    for path in tqdm(files, desc=f"reading {name}", leave=False, disable=None):
        text = "\n\n".join(_written(path))
        yield Document(name=f"{name}/{path.relative_to(root).as_posix()}", text=text)


def _written(path: Path) -> Iterator[str]:
    """The docstrings of a source file; none of a file that is not Python of this version."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SyntaxWarning: other people's escapes
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            told = ast.get_docstring(node, clean=False)
            if told:
                yield inspect.cleandoc(told)


def _descriptions() -> Iterator[Document]:
    for name in DESCRIBED:
        try:
            told = importlib.metadata.metadata(name)["Description"] or ""
        except importlib.metadata.PackageNotFoundError:
            continue
        yield Document(name=f"description/{name}", text=str(told))
