"""The house rules that ruff and mypy cannot see: each is a function from text to offences, and is shown to fail."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

import tenuto

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "src" / "tenuto").rglob("*.py"))
SCRIPTS = sorted(
    path
    for folder in ("tests", "scripts", "models", "benchmarks", "examples")
    for path in (ROOT / folder).rglob("*.py")
)
POLICIES = [path for path in SOURCES if path.parent.name == "policies" and path.stem != "__init__"]
BASES = ("FeaturePolicy", "WrappingPolicy", "KVMethod", "Attention", "PromptMethod", "Assembler", "ShardMethod")
"""Of the methods of the families."""

GENERATED = [ROOT / "src/tenuto" / folder / "__init__.py" for folder in ("", "attention", "shards")]
OUTSIDE = [path for path in SOURCES if path not in POLICIES and path not in GENERATED]
parse = cache(ast.parse)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(text: str) -> Iterator[Function]:
    return (node for node in ast.walk(parse(text)) if isinstance(node, Function))


def members(body: list[ast.stmt]) -> Iterator[Function]:
    """Public functions of a module or class, and ``__init__`` and its kin; those inside functions are nobody's API."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from members(node.body)
        elif isinstance(node, Function) and (not node.name.startswith("_") or node.name.endswith("__")):
            yield node


def subclasses(text: str, base: str) -> list[str]:
    classes = (node for node in ast.walk(parse(text)) if isinstance(node, ast.ClassDef))
    return [c.name for c in classes if any(ast.unparse(b).split(".")[-1] == base for b in c.bases)]


def too_long(text: str) -> list[str]:
    lines = len(text.splitlines())
    return [f"{lines} lines, 400 allowed"] if lines > 400 else []


def long_functions(text: str) -> list[str]:
    sizes = {f.name: (f.end_lineno or 0) - f.lineno + 1 for f in functions(text)}
    return [f"{name}: {size} lines, 59 allowed" for name, size in sizes.items() if size >= 60]


def open_signatures(text: str) -> list[str]:
    return [f"{f.name}(**{f.args.kwarg.arg})" for f in members(parse(text).body) if f.args.kwarg]


def capability_guesses(text: str) -> list[str]:
    calls = (node for node in ast.walk(parse(text)) if isinstance(node, ast.Call))
    return [ast.unparse(call) for call in calls if ast.unparse(call.func) == "hasattr"]


def no_docstring(text: str) -> list[str]:
    return [] if ast.get_docstring(parse(text)) else ["no module docstring"]


def not_one_method(text: str) -> list[str]:
    names = [name for base in BASES for name in subclasses(text, base)]
    paper = re.search(r"https?://\S+|the baseline|a baseline", ast.get_docstring(parse(text)) or "", re.I)
    return ([] if len(names) == 1 else [f"policies {names}, one allowed"]) + ([] if paper else ["no link to the paper"])


def reads_more_than_runs(text: str) -> list[str]:
    allowed = re.compile(r"tenuto(\.errors|\.records(\..*)?|\.report(\..*)?)?")
    imported: list[str] = []
    for node in ast.walk(parse(text)):
        if isinstance(node, ast.ImportFrom):
            imported.append(node.module or "")
        elif isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
    return [name for name in imported if name.split(".")[0] == "tenuto" and not allowed.fullmatch(name)]


ORDINARY = {"blocks", "cake", "concatenate", "fixed", "first_block", "full", "quest", "think", "window"}
ORDINARY |= {"Blocks", "Cake", "Concatenate", "Quest", "Summary", "Window"}
"""Names of methods that are words or terms as well: they count where they are imported, or written with options."""


@cache
@cache
def names_of_methods() -> tuple[set[str], set[str]]:
    """What methods are called: all names, and those that are nothing else. One file each, named like the method."""
    files, classes = {path.stem for path in POLICIES}, set[str]()
    for path in POLICIES:
        nodes = (node for node in parse(path.read_text()).body if isinstance(node, ast.ClassDef))
        classes |= {c.name for c in nodes if any(ast.unparse(base).split(".")[-1] in BASES for base in c.bases)}
    return files | classes, (files | classes) - ORDINARY


def names_a_method(text: str) -> list[str]:
    """Identifiers, imports and texts that name a method; docstrings and comments may."""
    every, plain = names_of_methods()
    if not any(name in text for name in every):
        return []
    alone = re.compile(rf"(?<!\w)(?:{'|'.join(sorted(plain))})(?!\w)|\b(?:{'|'.join(sorted(every))}):\w+=")
    tree = parse(text)
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    offences = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and ".policies." in (node.module or "") and node.module[:4] != "vllm":
            offences.append(f"line {node.lineno}: import {node.module}")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            offences += [f"line {node.lineno}: {hit[0]} in {node.value[:60]!r}" for hit in alone.finditer(node.value)]
        words = {getattr(node, part, None) for part in ("id", "attr", "name", "arg")}
        offences += [f"line {getattr(node, 'lineno', 0)}: {word}" for word in words if word in plain]
    return offences


