"""What a rank does in the tests of several processes: ``python ranks.py TASK FOLDER``, under torchrun's variables.

Every rank writes what it found to ``FOLDER/RANK.json``.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
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


class Told:
    """What was said to a rank, by name, and how long the slowest answer took."""

    def __init__(self) -> None:
        self.said: dict[str, Any] = {"slowest": 0.0}

    def by(self, name: str, act: Any) -> None:
        from tenuto.errors import AttachError

        began = time.monotonic()
        try:
            act()
        except AttachError as error:
            self.said[name] = str(error)
        else:
            self.said[name] = "nothing"
        self.said["slowest"] = max(self.said["slowest"], time.monotonic() - began)


def disagree(ranks: int, rank: int) -> dict[str, Any]:
    """What one rank of two attaches with otherwise: both must name it, at once."""
    import torch
    from test_sharded import mild

    from tenuto.shards import RoundRobin, open_mesh, shard

    mesh, told = open_mesh(ranks), Told()

    def attach(model: Any, **given: Any) -> None:
        with shard(model, RoundRobin(page=4), mesh=mesh, **given):
            pass

    plain, rope, trained, sharper = (mild("llama") for _ in range(4))
    if rank:
        rope.model.rotary_emb.inv_freq.mul_(0.5)
    with torch.no_grad():
        trained.model.layers[1].mlp.up_proj.weight[3, 2] += rank  # no value that a fingerprint samples
    sharper.config.rope_parameters = {**sharper.config.rope_parameters, "rope_theta": 1e4 + rank}
    for name, model in (("rope", rope), ("trained", trained), ("configuration", sharper)):
        told.by(name, lambda model=model: attach(model))
    told.by("recent", lambda: attach(plain, codec="int8", recent=8 + rank))
    told.by("measure", lambda: attach(plain, measure=not rank))
    _disagree_in_calls(plain, mesh, rank, told)
    return told.said


def _disagree_in_calls(plain: Any, mesh: Any, rank: int, told: Told) -> None:
    """What one rank of two is given otherwise in a call; afterwards both go on."""
    import torch

    from tenuto.shards import RoundRobin, shard
    from tenuto.testing.kv import follow, tokens

    ids, steps, seen = tokens(9), tokens(4, 1), torch.ones(1, 9, dtype=torch.int64)
    wanted, hidden = follow(plain, None, ids, steps[:, :0]), seen.clone()
    hidden[0, 0] = 1 - rank
    with shard(plain, RoundRobin(page=4), mesh=mesh) as run:
        told.by("tokens", lambda: plain(tokens(9, rank)))
        told.by("embeddings", lambda: plain(inputs_embeds=plain.get_input_embeddings()(tokens(9, rank))))
        told.by("masks", lambda: plain(ids, attention_mask=hidden))
        told.by("positions", lambda: plain(ids, position_ids=torch.arange(9)[None] * (1 + rank)))
        told.by("training", lambda: plain.train(bool(rank))(ids))
        plain.eval()
        torch.manual_seed(rank)
        sampled = {"do_sample": True, "max_new_tokens": 12, "temperature": 3.0}
        told.by("seed", lambda: plain.generate(ids, attention_mask=seen, **sampled))
        caches = [run.cache(), run.cache()]
        for number, cache in enumerate(caches):
            plain(tokens(9, number), past_key_values=cache)
        told.by("caches", lambda: plain(steps[:, :1], past_key_values=caches[rank]))
        got = follow(plain, run.cache(), ids, steps[:, :0])
        kept = [plain(steps[:, :1], past_key_values=cache).logits for cache in caches]
        with torch.no_grad():
            plain.model.norm.weight[1] += rank
        told.by("changed", lambda: plain(ids))
    gaps = [float((a - b).detach().abs().max()) for a, b in ((got, wanted), kept)]
    told.said |= dict(zip(("gap", "apart"), gaps, strict=True))


if __name__ == "__main__":
    warnings.simplefilter("error")
    sys.path[:0] = [str(HERE), str(HERE.parent / "kv")]
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    result = {"compare": compare, "refuse": refuse, "write_on": write_on, "disagree": disagree}[sys.argv[1]](
        ranks, rank
    )
    (Path(sys.argv[2]) / f"{rank}.json").write_text(json.dumps(result))
    sys.stderr.flush()
    os._exit(0)  # a process group with a dead rank waits at exit
