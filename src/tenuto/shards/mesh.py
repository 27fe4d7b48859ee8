"""Exchange between processes: ``torch.distributed`` over a one-dimensional ``DeviceMesh``.

``Replicated``: every rank runs the model on the same rows, so every rank has the queries; one all-gather of
``(o, lse)`` per layer. ``DataParallel``: every rank runs the model on rows of its own, whose entries lie on all ranks;
queries and new tokens are gathered, and an all-to-all brings ``(o, lse)`` back to the row's rank. Neither moves keys
and values that are held while decoding.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from tenuto.errors import AttachError, StoreError
from tenuto.shards.agreement import disagreement
from tenuto.shards.exchange import Exchange

__all__ = ["DataParallel", "Replicated", "open_mesh"]

PATIENCE = 60.0
"""Seconds to wait for a rank: one that is slow beside other work is not gone."""


def open_mesh(ranks: int, device: str = "cpu") -> DeviceMesh:
    """A mesh over all processes that ``torchrun`` started.

    Raises:
        AttachError: it started another number, or this process was not started by it.
    """
    try:
        if not dist.is_initialized():
            dist.init_process_group("gloo" if device == "cpu" else "nccl", timeout=timedelta(seconds=PATIENCE))
    except ValueError as error:
        raise AttachError(
            f"There is no process group ({error}). Start with: torchrun --nproc-per-node {ranks}."
        ) from error
    if dist.get_world_size() != ranks:
        raise AttachError(
            f"The mesh is for {ranks} ranks and {dist.get_world_size()} were started. "
            f"Start with: torchrun --nproc-per-node {ranks}."
        )
    return init_device_mesh(device, (ranks,), mesh_dim_names=("kv",))


class _Meshed(Exchange):
    """What both have in common. A rank that is gone is noticed after ``timeout`` seconds at most."""

    def __init__(self, mesh: DeviceMesh, timeout: float = PATIENCE) -> None:
        super().__init__()
        if mesh.ndim != 1:
            raise AttachError(f"The mesh has {mesh.ndim} dimensions. Give one dimension of it: mesh['kv'].")
        if mesh.get_coordinate() is None:
            raise AttachError(f"This process is not one of the {mesh.size()} ranks of the mesh. Attach on those only.")
        self.turn = threading.Lock()  # messages of two calls would meet those of others
        self.group, self.timeout, self._device = mesh.get_group(), timeout, mesh.device_type
        self.rank, self.ranks = mesh.get_local_rank(), mesh.size()

    def _finish(self, start: Callable[[], Any]) -> None:
        try:
            started = start()
            for work in started if isinstance(started, list) else [started]:
                work.wait(timedelta(seconds=self.timeout))
        except RuntimeError as error:
            reason = str(error).splitlines()[0][:160]
            raise StoreError(
                f"A rank of the mesh does not answer (rank {self.rank} of {self.ranks} waited, {self.timeout:g} s at "
                f"most): {reason}. It has ended, or made fewer calls. This generation is lost; start all ranks again."
            ) from error

    def _gather(self, mine: torch.Tensor) -> torch.Tensor:
        """``[ranks, ...]``."""
        mine = mine.contiguous()
        found = mine.new_empty(self.ranks, *mine.shape)
        self._finish(lambda: dist.all_gather(list(found), mine, group=self.group, async_op=True))
        return found

    def _numbers(self, mine: Sequence[int]) -> torch.Tensor:
        """``[ranks, numbers]`` int64, on the CPU."""
        return self._gather(torch.tensor(mine, device=self._device)).cpu()

    def agree(self, facts: dict[str, str]) -> None:
        data = torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8)
        sizes = self._numbers([len(data)])[:, 0].tolist()
        said = data.new_zeros(max(sizes))
        said[: len(data)] = data
        rows = self._gather(said.to(self._device)).cpu()
        texts = [json.loads(bytes(row[:size].tolist())) for row, size in zip(rows, sizes, strict=True)]
        if differs := disagreement(self.rank, texts):
            raise AttachError(differs)

    def begin(self, valid: torch.Tensor, facts: Mapping[str, int]) -> torch.Tensor:
        self.decoding = valid.shape[1] == 1
        said = self._numbers([*valid.shape, *facts.values()])
        if not bool((said[:, :2] == said[:, :2][0]).all()):
            raise AttachError(
                f"Ranks were given calls of different shapes, [rows, tokens] = {said[:, :2].tolist()}. "
                "All ranks must step together: pad prompts to one length, and write the same number of tokens."
            )
        for name, values in zip(facts, said.T[2:].tolist(), strict=True):
            if len(set(values)) > 1:
                other = next(rank for rank, value in enumerate(values) if value != values[self.rank])
                raise AttachError(
                    f"Ranks differ in {name}: rank {self.rank} and rank {other} were not given the same. Give all "
                    "ranks the same prompts, masks, settings and, when sampling, the same seed."
                )
        return valid

    def visit(self, mine: torch.Tensor, sizes: Sequence[int]) -> Iterator[tuple[int, torch.Tensor]]:
        yield self.rank, mine
        held, owner = mine, self.rank
        to, source = (dist.get_global_rank(self.group, (self.rank + way) % self.ranks) for way in (1, -1))
        for _ in range(self.ranks - 1):
            coming = (owner - 1) % self.ranks
            buffer = mine.new_empty(sizes[coming])
            ops = [dist.P2POp(dist.isend, held, to, self.group)] if sizes[owner] else []
            ops += [dist.P2POp(dist.irecv, buffer, source, self.group)] if sizes[coming] else []
            if ops:
                self._finish(lambda ops=ops: dist.batch_isend_irecv(ops))  # type: ignore[misc]
            self.traffic.moved_bytes += held.nbytes
            held, owner = buffer, coming
            yield owner, held


class Replicated(_Meshed):
    """Every rank has all rows."""

    def rows(self, mine: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return list(mine)

    def combine(self, packed: torch.Tensor) -> torch.Tensor:
        self.traffic.note(packed.nbytes, self.decoding)
        return self._gather(packed)


class DataParallel(_Meshed):
    """Every rank has rows of its own, as many as the others."""

    alike = False

    @property
    def others(self) -> int:
        return self.rank

    def begin(self, valid: torch.Tensor, facts: Mapping[str, int]) -> torch.Tensor:
        return self._gather(super().begin(valid, facts).to(torch.uint8)).flatten(0, 1).bool()

    def rows(self, mine: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        flat = torch.cat([x.contiguous().view(torch.uint8).flatten(1) for x in mine], 1)
        self.traffic.note(flat.nbytes, self.decoding)
        parts = self._gather(flat).flatten(0, 1).split([x[0].nbytes for x in mine], 1)
        return [p.contiguous().view(x.dtype).view(-1, *x.shape[1:]) for p, x in zip(parts, mine, strict=True)]

    def combine(self, packed: torch.Tensor) -> torch.Tensor:
        packed = packed.contiguous()
        self.traffic.note(packed.nbytes, self.decoding)
        found: torch.Tensor = torch.empty_like(packed)
        self._finish(lambda: dist.all_to_all_single(found.view(-1), packed.view(-1), group=self.group, async_op=True))
        return found.view(self.ranks, -1, *packed.shape[1:])
