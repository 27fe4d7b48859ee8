"""Numbers as people read them. Every value and its unit are joined by a no-break space."""

from __future__ import annotations

__all__ = ["DASH", "duration", "milliseconds", "percent", "size", "span", "times"]

DASH = "—"
"""What stands where there is no value."""

NBSP = "\u00a0"


def times(value: float) -> str:
    """A speed-up: ``1.88×``."""
    return f"{value:.2f}×"


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction in [0, 1]: ``62.5 %``."""
    return f"{100 * fraction:.{digits}f}{NBSP}%"


def span(low: str, high: str) -> str:
    """An interval: ``1.79 to 1.93``, unbroken."""
    return f"{low}{NBSP}to{NBSP}{high}"


def size(count: float) -> str:
    """Bytes: ``0 B``, ``12.3 MiB``."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while abs(value) >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    whole = units[0] == "B" or abs(value) >= 100
    return f"{value:.0f}{NBSP}{units[0]}" if whole else f"{value:.1f}{NBSP}{units[0]}"


def duration(seconds: float) -> str:
    """Seconds: ``0 s``, ``40 ms``, ``3.2 s``, ``2 min 5 s``, ``3 h 10 min``."""
    if seconds == 0:
        return f"0{NBSP}s"
    if seconds < 1:
        return f"{1000 * seconds:.0f}{NBSP}ms"
    if seconds < 59.95:
        return f"{seconds:.1f}{NBSP}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{NBSP}min{NBSP}{rest}{NBSP}s"
    return f"{minutes // 60}{NBSP}h{NBSP}{minutes % 60}{NBSP}min"


def milliseconds(value: float) -> str:
    """Milliseconds: ``12.3 ms``, ``0.84 ms``."""
    return f"{value:.{1 if value >= 10 else 2}f}{NBSP}ms"
