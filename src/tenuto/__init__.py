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
    from tenuto.attention.policies.fastmka import FastMKA
    from tenuto.attention.policies.mka import MKA
    from tenuto.attention.policies.pi_attention import PiAttention
    from tenuto.attention.policies.short_conv import ShortConv
    from tenuto.attention.policies.window import Window
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
    from tenuto.prompt.policies.drop_norm import DropNorm
    from tenuto.prompt.policies.drop_surprise import DropSurprise
    from tenuto.prompt.policies.fixed import FixedGroups
    from tenuto.prompt.policies.random_spans import RandomSpans
    from tenuto.prompt.policies.semtoken import SemToken
    from tenuto.records.diffusion import Run
    from tenuto.reuse.chunks import ChunkStore
    from tenuto.reuse.policies.cacheblend import CacheBlend
    from tenuto.reuse.policies.cachecraft import CacheCraft
    from tenuto.reuse.policies.concatenate import Concatenate
    from tenuto.reuse.policies.full import FullRecompute
    from tenuto.reuse.prefix import PrefixStore
    from tenuto.shards.policies.blocks import Blocks
    from tenuto.shards.policies.cluster_kv import KeyCluster
    from tenuto.shards.policies.page_summary import Summary
    from tenuto.shards.policies.pikv import PiKV
    from tenuto.shards.policies.round_robin import RoundRobin

_HOMES = {
    "AdaCorrection": "tenuto.diffusion.policies.adacorrection",
    "AdaKV": "tenuto.kv.policies.adakv",
    "AttachError": "tenuto.errors",
    "Blocks": "tenuto.shards.policies.blocks",
    "CacheBlend": "tenuto.reuse.policies.cacheblend",
    "CacheCraft": "tenuto.reuse.policies.cachecraft",
    "Cake": "tenuto.kv.policies.cake",
    "CalibrationError": "tenuto.errors",
    "ChunkStore": "tenuto.reuse.chunks",
    "Concatenate": "tenuto.reuse.policies.concatenate",
    "DropNorm": "tenuto.prompt.policies.drop_norm",
    "DropSurprise": "tenuto.prompt.policies.drop_surprise",
    "ErrorBudget": "tenuto.budget",
    "EveryN": "tenuto.diffusion.policies.every_n",
    "ExpectedAttention": "tenuto.kv.policies.expected_attention",
    "FastCache": "tenuto.diffusion.policies.fastcache",
    "FastMKA": "tenuto.attention.policies.fastmka",
    "FirstBlock": "tenuto.diffusion.policies.first_block",
    "FixedGroups": "tenuto.prompt.policies.fixed",
    "FullRecompute": "tenuto.reuse.policies.full",
    "H2O": "tenuto.kv.policies.h2o",
    "IceCache": "tenuto.kv.policies.icecache",
    "InputError": "tenuto.errors",
    "KVMerger": "tenuto.kv.policies.kvmerger",
    "KVPolicy": "tenuto.kv.policy",
    "KVzip": "tenuto.kv.policies.kvzip",
    "KeyCluster": "tenuto.shards.policies.cluster_kv",
    "Kivi": "tenuto.kv.policies.kivi",
    "Knorm": "tenuto.kv.policies.knorm",
    "LouisKV": "tenuto.kv.policies.louiskv",
    "MKA": "tenuto.attention.policies.mka",
    "MemoryBudget": "tenuto.budget",
    "MiKV": "tenuto.kv.policies.mikv",
    "ModelError": "tenuto.errors",
    "PiAttention": "tenuto.attention.policies.pi_attention",
    "PiKV": "tenuto.shards.policies.pikv",
    "PolicyError": "tenuto.errors",
    "Prefetch": "tenuto.kv.offload.settings",
    "PrefixStore": "tenuto.reuse.prefix",
    "Profile": "tenuto.calibration",
    "PyramidKV": "tenuto.kv.policies.pyramidkv",
    "Quest": "tenuto.kv.policies.quest",
    "RandomSpans": "tenuto.prompt.policies.random_spans",
    "RazorAttention": "tenuto.kv.policies.razor_attention",
    "RoundRobin": "tenuto.shards.policies.round_robin",
    "Run": "tenuto.records.diffusion",
    "Scissorhands": "tenuto.kv.policies.scissorhands",
    "SemToken": "tenuto.prompt.policies.semtoken",
    "ShadowKV": "tenuto.kv.policies.shadowkv",
    "ShortConv": "tenuto.attention.policies.short_conv",
    "SnapKV": "tenuto.kv.policies.snapkv",
    "StoreError": "tenuto.errors",
    "StreamingLLM": "tenuto.kv.policies.streaming_llm",
    "Summary": "tenuto.shards.policies.page_summary",
    "TaylorSeer": "tenuto.diffusion.policies.taylorseer",
    "TeaCache": "tenuto.diffusion.policies.teacache",
    "TenutoError": "tenuto.errors",
    "ThinK": "tenuto.kv.policies.think",
    "Window": "tenuto.attention.policies.window",
    "ZipCache": "tenuto.kv.policies.zipcache",
    "attach": "tenuto.attachment",
    "calibrate": "tenuto.diffusion.calibrate",
}
__all__ = [
    "AdaCorrection",
    "AdaKV",
    "AttachError",
    "Blocks",
    "CacheBlend",
    "CacheCraft",
    "Cake",
    "CalibrationError",
    "ChunkStore",
    "Concatenate",
    "DropNorm",
    "DropSurprise",
    "ErrorBudget",
    "EveryN",
    "ExpectedAttention",
    "FastCache",
    "FastMKA",
    "FirstBlock",
    "FixedGroups",
    "FullRecompute",
    "H2O",
    "IceCache",
    "InputError",
    "KVMerger",
    "KVPolicy",
    "KVzip",
    "KeyCluster",
    "Kivi",
    "Knorm",
    "LouisKV",
    "MKA",
    "MemoryBudget",
    "MiKV",
    "ModelError",
    "PiAttention",
    "PiKV",
    "PolicyError",
    "Prefetch",
    "PrefixStore",
    "Profile",
    "PyramidKV",
    "Quest",
    "RandomSpans",
    "RazorAttention",
    "RoundRobin",
    "Run",
    "Scissorhands",
    "SemToken",
    "ShadowKV",
    "ShortConv",
    "SnapKV",
    "StoreError",
    "StreamingLLM",
    "Summary",
    "TaylorSeer",
    "TeaCache",
    "TenutoError",
    "ThinK",
    "Window",
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
