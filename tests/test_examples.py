"""Every script in ``examples/`` runs as its docstring says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PRINTS = {
    "context_parallel": r"(rank \d: equal outputs, (\d+%) reused on one device, \2 on 2\n){2}",
    "several_questions": r"lamp: 41733\nboat: 90218\npiano: 57064\n\d+ of \d+ bytes held\n",
}
PROGRAMS = {"python": [], "torchrun": ["-m", "torch.distributed.run"]}


def command(path: Path) -> list[str]:
    """The indented command of the script's docstring, with this Python."""
    found = re.search(rf"^    ((\S+) .*examples/{path.name})$", path.read_text(), re.M)
    assert found, f"{path.name}: its docstring has no line '    python examples/{path.name}'"
    return [sys.executable, *PROGRAMS[found[2]], *found[1].split()[1:]]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        command(path), cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        printed, errors = process.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its ranks
        printed, errors = process.communicate(timeout=60)
        pytest.fail(f"{path.name} hangs:\n{printed}{errors}")
    assert process.returncode == 0, errors
    assert re.search(PRINTS.get(path.stem, ""), printed), printed