RULES: list[tuple[Callable[[str], list[str]], list[Path], str]] = [
    (too_long, SOURCES + SCRIPTS, "\n" * 401),
    (long_functions, SOURCES + SCRIPTS, "def f():\n" + "    pass\n" * 59),
    (open_signatures, SOURCES, "class A:\n    def f(self, **options): ..."),
    (capability_guesses, SOURCES, "ok = hasattr(object, 'forward')"),
    (no_docstring, SOURCES, "x = 1"),
    (not_one_method, POLICIES, '"""https://example.org"""\nclass A(FeaturePolicy): ...\nclass B(FeaturePolicy): ...'),
    (not_one_method, POLICIES, '"""No link."""\nclass A(FeaturePolicy): ...'),
    (names_a_method, OUTSIDE, "from tenuto.kv.policies.snapkv import score"),
    (reads_more_than_runs, [p for p in SOURCES if "report" in p.parts], "from tenuto.diffusion.attach import attach"),
]


@pytest.mark.parametrize(("rule", "paths", "broken"), RULES, ids=[rule.__name__ for rule, _, _ in RULES])
def test_rule(rule: Callable[[str], list[str]], paths: list[Path], broken: str) -> None:
    assert rule(broken), "the rule cannot fail"
    assert paths, "the rule looks at nothing"
    offences = [f"{path.relative_to(ROOT)}: {offence}" for path in paths for offence in rule(path.read_text())]
    assert not offences, "\n".join(offences)


def test_a_method_is_found_however_it_is_named() -> None:
    for text in ("told = 'for example SnapKV'", "way == 'semtoken'", "x = 'window:window=8'", "SnapKV()", "f(mka=1)"):
        assert names_a_method(text), text
    for text in ("window = 8", "x = 'the full window'", '"""SnapKV."""', "from vllm.v1.policies.full import SnapKW"):
        assert not names_a_method(text), text


def test_files_are_small() -> None:
    sizes = [len(path.read_text().splitlines()) for path in SOURCES if path.stem != "__init__"]
    assert statistics.median(sizes) < 120, sorted(sizes)


def test_no_file_is_a_drawer() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "core", "misc"}
    assert not [path for path in SOURCES + SCRIPTS if drawers & {path.stem, *path.relative_to(ROOT).parts}]


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 120


MIRRORED = {"AttachedRun", "Layout", "Selector", "Step"}
"""Classes that are there twice: the same thing of several families."""


def test_no_class_name_is_there_twice() -> None:
    homes: dict[str, list[str]] = {}
    for path in SOURCES:
        for node in parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    twice = {name: paths for name, paths in homes.items() if len(paths) > 1}
    assert twice.keys() == MIRRORED, {name: twice[name] for name in twice}


@pytest.mark.processes
def test_no_path_of_a_machine_is_committed() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    paths = [ROOT / name for name in names if name and (ROOT / name).is_file()]
    machine = re.compile(rb"/(work|root|home/\w+)/" + rb"\w")
    assert len(paths) > 20
    assert machine.search(b"see /root" + b"/x")
    assert not [f"{path.relative_to(ROOT)}: {hit[0]!r}" for path in paths if (hit := machine.search(path.read_bytes()))]


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.processes
def test_importing_tenuto_imports_nothing_heavy() -> None:
    result = python("import sys, tenuto; print(*sorted(set(sys.modules) & {'torch', 'numpy', 'scipy', 'diffusers'}))")
    assert (result.returncode, result.stdout.split()) == (0, []), result.stdout + result.stderr


@pytest.mark.processes
def test_imports_go_one_way() -> None:
    code = "from importlinter import cli; raise SystemExit(cli.lint_imports(no_cache=True, no_logo=True))"
    result = python(code)
    assert result.returncode == 0, result.stdout + result.stderr


def test_public_names_are_sorted_and_there() -> None:
    assert tenuto.__all__ == sorted(tenuto.__all__)
    assert all(getattr(tenuto, name) is not None for name in tenuto.__all__)
    with pytest.raises(AttributeError, match="no public name 'atach'"):
        _ = tenuto.atach


def test_one_version() -> None:
    assert f"\nversion: {tenuto.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{tenuto.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
