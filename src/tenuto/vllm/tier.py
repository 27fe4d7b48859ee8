"""A secondary tier of vLLM's native offloading that keeps blocks in any of Tenuto's tiers.

vLLM asks, from its scheduler, whether a block is there (``lookup``), and has blocks copied between its host pool and
the tier (``submit_store``, ``submit_load``). All of that happens in threads here; the scheduler only collects results.
Whatever cannot be given back as it was stored, is missing or comes too late, is reported as not loaded: vLLM then
computes the block, which is what it would have done without a tier.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from vllm.v1.kv_offload.base import (
    Locality,
    LookupResult,
    Medium,
    OffloadKey,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
)
from vllm.v1.kv_offload.tiering.async_lookup import AsyncLookupManager
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager, TransferJob

from tenuto.errors import InputError, StoreError, TenutoError
from tenuto.tiers.address import open_tier
from tenuto.tiers.tier import Tier
from tenuto.vllm.block import seal, unseal
from tenuto.vllm.codec import block_codec
from tenuto.vllm.facts import facts_of
from tenuto.vllm.naming import Names
from tenuto.vllm.plugin import check_version

__all__ = ["TenutoTier"]

AT_ONCE = 4  # blocks in one call of a tier


@dataclass(slots=True)
class _Job:
    """A transfer under way: its keys, what each of its parts has done so far, and since when it runs."""

    keys: list[OffloadKey]
    load: bool
    parts: list[Future[list[OffloadKey]]]
    since: float


class _Lookup(AsyncLookupManager):
    """Asks the tier in a thread of vLLM's."""

    def __init__(self, tier: Tier, name: Callable[[bytes], str | None], tier_type: str) -> None:
        self._tier, self._name = tier, name
        super().__init__(tier_type=tier_type)

    def batch_lookup(self, keys: list[OffloadKey], req_context: ReqContext) -> Iterable[bool]:
        return [(name := self._name(key)) is not None and self._tier.contains(name) for key in keys]


