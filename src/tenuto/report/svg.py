"""A writer of inline SVG: elements, and axis ticks at round numbers. Inline SVG needs no namespace."""

from __future__ import annotations

import math

from markupsafe import Markup, escape

__all__ = ["Attributes", "element", "ticks"]

Attributes = dict[str, str | float]


def _text(value: str | float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def element(tag: str, attributes: Attributes, *children: str) -> Markup:
    """One element. Attribute values and children that are not :class:`Markup` are escaped; floats keep two decimals."""
    head = Markup("").join(Markup(' {}="{}"').format(name, _text(value)) for name, value in attributes.items())
    return Markup("<{0}{1}>{2}</{0}>").format(tag, head, Markup("").join(escape(child) for child in children))


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within ``[low, high]``, about ``about`` of them."""
    if high <= low:
        return [low]
    raw = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]
