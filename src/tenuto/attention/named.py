"""The attentions by name: one file each in this folder."""

from __future__ import annotations

from tenuto.attention.mka import MKA
from tenuto.attention.policy import Attention
from tenuto.attention.window import Window
from tenuto.errors import PolicyError, closest

__all__ = ["ATTENTIONS", "parse"]

ATTENTIONS: dict[str, type[Attention]] = {cls.name: cls for cls in (MKA, Window)}


def parse(given: str) -> Attention:
    """The attention that a text names, ``mka:window=64,chunk=16``.

    Raises:
        PolicyError: an unknown name or option, or a value it refuses.
    """
    name, _, rest = (part.strip() for part in given.partition(":"))
    if name not in ATTENTIONS:
        raise PolicyError(f"Unknown attention {name!r}.{closest(name, ATTENTIONS)}")
    return ATTENTIONS[name].parse(rest)
