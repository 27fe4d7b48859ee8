"""The generated parts of ``docs/architecture.md``: the tree in the words of its files, and the order of imports."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "tenuto"
FAMILIES = ("diffusion", "kv", "attention", "prompt", "reuse", "shards")
WIDTH = 118


def first_sentence(path: Path) -> str:
    """What a file says of itself: the first sentence of its docstring, without markup."""
    text = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0].split())
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", text).replace("``", "")
    return re.split(r"(?<=[.?])\s", text)[0].removesuffix(".")


def line(depth: int, name: str, words: str) -> str:
    """One line of the tree, no wider than the page."""
    start = f"{'│   ' * depth}├── {name}"
    room = WIDTH - 26
    short, colon, _ = words.partition(": ")
    if len(words) <= room or not colon:
        short = words
    if len(short) > room:
        short = short[: room - 3].rsplit(" ", 1)[0] + " ..."
    return f"{start:<26}{short}".rstrip()


def tree() -> str:
    """Every package, and every file of the families."""
    lines = ["src/tenuto/"]
    for path in sorted(PACKAGE.iterdir(), key=lambda p: (p.is_dir(), p.name)):
        if path.suffix == ".py" and path.stem != "__init__":
            lines.append(line(0, path.name, first_sentence(path)))
    for name in (*FAMILIES, *sorted({p.name for p in PACKAGE.iterdir() if p.is_dir()} - set(FAMILIES))):
        folder = PACKAGE / name
        if not (folder / "__init__.py").is_file():
            continue
        lines.append(line(0, f"{name}/", first_sentence(folder / "__init__.py")))
        for path in sorted(folder.glob("*.py")) if name in FAMILIES else ():
            if path.stem != "__init__":
                lines.append(line(1, path.name, first_sentence(path)))
        for inner in sorted(p for p in folder.iterdir() if (p / "__init__.py").is_file()):
            lines.append(line(1, f"{inner.name}/", first_sentence(inner / "__init__.py")))
    return "```text\n" + "\n".join(lines) + "\n```\n"


def order() -> str:
    """The layers that ``pyproject.toml`` declares and ``make check`` enforces, highest first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(one["layers"] for one in contracts if one.get("exhaustive") and one["containers"] == ["tenuto"])
    return "```text\n" + "\n".join(layer.strip("()") for layer in layers) + "\n```\n"


def architecture() -> str:
    """``docs/architecture.md`` with its two generated parts as the code has them now.

    Raises:
        SystemExit: the page has lost a pair of markers.
    """
    page = (ROOT / "docs" / "architecture.md").read_text()
    for name, body in (("tree", tree()), ("order", order())):
        pattern = re.compile(rf"(<!-- {name}: begin[^\n]*-->\n).*?(<!-- {name}: end -->)", re.S)
        page, found = pattern.subn(lambda mark, body=body: mark[1] + body + mark[2], page)
        if found != 1:
            raise SystemExit(f"docs/architecture.md has {found} blocks `<!-- {name}: begin -->`: keep one.")
    return page
