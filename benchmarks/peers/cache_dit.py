"""cache-dit (https://github.com/vipshop/cache-dit): DBCache, alone and with its TaylorSeer calibrator.

It knows ``DiTPipeline`` by itself. Its switching off leaves a few attributes behind; they are taken away here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from peers.counting import attachment
from peers.restoring import as_they_were
from tenuto.bench.diffusion.rows import ImageEntry

__all__ = ["dbcache"]


@contextmanager
def _enabled(pipe: Any, first: int, threshold: float, warmup: int, order: int | None) -> Iterator[Any]:
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")  # read when it is imported
    import cache_dit

    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=first,
        Bn_compute_blocks=0,
        residual_diff_threshold=threshold,
        max_warmup_steps=warmup,
    )
    forecaster = None if order is None else cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=order)
    with as_they_were([type(pipe), pipe, *pipe.transformer.modules()]):
        try:
            cache_dit.enable_cache(pipe, cache_config=config, calibrator_config=forecaster)
            yield [pipe._context_manager]
        finally:
            cache_dit.disable_cache(pipe)


def _version() -> str:
    try:
        return version("cache-dit")
    except PackageNotFoundError:
        return "not installed"


def dbcache(threshold: float, *, first: int = 1, warmup: int = 4, order: int | None = None) -> ImageEntry:
    """DBCache; in brackets the names in its own config.

    Args:
        threshold: relative change of the first blocks' residual that may pass (``residual_diff_threshold``).
        first: blocks that always run (``Fn_compute_blocks``); warmup: steps that always compute (``max_warmup_steps``).
        order: of the TaylorSeer calibrator; None for DBCache alone.
    """
    method = "cache_dit" if order is None else "cache_dit_taylorseer"
    numbers = {"threshold": threshold, "first": first, "warmup": warmup, "order": order}
    told = ",".join(f"{key}={value}" for key, value in numbers.items() if value is not None)
    return ImageEntry(
        name=f"{method}:{told}",
        attach=attachment(
            lambda pipe: _enabled(pipe, first, threshold, warmup, order),
            "reuse" if order is None else "forecast",
        ),
        versions={"cache-dit": _version()},
        optional=True,
    )
