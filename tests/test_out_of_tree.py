"""A method of any family is one file in somebody's package: those of docs/add-a-method.md, installed and used."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tenuto import catalog, testing
from tenuto.cli import main
from tenuto.method import Method
from tenuto.testing.law import LawError

pytestmark = pytest.mark.usefixtures("one_thread")
PAGE = Path(__file__).resolve().parent.parent / "docs" / "add-a-method.md"
FILES: dict[str, str] = dict(re.findall(r'^```python title="(\w+)\.py"\n(.*?)^```', PAGE.read_text(), re.M | re.S))
CHECKS: dict[str, Callable[[Any], None]] = {
    "quiet_middle": lambda policy: [law(policy) for law in testing.LAWS[:2]] and None,
    "long_keys": testing.check_kv_policy,
    "two_windows": testing.check_attention,
    "first_half": testing.check_prompt_method,
    "heads_of_chunks": testing.check_assembler,
    "by_parity": testing.check_shard_method,
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, type[Method]]:
    """All six files as one installed distribution; their classes by name."""
    folder = tmp_path / "site"
    folder.mkdir()
    for name, source in FILES.items():
        (folder / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(folder)
    classes, groups = {}, {family: list[str]() for family in catalog.FAMILIES}
    for name in FILES:
        module = importlib.import_module(name)
        named = [vars(module)[word] for word in module.__all__]
        (cls,) = [value for value in named if isinstance(value, type) and issubclass(value, Method)]
        family = next(family for family, base in catalog.FAMILIES.items() if issubclass(cls, base))
        groups[family].append(f"{name} = {name}:{cls.__name__}")
        classes[name] = cls
    info = folder / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "\n".join(f"[tenuto.{family}]\n" + "\n".join(lines) for family, lines in groups.items()) + "\n"
    )
    return classes


def tenuto(*words: Any) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], prog_name="tenuto")


def test_there_is_one_of_every_family(package: dict[str, type[Method]]) -> None:
    families = {catalog.method(name).family for name in package}
    assert families == set(catalog.FAMILIES) and len(package) == len(families) == len(CHECKS)
    assert catalog.methods().keys() >= package.keys()


def test_they_are_read_told_and_cited(package: dict[str, type[Method]]) -> None:
    listed = {entry["name"]: entry for entry in json.loads(tenuto("methods", "--json").stdout)}
    for name, cls in package.items():
        policy = catalog.parse(name)
        assert type(policy) is cls and catalog.text(policy) == name and catalog.parse(catalog.text(policy)) == policy
        assert listed[name]["class"] == cls.__name__ and listed[name]["paper"]["authors"] == "You"
        assert f"@misc{{{name}2026," in tenuto("cite", name).stdout
        assert tenuto("methods", name).stdout.startswith(f"{name}: {listed[name]['family']}")
        for text in (*cls.sweep, *cls.trials):
            assert type(catalog.parse(text)) is cls
    wrong = tenuto("cite", "two_window")
    assert wrong.exit_code == 2 and "Did you mean 'two_windows' (attention)?" in " ".join(wrong.stderr.split())


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_they_obey_the_laws_of_their_family(name: str, package: dict[str, type[Method]]) -> None:
    cls = package[name]
    text = [*cls.trials, *cls.sweep[-1:], name][0]
    CHECKS[name](catalog.parse(text))


def test_a_broken_one_is_caught(package: dict[str, type[Method]], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from tenuto.attention.policies.window import WindowHeads
    from tenuto.prompt.spans import Spans
    from tenuto.shards.policy import Places

    monkeypatch.setattr(package["first_half"], "choose", lambda self, look: Spans.of_lengths([1] * len(look.ids)))
    with pytest.raises(LawError, match="become"):
        testing.check_prompt_method(catalog.parse("first_half"))
    monkeypatch.setattr(WindowHeads, "formula", lambda self, tokens, itemsize: {"device": 1})
    with pytest.raises(LawError, match="bytes of the formula"):
        testing.check_attention(catalog.parse("two_windows:near=5,far=12"))
    monkeypatch.setattr(package["heads_of_chunks"], "exact", True)
    with pytest.raises(LawError, match="the whole prompt"):
        testing.check_assembler(catalog.parse("heads_of_chunks:tokens=1"))
    monkeypatch.setattr(
        package["by_parity"],
        "place",
        lambda self, new, memory: Places(torch.zeros_like(new.numbers), torch.zeros_like(new.numbers)),
    )
    testing.check_shard_method(catalog.parse("by_parity:page=4"))  # all on one shard is unbalanced, and exact


def test_they_are_measured_and_reported(package: dict[str, type[Method]], tiny_language: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shared = ["--model", tiny_language, "--threads", 1, "--out", out]
    rounds = [
        ["kv", "--policies", "long_keys", "--budget", "keep=0.5", "--context", 200, "--examples", 1],
        ["prompt", "--method", "first_half:layer=0", "--kinds", "logs", "--context", 1500, "--examples", 1],
        ["shards", "--ranks", 1, "--placement", "by_parity", "--context", 60, "--tokens", 3, "--page", 4],
    ]
    for words in rounds:
        done = tenuto("bench", *words, *shared)
        assert done.exit_code == 0, done.output
    assert tenuto("report", out).exit_code == 0
    page = (out / "tenuto-report.html").read_text(encoding="utf-8")
    assert all(name in page for name in ("long_keys", "first_half", "by_parity"))
