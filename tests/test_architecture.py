"""The house rules that ruff and mypy cannot see: each is a function from text to offences, and is shown to fail."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
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
POLICIES = [
    path
    for path in SOURCES
    if path.parent.name == "policies" and path.stem != "__init__" and path.parts[-3] in ("diffusion", "kv")
]
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(text: str) -> Iterator[Function]:
    return (node for node in ast.walk(ast.parse(text)) if isinstance(node, Function))


def members(body: list[ast.stmt]) -> Iterator[Function]:
    """Public functions of a module or class, and ``__init__`` and its kin; those inside functions are nobody's API."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from members(node.body)
        elif isinstance(node, Function) and (not node.name.startswith("_") or node.name.endswith("__")):
            yield node


def subclasses(text: str, base: str) -> list[str]:
    classes = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef))
    return [c.name for c in classes if any(ast.unparse(b).split(".")[-1] == base for b in c.bases)]


def too_long(text: str) -> list[str]:
    lines = len(text.splitlines())
    return [f"{lines} lines, 400 allowed"] if lines > 400 else []


def long_functions(text: str) -> list[str]:
    sizes = {f.name: (f.end_lineno or 0) - f.lineno + 1 for f in functions(text)}
    return [f"{name}: {size} lines, 59 allowed" for name, size in sizes.items() if size >= 60]


def open_signatures(text: str) -> list[str]:
    return [f"{f.name}(**{f.args.kwarg.arg})" for f in members(ast.parse(text).body) if f.args.kwarg]


def capability_guesses(text: str) -> list[str]:
    calls = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
    return [ast.unparse(call) for call in calls if ast.unparse(call.func) == "hasattr"]


def no_docstring(text: str) -> list[str]:
    return [] if ast.get_docstring(ast.parse(text)) else ["no module docstring"]


def not_one_method(text: str) -> list[str]:
    bases = ("FeaturePolicy", "WrappingPolicy", "KVMethod")
    names = [name for base in bases for name in subclasses(text, base)]
    paper = re.search(r"https?://\S+", ast.get_docstring(ast.parse(text)) or "")
    return ([] if len(names) == 1 else [f"policies {names}, one allowed"]) + ([] if paper else ["no link to the paper"])


def reads_more_than_runs(text: str) -> list[str]:
    allowed = re.compile(r"tenuto(\.errors|\.records(\..*)?|\.report(\..*)?)?")
    imported: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            imported.append(node.module or "")
        elif isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
    return [name for name in imported if name.split(".")[0] == "tenuto" and not allowed.fullmatch(name)]


RULES: list[tuple[Callable[[str], list[str]], list[Path], str]] = [
    (too_long, SOURCES + SCRIPTS, "\n" * 401),
    (long_functions, SOURCES + SCRIPTS, "def f():\n" + "    pass\n" * 59),
    (open_signatures, SOURCES, "class A:\n    def f(self, **options): ..."),
    (capability_guesses, SOURCES, "ok = hasattr(object, 'forward')"),
    (no_docstring, SOURCES, "x = 1"),
    (not_one_method, POLICIES, '"""https://example.org"""\nclass A(FeaturePolicy): ...\nclass B(FeaturePolicy): ...'),
    (not_one_method, POLICIES, '"""No link."""\nclass A(FeaturePolicy): ...'),
    (reads_more_than_runs, [p for p in SOURCES if "report" in p.parts], "from tenuto.diffusion.attach import attach"),
]


@pytest.mark.parametrize(("rule", "paths", "broken"), RULES, ids=[rule.__name__ for rule, _, _ in RULES])
def test_rule(rule: Callable[[str], list[str]], paths: list[Path], broken: str) -> None:
    assert rule(broken), "the rule cannot fail"
    assert paths, "the rule looks at nothing"
    offences = [f"{path.relative_to(ROOT)}: {offence}" for path in paths for offence in rule(path.read_text())]
    assert not offences, "\n".join(offences)


def test_files_are_small() -> None:
    sizes = [len(path.read_text().splitlines()) for path in SOURCES if path.stem != "__init__"]
    assert statistics.median(sizes) < 120, sorted(sizes)


def test_no_file_is_a_drawer() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "core", "misc"}
    assert not [path for path in SOURCES + SCRIPTS if drawers & {path.stem, *path.relative_to(ROOT).parts}]


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 120


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


def test_importing_tenuto_imports_nothing_heavy() -> None:
    result = python("import sys, tenuto; print(*sorted(set(sys.modules) & {'torch', 'numpy', 'scipy', 'diffusers'}))")
    assert (result.returncode, result.stdout.split()) == (0, []), result.stdout + result.stderr


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
