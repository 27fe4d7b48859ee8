"""Where Tenuto keeps what it fitted or converted for you."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["home"]


def home() -> Path:
    """``$TENUTO_HOME``, or ``~/.cache/tenuto``. It need not exist yet."""
    return Path(os.environ.get("TENUTO_HOME", Path.home() / ".cache" / "tenuto"))