class TenutoTier(SecondaryTierManager):
    """Blocks in one of Tenuto's tiers, or in several, fastest first.

    Args:
        offloading_spec, primary_kv_view, tier_type, backpressure_detector: what vLLM gives.
        address: where blocks are kept, such as ``disk:PATH?max=10GiB`` or ``redis://HOST:PORT/0``; or several.
        codec: ``raw``, ``zstd`` (both give back every bit) or ``int8``.
        salt: who may read the blocks. Engines with other settings that change the values of the cache, and that
            vLLM does not tell a tier of (``quantization``, ``hf_overrides``, another adapter of the same name), need
            another salt too.
        revision: of the model, where its weights cannot be looked at in a local folder.
        threads: transfers at once in each direction, of 4 blocks each.

    Raises:
        InputError: another vLLM, or an option that cannot be used.
    """

    medium: ClassVar[Medium | None] = Medium.STORAGE
    _warned = False

    def __init__(
        self,
        offloading_spec: Any,
        primary_kv_view: memoryview,
        tier_type: str,
        address: str | Sequence[str],
        codec: str = "raw",
        salt: str = "",
        revision: str = "",
        threads: int = 4,
        backpressure_detector: Any = None,
    ) -> None:
        check_version()
        if threads < 1:
            raise InputError(f"A tier with {threads} threads was asked for. Give at least 1.")
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        config = offloading_spec.config
        self._codec = block_codec(codec, config.model.dtype)
        self._names = Names(facts_of(config, codec=self._codec.name, salt=salt, revision=revision))
        self._rows: NDArray[np.uint8] | None = np.asarray(primary_kv_view).view(np.uint8)
        self._tier = open_tier(address if isinstance(address, str) else ",".join(address))
        self.locality = Locality.LOCAL if str(address).startswith("disk:") else Locality.REMOTE
        self._jobs: dict[int, _Job] = {}
        self._loads = ThreadPoolExecutor(threads, thread_name_prefix="tenuto-load")  # never wait behind stores
        self._stores = ThreadPoolExecutor(threads, thread_name_prefix="tenuto-store")
        self._lookup = _Lookup(self._tier, self._names.name, tier_type)

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        return RequestOffloadingContext()

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        found = self._lookup.lookup(key, req_context)
        if found is None:
            return LookupResult.RETRY
        return LookupResult.HIT if found else LookupResult.MISS

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        self._lookup.flush()

    def on_request_finished(self, req_context: ReqContext) -> None:
        self._lookup.cleanup(req_context.req_id)

    def submit_store(self, job_metadata: TransferJob) -> None:
        self._submit(job_metadata, self._store, load=False)

    def submit_load(self, job_metadata: TransferJob) -> None:
        self._submit(job_metadata, self._load, load=True)

    def get_finished_jobs(self) -> Iterable[JobResult]:
        finished = [number for number, job in self._jobs.items() if all(part.done() for part in job.parts)]
        return [self._result(number, self._jobs.pop(number)) for number in finished]

    def drain_jobs(self) -> None:
        wait([part for job in self._jobs.values() for part in job.parts])

    def shutdown(self) -> None:
        self._lookup.shutdown()
        for pool in (self._loads, self._stores):
            pool.shutdown(wait=True, cancel_futures=True)
        self._tier.close()
        self._rows = None  # else the host pool cannot be unmapped
        self._jobs.clear()

    def _submit(
        self, told: TransferJob, work: Callable[[list[tuple[OffloadKey, int]]], list[OffloadKey]], *, load: bool
    ) -> None:
        pairs = [(key, int(slot)) for key, slot in zip(told.keys, told.chunk_ids, strict=True)]
        pool = self._loads if load else self._stores
        parts = [pool.submit(work, pairs[i : i + AT_ONCE]) for i in range(0, len(pairs), AT_ONCE)]
        self._jobs[told.job_id] = _Job([key for key, _ in pairs], load, parts, time.monotonic())

    def _result(self, number: int, job: _Job) -> JobResult:
        done: list[OffloadKey] = []
        for part in job.parts:
            if part.cancelled():
                continue
            if (error := part.exception()) is not None:
                self._warn_once(f"A part of a transfer failed and counts as not done: {error!r}.")
                continue
            done += part.result()
        missed = set(job.keys).difference(done)
        if job.load and missed:
            self._lookup.mark_miss(missed)
        return JobResult(
            job_id=number,
            success=not missed,
            successful_keys=tuple(done) or None,
            transfer_time=time.monotonic() - job.since,
            transfer_bytes=len(done) * self.block_size_bytes,
        )

    def _store(self, pairs: list[tuple[OffloadKey, int]]) -> list[OffloadKey]:
        """Put blocks that are not there; the keys of those that are there now."""
        there: list[OffloadKey] = []
        for key, slot in pairs:
            if (name := self._names.name(key)) is None:
                continue
            try:
                if not self._tier.contains(name):
                    row = self._row(slot)
                    payload = self._codec.encode(row)
                    self._tier.put(name, seal(payload, name=name, codec=self._codec.name, size=row.size))
                there.append(key)
            except StoreError as error:
                self._warn_once(f"A block was not stored. {error}")
        return there

    def _load(self, pairs: list[tuple[OffloadKey, int]]) -> list[OffloadKey]:
        """Fill slots with blocks; the keys of those that were there and whole."""
        named = [(key, slot, name) for key, slot in pairs if (name := self._names.name(key)) is not None]
        pages = self._tier.get_many([name for _, _, name in named])
        return [key for (key, slot, name), data in zip(named, pages, strict=True) if self._fill(slot, name, data)]

    def _fill(self, slot: int, name: str, data: bytes | None) -> bool:
        row = self._row(slot)
        try:
            if data is not None:
                self._codec.decode(unseal(data, name=name, codec=self._codec.name, size=row.size), row)
                return True
        except StoreError as error:
            self._warn_once(f"{error} It counts as missing.")
        with suppress(TenutoError):  # so that what is computed now is stored again
            self._tier.discard(name)
        return False

    def _warn_once(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(f"{message} Further faults of this tier are not reported.", RuntimeWarning, stacklevel=2)

    def _row(self, slot: int) -> NDArray[np.uint8]:
        if self._rows is None:
            raise StoreError("The tier was shut down.")
        row: NDArray[np.uint8] = self._rows[slot]
        return row
