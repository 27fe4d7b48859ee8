"""Tenuto: caching for pretrained generative models. Hold what has not changed, within an error budget.

    with tenuto.attach(pipe, tenuto.FirstBlock(threshold=0.1)) as run:
        images = pipe(class_labels=[0, 1, 2]).images

Importing this package does nothing else: each name below is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# sync: begin (written by `make sync`)
if TYPE_CHECKING:
    from tenuto.attachment import attach
    from tenuto.budget import ErrorBudget, MemoryBudget
    from tenuto.calibration import Profile
    from tenuto.diffusion.calibrate import calibrate
    from tenuto.diffusion.policies.adacorrection import AdaCorrection
    from tenuto.diffusion.policies.every_n import EveryN
    from tenuto.diffusion.policies.fastcache import FastCache
    from tenuto.diffusion.policies.first_block import FirstBlock
    from tenuto.diffusion.policies.taylorseer import TaylorSeer
    from tenuto.diffusion.policies.teacache import TeaCache
    from tenuto.errors import (
        AttachError,
        CalibrationError,
        InputError,
        ModelError,
        PolicyError,
        StoreError,
        TenutoError,
    )
    from tenuto.kv.offload.settings import Prefetch
    from tenuto.kv.policies.adakv import AdaKV
    from tenuto.kv.policies.cake import Cake
    from tenuto.kv.policies.expected_attention import ExpectedAttention
    from tenuto.kv.policies.h2o import H2O
    from tenuto.kv.policies.icecache import IceCache
    from tenuto.kv.policies.kivi import Kivi
    from tenuto.kv.policies.knorm import Knorm
    from tenuto.kv.policies.kvmerger import KVMerger
    from tenuto.kv.policies.kvzip import KVzip
    from tenuto.kv.policies.louiskv import LouisKV
    from tenuto.kv.policies.mikv import MiKV
    from tenuto.kv.policies.pyramidkv import PyramidKV
    from tenuto.kv.policies.quest import Quest
    from tenuto.kv.policies.razor_attention import RazorAttention
    from tenuto.kv.policies.scissorhands import Scissorhands
    from tenuto.kv.policies.shadowkv import ShadowKV
    from tenuto.kv.policies.snapkv import SnapKV
    from tenuto.kv.policies.streaming_llm import StreamingLLM
    from tenuto.kv.policies.think import ThinK
    from tenuto.kv.policies.zipcache import ZipCache
    from tenuto.kv.policy import KVPolicy
    from tenuto.records.diffusion import Run
    from tenuto.reuse.chunks import ChunkStore
    from tenuto.reuse.policies.cacheblend import CacheBlend
    from tenuto.reuse.policies.cachecraft import CacheCraft
    from tenuto.reuse.policies.concatenate import Concatenate
    from tenuto.reuse.policies.full import FullRecompute
    from tenuto.reuse.prefix import PrefixStore

_HOMES = {
    "AdaCorrection": "tenuto.diffusion.policies.adacorrection",
    "AdaKV": "tenuto.kv.policies.adakv",
    "AttachError": "tenuto.errors",
    "CacheBlend": "tenuto.reuse.policies.cacheblend",
    "CacheCraft": "tenuto.reuse.policies.cachecraft",
    "Cake": "tenuto.kv.policies.cake",
    "CalibrationError": "tenuto.errors",
    "ChunkStore": "tenuto.reuse.chunks",
    "Concatenate": "tenuto.reuse.policies.concatenate",
    "ErrorBudget": "tenuto.budget",
    "EveryN": "tenuto.diffusion.policies.every_n",
    "ExpectedAttention": "tenuto.kv.policies.expected_attention",
    "FastCache": "tenuto.diffusion.policies.fastcache",
    "FirstBlock": "tenuto.diffusion.policies.first_block",
    "FullRecompute": "tenuto.reuse.policies.full",
    "H2O": "tenuto.kv.policies.h2o",
    "IceCache": "tenuto.kv.policies.icecache",
    "InputError": "tenuto.errors",
    "KVMerger": "tenuto.kv.policies.kvmerger",
    "KVPolicy": "tenuto.kv.policy",
    "KVzip": "tenuto.kv.policies.kvzip",
    "Kivi": "tenuto.kv.policies.kivi",
    "Knorm": "tenuto.kv.policies.knorm",
    "LouisKV": "tenuto.kv.policies.louiskv",
    "MemoryBudget": "tenuto.budget",
    "MiKV": "tenuto.kv.policies.mikv",
    "ModelError": "tenuto.errors",
    "PolicyError": "tenuto.errors",
    "Prefetch": "tenuto.kv.offload.settings",
    "PrefixStore": "tenuto.reuse.prefix",
    "Profile": "tenuto.calibration",
    "PyramidKV": "tenuto.kv.policies.pyramidkv",
    "Quest": "tenuto.kv.policies.quest",
    "RazorAttention": "tenuto.kv.policies.razor_attention",
    "Run": "tenuto.records.diffusion",
    "Scissorhands": "tenuto.kv.policies.scissorhands",
    "ShadowKV": "tenuto.kv.policies.shadowkv",
    "SnapKV": "tenuto.kv.policies.snapkv",
    "StoreError": "tenuto.errors",
    "StreamingLLM": "tenuto.kv.policies.streaming_llm",
    "TaylorSeer": "tenuto.diffusion.policies.taylorseer",
    "TeaCache": "tenuto.diffusion.policies.teacache",
    "TenutoError": "tenuto.errors",
    "ThinK": "tenuto.kv.policies.think",
    "ZipCache": "tenuto.kv.policies.zipcache",
    "attach": "tenuto.attachment",
    "calibrate": "tenuto.diffusion.calibrate",
}
__all__ = [
    "AdaCorrection",
    "AdaKV",
    "AttachError",
    "CacheBlend",
    "CacheCraft",
    "Cake",
    "CalibrationError",
    "ChunkStore",
    "Concatenate",
    "ErrorBudget",
    "EveryN",
    "ExpectedAttention",
    "FastCache",
    "FirstBlock",
    "FullRecompute",
    "H2O",
    "IceCache",
    "InputError",
    "KVMerger",
    "KVPolicy",
    "KVzip",
    "Kivi",
    "Knorm",
    "LouisKV",
    "MemoryBudget",
    "MiKV",
    "ModelError",
    "PolicyError",
    "Prefetch",
    "PrefixStore",
    "Profile",
    "PyramidKV",
    "Quest",
    "RazorAttention",
    "Run",
    "Scissorhands",
    "ShadowKV",
    "SnapKV",
    "StoreError",
    "StreamingLLM",
    "TaylorSeer",
    "TeaCache",
    "TenutoError",
    "ThinK",
    "ZipCache",
    "__version__",
    "attach",
    "calibrate",
]
# sync: end


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tenuto' has no public name {name!r}. Allowed: {', '.join(__all__)}.")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
