"""The wheel, in an environment of its own and away from the checkout, does what the README says.

The environment borrows the installed dependencies, so nothing is fetched; that none of them is missing from the
metadata is seen in the source.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

pytestmark = [pytest.mark.processes, pytest.mark.bundled]
ROOT = Path(__file__).resolve().parent.parent
NAMES = {"PIL": "pillow"}  # distributions that are called otherwise than what one imports
OTHERS = {
    "vllm",
    "huggingface_hub",
    "tokenizers",
    "markupsafe",
}  # an environment of its own; brought by transformers, jinja2
DEMO = """
from tenuto.bench.diffusion import bench
from tenuto.bench.diffusion.job import Job
from tenuto.cli import main

few = bench.demo_policies()[:2]
bench.DEMO, bench.demo_policies = Job(steps=4, samples=5), lambda: few
main(["demo"])
"""


def run(*command: object, cwd: Path, **environment: str) -> str:
    """What it printed."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=kept | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel in it, in a folder of its own."""
    place = tmp_path_factory.mktemp("package")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", place / "dist", ROOT, cwd=place)
    (wheel,) = (place / "dist").glob("*.whl")
    assert list((place / "dist").glob("*.tar.gz")), "the wheel is made from the source distribution"
    venv.create(place / "venv", with_pip=False, symlinks=True)
    python = place / "venv/bin/python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "-q", wheel, cwd=place)
    (site,) = place.glob("venv/lib/python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return place


def test_the_command_answers(home: Path) -> None:
    assert "fastcache" in run(home / "venv/bin/tenuto", "methods", cwd=home)


def test_the_readme_and_the_demo_run(home: Path) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    (home / "both.py").write_text(f"import tenuto\nprint(tenuto.__file__)\n{example}\n{DEMO}")
    told = run(home / "venv/bin/python", "both.py", cwd=home, TENUTO_HOME=str(home / "kept"))
    assert Path(told.splitlines()[0]).is_relative_to(home / "venv"), told
    assert "reuse_ratio" in told and "every_n" in told
    assert (home / "tenuto-report.html").stat().st_size > 10_000


def imported(path: Path) -> set[str]:
    """Top-level names of what a file imports."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.split(".")[0] for name in names}


def test_what_is_imported_is_what_is_required() -> None:
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {
        name: each for name, each in told["optional-dependencies"].items() if name not in ("dev", "docs", "peers")
    }
    required = {
        re.split(r"[^\w-]", text)[0] for text in (*told["dependencies"], *(t for each in extras.values() for t in each))
    }
    used = {NAMES.get(name, name) for path in (ROOT / "src").rglob("*.py") for name in imported(path)}
    used -= sys.stdlib_module_names | OTHERS | {"tenuto"}
    assert used <= required, "an import without a requirement"
    unused = required - used - {"tenuto"}
    assert unused == {"accelerate", "gguf"}, "diffusers loads with the one, transformers reads SmolLM2 with the other"
