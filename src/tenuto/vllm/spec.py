"""vLLM's tiered offloading, also where the device is a CPU.

The stock spec refuses to run without a GPU, for want of a worker that copies between device and host pool. On a CPU
both are memory, and a plain copy is such a worker. On a GPU this spec is the stock one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from vllm.platforms import current_platform
from vllm.v1.kv_offload.base import CanonicalKVCaches, OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec

from tenuto.errors import InputError

__all__ = ["HostWorker", "TenutoTieringSpec"]


class TenutoTieringSpec(TieringOffloadingSpec):
    """See :mod:`tenuto.vllm.spec`.

    Raises:
        InputError: ``canonical_layout`` on a CPU.
    """

    _host_worker: HostWorker | None = None

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        if current_platform.device_type != "cpu":
            return super().get_worker(kv_caches)
        if self.config.canonical_layout:
            raise InputError("'canonical_layout' was asked for on a CPU, where it is not supported. Leave it out.")
        if self._host_worker is None:
            region = SharedOffloadRegion(
                engine_id=self.config.engine_id,
                num_chunks=self.num_chunks,
                rank=0 if self.replicated_layout else self.config.parallel.rank,
                kv_bytes_per_chunk=self.kv_bytes_per_chunk,
                cpu_page_size=self.cpu_page_size_per_worker,
            )
            self._host_worker = HostWorker(kv_caches, self.blocks_per_chunk, region)
        return self._host_worker


class HostWorker(OffloadingWorker):
    """Copies at once, so every job is finished when it is submitted.

    Args:
        kv_caches: the engine's, bytes ``[blocks, bytes]`` for each tensor; blocks_per_chunk: blocks in a unit of the
        pool; region: the pool.
    """

    def __init__(self, kv_caches: CanonicalKVCaches, blocks_per_chunk: int, region: SharedOffloadRegion) -> None:
        self._region, self._groups, self._width = region, kv_caches.group_data_refs, blocks_per_chunk
        self._device, self._host = [], []
        for cache in kv_caches.tensors:
            size = cache.page_size_bytes
            self._device.append(cache.tensor.view(torch.int8).view(-1, size).numpy())
            view = region.create_next_worker_view(size * blocks_per_chunk)
            self._host.append(view.unflatten(1, (blocks_per_chunk, size)).numpy())
        self._finished: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        for tensor, size, block, chunk, part in self._copies(src_spec, dst_spec):
            self._host[tensor][chunk, part, :size] = self._device[tensor][block, :size]
        return self._finish(job_id)

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        for tensor, size, block, chunk, part in self._copies(dst_spec, src_spec):
            self._device[tensor][block, :size] = self._host[tensor][chunk, part, :size]
        return self._finish(job_id)

    def get_finished(self) -> list[TransferResult]:
        finished, self._finished = self._finished, []
        return finished

    def wait(self, job_ids: set[int]) -> None:
        return

    def shutdown(self) -> None:
        self._device, self._host = [], []
        self._region.cleanup()

    def _finish(self, job_id: int) -> bool:
        self._finished.append(TransferResult(job_id=job_id, success=True))
        return True

    def _copies(self, device: Any, host: Any) -> Iterator[tuple[int, int, int, int, int]]:
        """Tensor, bytes, block of the device, unit of the pool and place in it; the groups' blocks follow each other,
        and the first block of a group may lie in the middle of its unit."""
        block = chunk = 0
        for refs, count, first in zip(self._groups, device.group_sizes, device.block_indices, strict=True):
            skipped = first % self._width
            for place in range(skipped, skipped + count):
                for ref in refs:
                    yield (
                        ref.tensor_idx,
                        ref.page_size_bytes,
                        int(device.block_ids[block + place - skipped]),
                        int(host.block_ids[chunk + place // self._width]),
                        place % self._width,
                    )
            block += count
            chunk += -(-(skipped + count) // self._width) if count else 0
