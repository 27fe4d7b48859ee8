from __future__ import annotations

import uuid

import pytest
import torch

pytest.importorskip("vllm")

from vllm.v1.kv_offload.base import (
    CanonicalKVCacheRef,
    CanonicalKVCaches,
    CanonicalKVCacheTensor,
    GPULoadStoreSpec,
)
from vllm.v1.kv_offload.cpu.common import CPULoadStoreSpec
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion

from tenuto.vllm.spec import HostWorker

PAGE, USED, BLOCKS, CHUNKS = 2048, 2000, 20, 6


@pytest.mark.parametrize("width", [1, 2, 3])
def test_blocks_go_to_the_pool_and_back(width: int) -> None:
    """Two tensors, two groups; the second group begins in the middle of a unit of the pool."""
    tensors = [torch.randint(-128, 128, (BLOCKS, PAGE), dtype=torch.int8) for _ in range(2)]
    true = [tensor.clone() for tensor in tensors]
    caches = CanonicalKVCaches(
        [CanonicalKVCacheTensor(tensor, PAGE) for tensor in tensors],
        [[CanonicalKVCacheRef(0, PAGE)], [CanonicalKVCacheRef(1, USED)]],
    )
    size = 2 * PAGE * width
    region = SharedOffloadRegion(f"test-{uuid.uuid4()}", CHUNKS, 0, -(-size // 4096) * 4096, size)
    worker = HostWorker(caches, width, region)
    first = 1 % width
    units = [-(-3 // width), -(-(2 + first) // width)]
    pool = CPULoadStoreSpec([5, 3, 4, 1, 0][: sum(units)])

    there = GPULoadStoreSpec([7, 2, 9, 11, 4], [3, 2], [0, 1])
    assert worker.submit_store(1, there, pool)
    for tensor in tensors:
        tensor.zero_()
    back = GPULoadStoreSpec([0, 1, 2, 3, 4], [3, 2], [0, 1])
    assert worker.submit_load(2, pool, back)
    assert [result.job_id for result in worker.get_finished()] == [1, 2]
    assert worker.get_finished() == []
    assert torch.equal(tensors[0][:3], true[0][[7, 2, 9]])
    assert torch.equal(tensors[1][3:5, :USED], true[1][[11, 4], :USED])
    assert not tensors[0][3:].any()
    assert not tensors[1][3:5, USED:].any()
    worker.shutdown()
