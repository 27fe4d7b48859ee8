"""S3FIFO: which block leaves vLLM's host pool, by three queues instead of one list of uses.

Yang, Zhang, Qiu, Yue and Rashmi, "FIFO queues are all you need for cache eviction", SOSP 2023, algorithm 1:
https://doi.org/10.1145/3600006.3613147

Most prompts are never seen again. A new block waits in a *small* queue, a tenth of the pool; only if it is used more
than once there does it get into the *main* queue, else it is gone soon and just its name is kept as a *ghost*. A block
whose ghost is still there goes straight into the main queue. There, a block that was used since its last turn gets
another one.

What differs from the paper: a block that is being read, or that the caller protects, goes to the end of its queue
instead of out; and the blocks a request has stored are put in the order last to first when it ends, since the end of a
prefix is worth nothing without its beginning.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from vllm.v1.kv_offload.base import OffloadKey, ReqContext
from vllm.v1.kv_offload.cpu.policies.base import CachePolicy, ChunkStatus, order_request_keys

__all__ = ["S3FIFO"]

SMALL = 0.1  # of the pool
MOST_USES = 3
Queue = OrderedDict[OffloadKey, ChunkStatus]


class S3FIFO(CachePolicy):
    """See :mod:`tenuto.vllm.policy`. ``cache_capacity``: blocks in the pool."""

    def __init__(self, cache_capacity: int) -> None:
        super().__init__(cache_capacity)
        self._small: Queue = OrderedDict()
        self._main: Queue = OrderedDict()
        self._ghosts: OrderedDict[OffloadKey, None] = OrderedDict()
        self._uses: dict[OffloadKey, int] = {}
        self._small_target = max(1, int(SMALL * cache_capacity))

    def get(self, key: OffloadKey) -> ChunkStatus | None:
        return self._small.get(key) or self._main.get(key)

    def insert(self, key: OffloadKey, chunk: ChunkStatus) -> None:
        remembered = key in self._ghosts
        self._ghosts.pop(key, None)
        (self._main if remembered else self._small)[key] = chunk
        self._uses[key] = 0

    def remove(self, key: OffloadKey) -> None:
        self._small.pop(key, None)
        self._main.pop(key, None)
        self._uses.pop(key, None)

    def touch(self, keys: Iterable[OffloadKey], req_context: ReqContext) -> None:
        for key in keys:
            if key in self._uses:
                self._uses[key] = min(self._uses[key] + 1, MOST_USES)

    def on_request_finished(
        self,
        key_groups: Sequence[Sequence[OffloadKey]],
        insertion_only_keys: set[OffloadKey],
        reused_keys: set[OffloadKey],
        req_context: ReqContext,
    ) -> None:
        self.touch(reused_keys, req_context)
        for key in reversed(order_request_keys(key_groups, req_context)):
            if key in insertion_only_keys:
                for queue in (self._small, self._main):
                    if key in queue:
                        queue.move_to_end(key)

    def evict(self, n: int, protected: set[OffloadKey]) -> list[tuple[OffloadKey, ChunkStatus]] | None:
        small, main = (
            sum(chunk.ref_cnt == 0 and key not in protected for key, chunk in queue.items())
            for queue in (self._small, self._main)
        )
        if small + main < n:
            return None
        gone: list[tuple[OffloadKey, ChunkStatus]] = []
        while len(gone) < n:
            from_small = small > 0 and (len(self._small) > self._small_target or main == 0)
            queue = self._small if from_small else self._main
            key, chunk = queue.popitem(last=False)
            if chunk.ref_cnt != 0 or key in protected:
                queue[key] = chunk
            elif from_small and self._uses[key] > 1:
                self._uses[key] = 0
                self._main[key] = chunk
                small, main = small - 1, main + 1
            elif not from_small and self._uses[key] > 0:
                self._uses[key] -= 1
                queue[key] = chunk
            else:
                gone.append((key, chunk))
                del self._uses[key]
                if from_small:
                    self._remember(key)
                    small -= 1
                else:
                    main -= 1
        return gone

    def clear(self) -> None:
        for held in (self._small, self._main, self._ghosts, self._uses):
            held.clear()

    def _remember(self, key: OffloadKey) -> None:
        self._ghosts[key] = None
        while len(self._ghosts) > self.cache_capacity - self._small_target:
            self._ghosts.popitem(last=False)
