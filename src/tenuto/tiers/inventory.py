"""What is in a tier: its pages by what they say of themselves, and which of them are damaged."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tenuto.errors import InputError, StoreError
from tenuto.tiers import page as pages
from tenuto.tiers.chain import Chain
from tenuto.tiers.codec import PageCodec
from tenuto.tiers.disk import DiskTier
from tenuto.tiers.page import PageFacts
from tenuto.tiers.tier import Tier

__all__ = ["Checked", "check", "parts", "survey"]


@dataclass(frozen=True, slots=True)
class Checked:
    """One page that was read: its key, None where even that is lost; its bytes and facts, or what is wrong with it."""

    key: str | None
    size: int = 0
    facts: PageFacts | None = None
    problem: str = ""


def parts(tier: Tier) -> tuple[Tier, ...]:
    """The tiers of a chain, or the one tier."""
    return tier.tiers if isinstance(tier, Chain) else (tier,)


def survey(tier: Tier) -> Iterator[Checked]:
    """Read every page of one tier, without changing anything but recency: what it holds, or what is wrong with it.

    Raises:
        StoreError: the tier cannot be listed.
    """
    broken: set[str | None] = set()
    if isinstance(tier, DiskTier):  # its own look leaves damaged records where they are
        for damage in tier.verify():
            broken.add(damage.key)
            yield Checked(damage.key, problem=f"damaged at byte {damage.offset} of {damage.path.name}")
    for key in tier.keys():  # noqa: SIM118 (a tier is no mapping)
        if key not in broken:
            yield _read(tier, key)


def _read(tier: Tier, key: str) -> Checked:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        data = tier.get(key)
    if data is None:
        return Checked(key, problem=str(told[0].message) if told else "gone while the store was read")
    try:
        return Checked(key, len(data), check(data))
    except StoreError as error:
        return Checked(key, len(data), problem=str(error))


def check(data: bytes) -> PageFacts:
    """The facts of a page whose keys and values can be had.

    Raises:
        StoreError: the bytes are no undamaged page, or its codec is unknown here.
    """
    found = pages.decode(data)
    dtype = getattr(torch, found.facts.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise StoreError(f"A page is of dtype {found.facts.dtype!r}, which this version of torch does not have.")
    try:
        PageCodec.labelled(found.facts.codec).decode(found.tensors, dtype)
    except InputError as error:
        raise StoreError(str(error)) from error
    return found.facts
