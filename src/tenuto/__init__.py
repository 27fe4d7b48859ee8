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
    from tenuto.errors import AttachError, CalibrationError, InputError, ModelError, PolicyError, TenutoError
    from tenuto.eval.run import Run
    from tenuto.kv.policies.adakv import AdaKV
    from tenuto.kv.policies.kivi import Kivi
    from tenuto.kv.policies.knorm import Knorm
    from tenuto.kv.policies.snapkv import SnapKV
    from tenuto.kv.policies.streaming_llm import StreamingLLM
    from tenuto.kv.policy import KVPolicy

_HOMES = {
    "AdaCorrection": "tenuto.diffusion.policies.adacorrection",
    "AdaKV": "tenuto.kv.policies.adakv",
    "AttachError": "tenuto.errors",
    "CalibrationError": "tenuto.errors",
    "ErrorBudget": "tenuto.budget",
    "EveryN": "tenuto.diffusion.policies.every_n",
    "FastCache": "tenuto.diffusion.policies.fastcache",
    "FirstBlock": "tenuto.diffusion.policies.first_block",
    "InputError": "tenuto.errors",
    "KVPolicy": "tenuto.kv.policy",
    "Kivi": "tenuto.kv.policies.kivi",
    "Knorm": "tenuto.kv.policies.knorm",
    "MemoryBudget": "tenuto.budget",
    "ModelError": "tenuto.errors",
    "PolicyError": "tenuto.errors",
    "Profile": "tenuto.calibration",
    "Run": "tenuto.eval.run",
    "SnapKV": "tenuto.kv.policies.snapkv",
    "StreamingLLM": "tenuto.kv.policies.streaming_llm",
    "TaylorSeer": "tenuto.diffusion.policies.taylorseer",
    "TeaCache": "tenuto.diffusion.policies.teacache",
    "TenutoError": "tenuto.errors",
    "attach": "tenuto.attachment",
    "calibrate": "tenuto.diffusion.calibrate",
}
__all__ = [
    "AdaCorrection",
    "AdaKV",
    "AttachError",
    "CalibrationError",
    "ErrorBudget",
    "EveryN",
    "FastCache",
    "FirstBlock",
    "InputError",
    "KVPolicy",
    "Kivi",
    "Knorm",
    "MemoryBudget",
    "ModelError",
    "PolicyError",
    "Profile",
    "Run",
    "SnapKV",
    "StreamingLLM",
    "TaylorSeer",
    "TeaCache",
    "TenutoError",
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
