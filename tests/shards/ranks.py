"""What a rank does in the tests of several processes: ``python ranks.py TASK FOLDER``, under torchrun's variables.

Every rank writes what it found to ``FOLDER/RANK.json``.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PATIENCE = 15.0  # seconds that a rank waits for one that is gone; beside other work one is slow, not gone


def launch(ranks: int, task: str, folder: Path) -> list[subprocess.Popen[bytes]]:
    """Start the ranks, as torchrun would, on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "ranks.py"), task, str(folder)]
    return [
        subprocess.Popen(command, env={**os.environ, **given, "RANK": str(rank)}, stderr=subprocess.PIPE)
        for rank in range(ranks)
    ]


def found(processes: list[subprocess.Popen[bytes]], folder: Path, timeout: float = 900) -> list[dict[str, Any]]:
    """What all ranks wrote; raises where one failed."""
    try:
        for process in processes:
            _, said = process.communicate(timeout=timeout)
            if process.returncode:
                raise RuntimeError(said.decode()[-2000:])
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(len(processes))]


def compare(ranks: int, rank: int) -> dict[str, Any]:
    """Against DynamicCache: MoE architectures, placements, both layouts, a second turn; books and bytes."""
    import torch
    from test_sharded import MOE, mild, padded, written
    from transformers import DynamicCache

    from tenuto.shards import Expert, RoundRobin, Schedule, Summary, open_mesh, shard
    from tenuto.testing.kv import follow, tokens

    mesh, out = open_mesh(ranks), {}
    for name in MOE:
        model = mild(name)
        said, logits = written(model, padded(), 16)
        for placement in (RoundRobin(page=4), Expert(page=4)):
            with shard(model, placement, mesh=mesh) as run:
                ids, got = written(model, padded(), 16)
                facts = run.summary()
            gap = float((got - logits).abs().max())
            out[f"{name} {type(placement).__name__}"] = {"same": torch.equal(ids, said), "gap": gap, **facts}
    model = mild("olmoe")
    prompt, turn, steps = tokens(50, rows=2), tokens(40, 2, rows=2), tokens(5, 1, rows=2)
    plain = DynamicCache(config=model.config)
    wanted = [follow(model, plain, prompt, steps), follow(model, plain, turn, steps)]
    with shard(model, RoundRobin(page=4), mesh=mesh, shards=2 * ranks) as run:
        cache = run.cache()
        got = [follow(model, cache, prompt, steps), follow(model, cache, turn, steps)]
        traffic = run.plan.exchange.traffic
        moved = {"moved": traffic.moved_bytes, "partial": traffic.prefill_bytes}
        follow(model, cache, turn[:, :2], steps[:, :0])
        moved["short"] = traffic.prefill_bytes - moved["partial"]
        moved["short_moved"] = traffic.moved_bytes - moved["moved"]
    gap = max(float((a - b).abs().max()) for a, b in zip(got, wanted, strict=True))
    out["turns"] = {"gap": gap, **moved}
    mine = tokens(30, 10 + rank, rows=2)
    with shard(model, Expert(page=4), mesh=mesh, layout="data_parallel") as run:
        got = follow(model, run.cache(), mine, steps)
        facts = run.summary()
    gap = float((got - follow(model, DynamicCache(config=model.config), mine, steps)).abs().max())
    out["data_parallel"] = {"gap": gap, **facts}
    few = Summary(keep=0.3, sinks=2, window=4)
    with shard(model, RoundRobin(page=4), shards=ranks, selector=few) as run:
        alone, books = follow(model, run.cache(), prompt, steps), run.summary()
    with shard(model, RoundRobin(page=4), mesh=mesh, selector=few) as run:
        got, facts = follow(model, run.cache(), prompt, steps), run.summary()
    out["selected"] = {"gap": float((got - alone).abs().max()), "alone": books["dropped_mass"], **facts}
    gone = Schedule(resident=0.4, utility="h2o", slack=0, lossy=True)
    lossy: dict[str, Any] = {"selector": few, "schedule": gone, "codec": "int8", "recent": 16}
    long = tokens(120, rows=2)
    with shard(model, RoundRobin(page=4), shards=ranks, **lossy) as run:
        alone, books = follow(model, run.cache(), long, steps), run.summary()
    with shard(model, RoundRobin(page=4), mesh=mesh, **lossy) as run:
        got, facts = follow(model, run.cache(), long, steps), run.summary()
    held = {"alone": books["bytes_held"], "alone_deleted": books["tokens_deleted"]}
    out["lossy"] = {"gap": float((got - alone).abs().max()), **held, **facts}
    return out


def refuse(ranks: int, rank: int) -> dict[str, Any]:
    """What must be refused by name."""
    import torch
    from test_sharded import mild

    from tenuto.errors import TenutoError
    from tenuto.shards import Expert, RoundRobin, open_mesh, shard
    from tenuto.testing.kv import tokens

    def said(act: Any) -> str:
        try:
            act()
        except TenutoError as error:
            return f"{type(error).__name__}: {error}"
        return "nothing"

    def attach(*given: Any, **options: Any) -> None:
        with shard(*given, **options) as run:
            run.model(tokens(4))

    model, mesh = mild("olmoe"), open_mesh(ranks)
    out = {"world": said(lambda: open_mesh(ranks + 1))}
    out["shards"] = said(lambda: attach(model, RoundRobin(), mesh=mesh, shards=ranks + 1))
    out["placements"] = said(lambda: attach(model, (RoundRobin(), Expert())[rank % 2], mesh=mesh))
    other = mild("mixtral") if rank else model
    out["models"] = said(lambda: attach(other, RoundRobin(), mesh=mesh))

    def uneven() -> None:
        with shard(model, RoundRobin(), mesh=mesh):
            model(tokens(4 + rank))

    def reorder() -> None:
        with shard(model, RoundRobin(), mesh=mesh, layout="data_parallel") as run:
            model(tokens(4), past_key_values=(cache := run.cache()))
            cache.reorder_cache(torch.tensor([0]))

    out["lengths"] = said(uneven)
    out["beams"] = said(reorder)
    with torch.no_grad():
        attach(model, RoundRobin(), mesh=mesh)
    return out


def write_on(ranks: int, rank: int) -> dict[str, Any]:
    """Decode until a rank is gone; the test ends one when all say that they have begun."""
    from test_sharded import mild

    from tenuto.errors import StoreError
    from tenuto.shards import RoundRobin, open_mesh, shard
    from tenuto.testing.kv import tokens

    model, mesh = mild("olmoe"), open_mesh(ranks)
    with shard(model, RoundRobin(page=4), mesh=mesh) as run:
        cache = run.cache()
        model(tokens(20), past_key_values=cache)
        run.plan.exchange.timeout = PATIENCE
        (Path(sys.argv[2]) / f"{rank}.begun").touch()
        try:
            while True:
                model(tokens(1), past_key_values=cache)
        except StoreError as error:
            return {"said": str(error), "broken": cache.broken}


if __name__ == "__main__":
    warnings.simplefilter("error")
    sys.path[:0] = [str(HERE), str(HERE.parent / "kv")]
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    result = {"compare": compare, "refuse": refuse, "write_on": write_on}[sys.argv[1]](ranks, rank)
    (Path(sys.argv[2]) / f"{rank}.json").write_text(json.dumps(result))
    sys.stderr.flush()
    os._exit(0)  # a process group with a dead rank waits at exit
