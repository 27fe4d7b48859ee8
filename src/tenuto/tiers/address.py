"""Tiers by their address, one text for Python, the command line and configuration files.

    host:?max=1GiB                          memory of this process
    device:cuda?max=1GiB                    memory of an accelerator (device:pinned: the host's, page-locked)
    disk:~/.cache/tenuto/kv?max=10GiB       a folder, shared by the processes of this machine, and of nobody else's use
                                            unless it says ?foreign=true
    redis://user:password@host:6379/0       a Valkey or Redis server (valkey:// is the same; rediss:// and valkeys://
                                            with TLS; unix://PATH); ?timeout=SECONDS and redis-py's options
    s3://bucket/folder                      an object store that fsspec knows

Every address may say ``codec=int8`` (:mod:`tenuto.tiers.codec`; by default raw). Several, the fastest first, are
separated by commas. A comma in a password is part of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

from tenuto.budget import read_bytes
from tenuto.errors import InputError, closest, redact
from tenuto.options import read_option
from tenuto.tiers.chain import Chain
from tenuto.tiers.codec import PageCodec
from tenuto.tiers.disk import DiskTier
from tenuto.tiers.host import HostTier
from tenuto.tiers.objects import ObjectTier
from tenuto.tiers.remote import RemoteTier
from tenuto.tiers.tier import Tier

__all__ = ["Level", "open_levels", "open_tier", "split"]

EXAMPLE = "Give for example disk:~/.cache/tenuto/kv?max=10GiB, host:?max=1GiB or redis://HOST:6379/0."
LOCAL = ("host:", "device:", "disk:")
BEGINNING = re.compile(rf"\s*({'|'.join(LOCAL)}|[A-Za-z][A-Za-z0-9+.-]*://)")
SERVERS = {"redis": "redis", "valkey": "redis", "rediss": "rediss", "valkeys": "rediss", "unix": "unix"}


@dataclass(frozen=True, slots=True)
class Level:
    """A tier, or several that hold the same bytes, and how their pages are stored."""

    tier: Tier
    codec: PageCodec


def open_levels(addresses: str) -> list[Level]:
    """The levels of one or more addresses; neighbours of one codec are one level, a :class:`Chain`.

    Raises:
        InputError: no such kind of tier, an option it does not have, or a tier that cannot be opened.
    """
    secret = "@" in addresses  # then a part without a scheme may be part of a password
    opened = [_open(text.strip(), secret) for text in split(addresses)]
    levels: list[Level] = []
    for level in opened:
        if levels and levels[-1].codec == level.codec:
            before = levels[-1].tier
            tiers = (*before.tiers, level.tier) if isinstance(before, Chain) else (before, level.tier)
            levels[-1] = Level(Chain(tiers), level.codec)
        else:
            levels.append(level)
    return levels


def split(addresses: str) -> list[str]:
    """The single addresses of a text: in one with ``://`` a comma may be part of a password or an option."""
    parts: list[str] = []
    for part in addresses.split(","):
        if parts and "://" in parts[-1] and not BEGINNING.match(part):
            parts[-1] += f",{part}"
        else:
            parts.append(part)
    return parts


def open_tier(address: str) -> Tier:
    """The tier of one address without a codec, or the chain of several.

    Raises:
        InputError: as :func:`open_levels`, or a codec is asked for where only bytes are stored.
    """
    levels = open_levels(address)
    if len(levels) > 1 or not levels[0].codec.exact or levels[0].codec.zstd:
        raise InputError(f"{redact(address)!r} names a codec, which only a store of pages has. Leave it out.")
    return levels[0].tier


def _open(address: str, secret: bool) -> Level:
    shown = "..." if secret and "://" not in address and not address.startswith(LOCAL) else redact(address)
    scheme, colon, rest = address.partition(":")
    place, _, query = rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    codec = PageCodec.parse(options.pop("codec", "raw"))
    if scheme in ("host", "device", "disk") and colon:
        foreign = read_option("foreign", options.pop("foreign", "false"), bool) if scheme == "disk" else False
        most = read_bytes(options.pop("max", "10GiB" if scheme == "disk" else "1GiB"))
        if options:
            wrong = next(iter(options))
            raise InputError(f"{shown!r}: no option {wrong!r}.{closest(wrong, ['max', 'codec', 'foreign'])}")
        return Level(_local(scheme, place, most, foreign), codec)
    if scheme in SERVERS and rest.startswith("//"):
        return Level(_server(SERVERS[scheme], place, options), codec)
    if rest.startswith("//"):
        return Level(ObjectTier(f"{scheme}:{place}" + (f"?{urlencode(options)}" if options else "")), codec)
    raise InputError(
        f"{shown!r} is no address of a tier.{closest(scheme, ['host', 'device', 'disk', *SERVERS])} {EXAMPLE}"
    )


def _local(scheme: str, place: str, most: int, foreign: bool) -> Tier:
    if (scheme == "host") == bool(place):
        raise InputError(
            f"'{scheme}:{redact(place)}': {'memory has no path' if place else 'the place is missing'}. {EXAMPLE}"
        )
    if scheme == "disk":
        return DiskTier(Path(place).expanduser(), capacity=most, foreign=foreign)
    return HostTier(most, device=place or None)


def _server(scheme: str, place: str, options: dict[str, str]) -> Tier:
    seconds = options.pop("timeout", "5")
    try:
        timeout = float(seconds)
    except ValueError as error:
        raise InputError(f"timeout={redact(seconds)!r} is no number of seconds. Give for example timeout=5.") from error
    return RemoteTier(f"{scheme}:{place}" + (f"?{urlencode(options)}" if options else ""), timeout=timeout)
