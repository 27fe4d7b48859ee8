"""Pages on a Valkey or Redis server, shared by every process that reaches it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from tenuto.errors import InputError, StoreError, redact
from tenuto.tiers import record
from tenuto.tiers.forked import renewed_in_child
from tenuto.tiers.tier import Tier

__all__ = ["RemoteTier"]

PREFIX = "tenuto:"


class RemoteTier(Tier):
    """What the server keeps under ``tenuto:<key>``; how much that may be and what goes first is the server's setting.

    A server that is dead, slow or talks nonsense is a miss in ``get`` and an error in ``put``, and is left alone for
    ``pause`` seconds after that. One that refuses, being full, is an error in ``put`` and goes on serving. A value
    carries its key and checksums, so what comes back is the page or nothing. No call takes longer than ``timeout``.

    Args:
        url: ``redis://[user:password@]host:port/db``, ``rediss://`` for TLS (with redis-py's options, such as
            ``?ssl_ca_certs=FILE``), ``unix://PATH``.
        timeout: seconds for one call, connecting and all pages of a ``get_many`` included.
        connections: calls in flight at once. pause: seconds without asking, after a fault.

    Raises:
        InputError: redis-py is not installed, or the address or a number is not usable. Nothing is connected yet.
    """

    def __init__(self, url: str, *, timeout: float = 1.0, connections: int = 8, pause: float = 5.0) -> None:
        if timeout <= 0 or connections < 1 or pause < 0:
            raise InputError("A remote tier needs timeout > 0, connections >= 1 and pause >= 0.")
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError as error:
            raise InputError("A remote tier needs redis-py. Install it: pip install 'tenuto[tiers]'.") from error
        try:
            self._refusal: type[Exception] = redis.ResponseError
            self._client: Any = redis.Redis.from_url(
                url,
                socket_timeout=timeout,
                socket_connect_timeout=timeout,
                max_connections=connections,
                retry=Retry(NoBackoff(), 0),
            )
            pool = self._client.connection_pool
            pool.connection_class(**pool.connection_kwargs)  # options it does not know; nothing is connected
            place = redact(url).partition("://")[2].rpartition("@")[2].partition("?")[0]
            self.name = place if place.startswith("/") else place.partition("/")[0]
        except (ValueError, TypeError) as error:
            why = " (an option that redis-py does not know)" if isinstance(error, TypeError) else ""
            raise InputError(f"The address of a remote tier is not usable{why}. Give redis://HOST:PORT/0.") from None
        self.timeout, self.pause = timeout, pause
        self._connections, self._rest_until = connections, -1.0
        self.after_fork()
        renewed_in_child(self)

    def after_fork(self) -> None:
        """New threads; redis-py connects anew by itself."""
        self._threads = ThreadPoolExecutor(self._connections, thread_name_prefix="tenuto-remote")

    def put(self, key: str, data: bytes) -> None:
        packed = record.pack(key, data)
        self._ask(lambda client: client.set(PREFIX + key, packed))

    def get(self, key: str) -> bytes | None:
        return self.get_many([key])[0]

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        nothing: list[bytes | None] = [None] * len(keys)
        if not keys:
            return nothing
        try:
            values = self._ask(lambda client: client.mget([PREFIX + key for key in keys]))
        except StoreError as error:
            self._warn_once(f"{error} Its pages count as missing.")
            return nothing
        if not isinstance(values, list) or len(values) != len(keys):
            self._warn_once(f"{self.name} does not answer as Valkey or Redis. Its pages count as missing.")
            return nothing
        return [self._page(key, value) for key, value in zip(keys, values, strict=True)]

    def contains(self, key: str) -> bool:
        try:
            return self._ask(lambda client: client.exists(PREFIX + key)) == 1
        except StoreError as error:
            self._warn_once(f"{error} Its pages count as missing.")
            return False

    def discard(self, key: str) -> None:
        self._ask(lambda client: client.delete(PREFIX + key))

    def keys(self) -> list[str]:
        """As :meth:`Tier.keys`, in pieces, each within the timeout."""
        found: dict[str, None] = {}
        cursor = 0
        while True:
            answer: Any = self._ask(partial(_scan, cursor))
            try:
                cursor, names = answer
                found |= dict.fromkeys(name.decode("utf-8").removeprefix(PREFIX) for name in names)
            except (TypeError, ValueError, AttributeError) as error:
                raise StoreError(f"{self.name} does not answer as Valkey or Redis. Check the address.") from error
            if cursor == 0:
                return list(found)

    def bytes_used(self) -> int:
        """Memory of the whole server, other people's keys included: what is ours alone it cannot say cheaply."""
        facts = self._ask(lambda client: client.info("memory"))
        if not isinstance(facts, dict) or type(used := facts.get("used_memory")) is not int:
            raise StoreError(f"{self.name} does not say how much memory it uses. Ask its operator.")
        return used

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.connection_pool.disconnect(inuse_connections=True)

    def _page(self, key: str, value: object) -> bytes | None:
        if value is None:
            return None
        data = record.unpack(key, value) if isinstance(value, bytes) else None
        if data is None:
            self._warn_once(f"{self.name} gave damaged data for a page, which counts as missing.")
        return data

    def _ask(self, call: Callable[[Any], object]) -> object:
        """The server's answer. A thread of its own makes the call, as a socket's timeout is per packet, not in all."""
        if time.monotonic() < self._rest_until:
            raise StoreError(
                f"{self.name} failed less than {self.pause:g} s ago and is not asked yet. Check the server."
            )
        answer = self._threads.submit(call, self._client)
        try:
            error = answer.exception(self.timeout)
        except TimeoutError:
            answer.cancel()
            error = TimeoutError(f"no answer in {self.timeout:g} s")
        if isinstance(error, self._refusal):
            raise StoreError(
                f"{self.name} refused: {redact(str(error))}. Change its settings or those of its user."
            ) from error
        if error is not None:
            self._rest_until = time.monotonic() + self.pause
            self._client.connection_pool.disconnect(inuse_connections=True)  # also ends a call that still waits
            raise StoreError(
                f"{self.name} cannot be used ({redact(str(error))}). Check the server, the address and the password."
            ) from error
        return answer.result()


def _scan(cursor: int, client: Any) -> object:
    found: object = client.scan(cursor, match=f"{PREFIX}*", count=1000)
    return found
