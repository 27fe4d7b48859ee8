"""Several devices decide alike: two gloo ranks under diffusers' context parallelism, started by torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel

import tenuto
from tenuto.diffusion.parallel import reducer
from tenuto.diffusion.policy import alone
from tenuto.testing import TinyDiT, denoise

pytestmark = pytest.mark.processes

WORKER = Path(__file__).with_name("context_parallel.py")
DEADLINE = 660.0  # seconds; the ranks end themselves before

ranks = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both ranks have written what they found. Never hangs."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(WORKER)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        [*command, str(folder)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        printed, _ = process.communicate(timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its ranks
        printed, _ = process.communicate(timeout=60)
    (folder / "printed").write_text(printed)
    return folder


def written(folder: Path, what: str) -> list[str]:
    """The file of either rank."""
    paths = [folder / f"{what}-{rank}" for rank in (0, 1)]
    assert all(path.exists() for path in paths), (folder / "printed").read_text()
    return [path.read_text() for path in paths]


def agreed(folder: Path) -> list[dict[str, Any]]:
    """What either rank found for every policy, model and guidance style."""
    return [json.loads(text) for text in written(folder, "agree")]


@ranks
def test_every_policy_gives_the_result_of_one_rank(folder: Path) -> None:
    answers = agreed(folder)
    told: dict[str, set[str]] = {}
    for answer in answers:
        for case, found in answer.items():
            if "refused" in found:
                continue
            one, both = found["decisions"]
            assert both == one, case
            assert found["error"] < 1e-4, case
            assert found["detached"] < 1e-4, case
            assert found["evidence"][1] == pytest.approx(found["evidence"][0], rel=1e-3), case
            assert found["flops"][1] < 0.7 * found["flops"][0], case  # the work was divided
            told.setdefault(case.partition(":")[0], set()).update(line.split()[-1] for line in one)
    assert {"every_n", "first_block", "teacache", "taylorseer", "fastcache"} <= set(told)
    assert all(len(decisions) > 1 for decisions in told.values()), told
    evidence = [[found.get("evidence", [0, 0])[1] for found in answer.values()] for answer in answers]
    assert evidence[0] == evidence[1]  # to the last bit: else a threshold can fall between the ranks


@ranks
def test_a_token_level_is_refused_on_every_rank(folder: Path) -> None:
    refused = [{case: found["refused"] for case, found in a.items() if "refused" in found} for a in agreed(folder)]
    assert refused[0] == refused[1]
    assert {case.split()[0] for case in refused[0]} == {"every_n:n=3+adacorrection:tokens=0.25"}
    assert all(text.startswith("AttachError: A policy with a token level") for text in refused[0].values())


@ranks
def test_no_rank_is_calibrated_on_its_part_of_the_tokens(folder: Path) -> None:
    for text in written(folder, "calibrate"):
        assert text.startswith("CalibrationError: calibrate() was given a model under context parallelism")


@ranks
def test_ranks_that_see_different_changes_do_not_wait_for_each_other(folder: Path) -> None:
    texts = written(folder, "uneven")
    lines = [text.splitlines() for text in texts]
    facts = [json.loads(each[0]) for each in lines]
    for fact in facts:
        assert fact["changes"][0] > fact["threshold"] > fact["changes"][1]
        assert len(fact["decisions"]) == 4
    assert facts[0]["decisions"] == facts[1]["decisions"]
    # diffusers 0.42: each rank decides by its own shard. If this fails, it has learned to vote: drop this half.
    computed = ["step 1" in each and "computes" in each[each.index("step 1") :] for each in lines]
    assert computed == [True, False], texts
    assert not any("finished" in each for each in lines), texts
    assert any("Timeout" in text for text in texts), texts


def test_one_device_votes_alone() -> None:
    assert not torch.distributed.is_initialized()
    flux = FluxTransformer2DModel(
        num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2, axes_dims_rope=(2, 2, 4)
    )
    assert reducer(flux) is alone
    tensor_parallel = TinyDiT()
    tensor_parallel._parallel_config = SimpleNamespace(context_parallel_config=None)
    assert reducer(tensor_parallel) is alone
    plain = TinyDiT()
    assert reducer(plain) is alone
    with tenuto.attach(plain, tenuto.FirstBlock(threshold=0.5)) as run:
        denoise(plain)
    assert run.telemetry.reuse_ratio > 0
