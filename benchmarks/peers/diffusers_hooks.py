"""The caches of diffusers itself: FirstBlockCache, MagCache and TaylorSeer, put on with its ``apply_*`` functions.

``DiTTransformer2DModel`` has no ``enable_cache`` and its pipeline names no cache context. As documented,
FirstBlockCache therefore raises here and TaylorSeer hooks nothing. For a comparison all the same, the context is set by
hand with ``_set_cache_context``, which is private, and TaylorSeer is told by its own options which modules to hook: the
last block is forecast and those before it are left out, as in its "lite" variant, for a model without ``proj_out``.
MagCache needs the ratios of this model: :func:`mag_ratios` has diffusers measure them on one generation.
"""

from __future__ import annotations

import ast
import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig
from diffusers.hooks import apply_first_block_cache, apply_mag_cache, apply_taylorseer_cache
from diffusers.hooks.hooks import CacheContext, _set_cache_context

from peers.counting import attachment
from peers.restoring import as_they_were
from tenuto.bench.diffusion.job import CALIBRATION_OFFSET, CLASSES, Job
from tenuto.bench.diffusion.rows import ImageEntry
from tenuto.zoo.pipelines import ImageModel

__all__ = ["Ratios", "first_block_cache", "mag_cache", "mag_ratios", "taylorseer", "untouched"]

CONTEXT = "both"
"""One context: the pipeline sends both guidance branches in one batch."""


@contextmanager
def _hooked(pipe: Any, apply: Callable[[torch.nn.Module], None], context: str | None = CONTEXT) -> Iterator[list[Any]]:
    root = pipe.transformer
    with as_they_were(list(root.modules())):
        apply(root)
        if context:
            _set_cache_context(root, CacheContext(context))
        registries = [vars(module).get("_diffusers_hook") for module in root.modules()]
        hooks = [hook for registry in registries if registry for hook in registry.hooks.values()]
        yield [vars(hook).get("state_manager") for hook in hooks]


def untouched() -> list[ImageEntry]:
    """FirstBlockCache and TaylorSeer as diffusers documents them, with nothing done by hand."""
    documented = {
        "diffusers_fbc": lambda root: apply_first_block_cache(root, FirstBlockCacheConfig()),
        "diffusers_taylorseer": lambda root: apply_taylorseer_cache(root, TaylorSeerCacheConfig()),
    }
    return [
        ImageEntry(name=name, attach=attachment(lambda pipe, apply=apply: _hooked(pipe, apply, None)), optional=True)
        for name, apply in documented.items()
    ]


def first_block_cache(threshold: float) -> ImageEntry:
    """FirstBlockCache: relative change of the first block's residual that may pass."""

    def apply(root: torch.nn.Module) -> None:
        apply_first_block_cache(root, FirstBlockCacheConfig(threshold=threshold))

    return ImageEntry(
        name=f"diffusers_fbc:threshold={threshold}",
        attach=attachment(lambda pipe: _hooked(pipe, apply)),
        optional=True,
    )


def taylorseer(interval: int, order: int) -> ImageEntry:
    """TaylorSeer in float32 (its bfloat16 default would round the forecast): interval and order as in its config."""

    def apply(root: torch.nn.Module) -> None:
        last = len(root.transformer_blocks) - 1
        config = TaylorSeerCacheConfig(
            cache_interval=interval,
            max_order=order,
            taylor_factors_dtype=torch.float32,
            cache_identifiers=[rf"transformer_blocks\.{last}"],
            skip_predict_identifiers=[rf"transformer_blocks\.{index}" for index in range(last)],
        )
        apply_taylorseer_cache(root, config)

    return ImageEntry(
        name=f"diffusers_taylorseer:interval={interval},order={order}",
        attach=attachment(lambda pipe: _hooked(pipe, apply), "forecast"),
        optional=True,
    )


@dataclass(frozen=True, slots=True)
class Ratios:
    """MagCache's magnitude ratios, one per denoising step, and the seconds that measuring them took."""

    values: tuple[float, ...]
    seconds: float


def mag_ratios(model: ImageModel, job: Job) -> Ratios:
    """Measured by MagCache's own calibration on one uncached generation of ten pictures, with seeds kept apart."""

    def apply(root: torch.nn.Module) -> None:
        apply_mag_cache(root, MagCacheConfig(calibrate=True, num_inference_steps=job.steps))

    printed, started = io.StringIO(), time.perf_counter()
    seeds = [job.seed + CALIBRATION_OFFSET + number for number in range(CLASSES)]
    with _hooked(model.pipe, apply), redirect_stdout(printed):
        model.draw(list(range(CLASSES)), seeds, job.steps, job.guidance)
    listed = next(line for line in printed.getvalue().splitlines() if line.startswith("[") and "Mag" not in line)
    return Ratios(tuple(ast.literal_eval(listed)), time.perf_counter() - started)


def mag_cache(ratios: Ratios, threshold: float, longest: int, retention: float) -> ImageEntry:
    """MagCache: accumulated error that may pass, longest skip in steps, fraction of the steps that always compute."""

    def apply(root: torch.nn.Module) -> None:
        config = MagCacheConfig(
            threshold=threshold,
            max_skip_steps=longest,
            retention_ratio=retention,
            num_inference_steps=len(ratios.values),
            mag_ratios=list(ratios.values),
        )
        apply_mag_cache(root, config)

    return ImageEntry(
        name=f"diffusers_magcache:threshold={threshold},longest={longest},retention={retention}",
        attach=attachment(lambda pipe: _hooked(pipe, apply)),
        calibration_seconds=ratios.seconds,
        optional=True,
    )
