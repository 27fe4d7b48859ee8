"""A tier from the text of a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import parse_qsl

from tenuto.errors import InputError
from tenuto.tiers.chain import Chain
from tenuto.tiers.disk import DiskTier
from tenuto.tiers.remote import RemoteTier
from tenuto.tiers.tier import Tier

__all__ = ["open_address"]

UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def open_address(address: str | Sequence[str]) -> Tier:
    """A tier, or a chain of several, fastest first.

    Args:
        address: ``disk:PATH?max=10GiB``, ``redis://HOST:PORT/0``, ``rediss://...``, ``unix://PATH``; or several.

    Raises:
        InputError: it is none of these, or cannot be used.
    """
    if not isinstance(address, str):
        return Chain([open_address(one) for one in address])
    scheme, _, rest = address.partition(":")
    if scheme in ("redis", "rediss", "unix"):
        return RemoteTier(address, timeout=5.0)
    path, _, options = rest.partition("?")
    limit = dict(parse_qsl(options)).get("max", "")
    if scheme != "disk" or not path or limit[-3:] not in UNITS or not limit[:-3].isdigit():
        raise InputError(f"The address {address!r} was given. Give disk:PATH?max=10GiB or redis://HOST:PORT/0.")
    return DiskTier(path, capacity=int(limit[:-3]) * UNITS[limit[-3:]])
