"""A sharded KV cache on several processes of this machine, against the model's own cache: bytes, speed, exactness.

Every rank is a process of its own (``python -m tenuto.eval.sharding``), joined over gloo, and generates from the same
prompts twice: with transformers' cache, and sharded.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tenuto.errors import InputError, StoreError, closest

__all__ = ["PLACEMENTS", "ShardingJob", "measure"]

PLACEMENTS = ("blocks", "expert", "key_cluster", "round_robin")
LIMIT = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardingJob:
    """What is measured.

    Attributes:
        model: a name or folder of a language model; ranks: processes.
        placement: one of ``PLACEMENTS``; page: tokens per page.
        context, tokens: of the prompts, and written; rows: prompts, the later ones padded on the left.
        experts, top_k: a dense model becomes a mixture of so many experts; 0: it stays as it is.
    """

    model: str
    ranks: int = 2
    placement: str = "round_robin"
    page: int = 16
    context: int = 256
    tokens: int = 32
    rows: int = 2
    experts: int = 0
    top_k: int = 8

    def __post_init__(self) -> None:
        if self.placement not in PLACEMENTS:
            raise InputError(f"There is no placement {self.placement!r}.{closest(self.placement, PLACEMENTS)}")


def measure(job: ShardingJob) -> list[dict[str, Any]]:
    """What every rank found, the first rank first.

    Raises:
        StoreError: a rank failed; the others are stopped.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(job.ranks)}
    with TemporaryDirectory(prefix="tenuto-ranks-") as place:
        folder = Path(place)
        command = [sys.executable, "-m", "tenuto.eval.sharding", json.dumps(asdict(job)), place]
        ranks = []
        for rank in range(job.ranks):
            with (folder / f"{rank}.log").open("wb") as log:
                ranks.append(subprocess.Popen(command, env={**os.environ, **given, "RANK": str(rank)}, stderr=log))
        try:
            _wait(ranks, folder)
        finally:
            for process in ranks:
                process.kill()
                process.wait()
        return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(job.ranks)]


def _wait(ranks: list[subprocess.Popen[bytes]], folder: Path) -> None:
    start = time.monotonic()
    while any(process.poll() is None for process in ranks) and time.monotonic() - start < LIMIT:
        if any(process.poll() for process in ranks):
            break
        time.sleep(0.1)
    for rank, process in enumerate(ranks):
        if process.poll() != 0:
            lines = (folder / f"{rank}.log").read_text(errors="replace").strip().splitlines()
            raise StoreError(f"Rank {rank} stopped: {lines[-1][:300] if lines else 'it did not finish in time'}")


def rank_main(job: ShardingJob) -> dict[str, Any]:
    """What one rank does, under torchrun's variables."""
    import torch

    from tenuto.eval.language import load_language
    from tenuto.eval.moe import partition
    from tenuto.eval.tasks.likelihood import text_of
    from tenuto.kv.placements import Blocks, Expert, KeyCluster, RoundRobin, open_mesh, shard

    made: dict[str, Callable[..., Any]] = dict(zip(PLACEMENTS, (Blocks, Expert, KeyCluster, RoundRobin), strict=True))
    mesh = open_mesh(job.ranks)
    language = load_language(job.model)
    model = language.model
    if job.experts:
        partition(model, text_of(language, 99, 256), job.experts, job.top_k)
    ids = torch.cat([text_of(language, seed, job.context) for seed in range(job.rows)])
    mask = torch.ones_like(ids)
    for row in range(job.rows):
        mask[row, : row * job.context // (2 * job.rows)] = 0

    def written() -> tuple[Any, float]:
        start = time.perf_counter()
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=job.tokens,
            min_new_tokens=job.tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        return out, job.rows * job.tokens / (time.perf_counter() - start)

    plain, speed = written()
    with shard(model, made[job.placement](page=job.page), mesh=mesh) as run:
        sharded, sharded_speed = written()
        facts = run.summary()
    gap = (torch.stack(plain.logits) - torch.stack(sharded.logits)).abs().max()
    same = torch.equal(plain.sequences, sharded.sequences)
    speeds = {"tokens_per_s_plain": speed, "tokens_per_s": sharded_speed}
    return {"rank": mesh.get_local_rank(), "logit_gap": float(gap), "same_tokens": same, **speeds, **facts}


if __name__ == "__main__":
    result = rank_main(ShardingJob(**json.loads(sys.argv[1])))
    (Path(sys.argv[2]) / f"{os.environ['RANK']}.json").write_text(json.dumps(result))
