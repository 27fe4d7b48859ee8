"""The remote tier over TLS: a real server behind a real encrypted connection, and one whose certificate is unknown."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme

from tenuto.errors import StoreError
from tenuto.tiers.address import open_tier

pytestmark = pytest.mark.processes


def _pump(source: socket.socket, to: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            to.sendall(data)
    for end in (source, to):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _pass_on(raw: socket.socket, context: ssl.SSLContext, server: str) -> None:
    plain = urlsplit(server)
    with raw, suppress(OSError):  # a client that does not trust us
        with context.wrap_socket(raw, server_side=True) as client:
            with socket.create_connection((plain.hostname or "", plain.port or 0)) as behind:
                back = threading.Thread(target=_pump, args=(behind, client))
                back.start()
                _pump(client, behind)
                back.join()


@pytest.fixture
def encrypted(server: str, tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A port that speaks TLS and passes everything on to the server, and the file of its authority."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    calls: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    calls.append(threading.Thread(target=_pass_on, args=(listener.accept()[0], context, server)))
                    calls[-1].start()

        calls.append(threading.Thread(target=serve))
        calls[0].start()
        yield listener.getsockname()[1], tmp_path / "ca.pem"
        listener.shutdown(socket.SHUT_RDWR)
        for call in calls:
            call.join(10)


def test_pages_travel_encrypted(encrypted: tuple[int, Path]) -> None:
    port, authority = encrypted
    for scheme in ("rediss", "valkeys"):
        with open_tier(f"{scheme}://127.0.0.1:{port}/0?ssl_ca_certs={authority}&timeout=10") as tier:
            tier.put("a", b"page" * 50_000)
            assert tier.get("a") == b"page" * 50_000
            tier.discard("a")


def test_a_server_of_an_unknown_authority_is_not_trusted(encrypted: tuple[int, Path]) -> None:
    port, _ = encrypted
    with open_tier(f"rediss://127.0.0.1:{port}/0?timeout=10") as tier:
        with pytest.warns(RuntimeWarning, match="as missing"):
            assert tier.get("a") is None
        with pytest.raises(StoreError):
            tier.put("a", b"page")
