"""Public conformance laws: what every method must satisfy, for the catalogue's own and for yours.

    from tenuto.testing import check_feature_policy, check_kv_policy
    check_feature_policy(MyPolicy(threshold=0.1))
    check_kv_policy(MyMethod(window=16))

Each law is a function ``law_*``; a failed law raises :class:`LawError` with what was expected and what was seen. Names
of the KV family are imported when they are first used, because they need transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tenuto.testing.diffusion import (
    LAWS,
    STEPS,
    TinyDiT,
    check_feature_policy,
    denoise,
    law_closed_is_identity,
    law_detaches,
    law_generations_apart,
    law_guidance,
    law_honest_books,
    law_identical_inputs,
    law_shadow_sees_every_error,
    law_warm_up,
    profile_for,
)
from tenuto.testing.law import LawError, law_round_trip

if TYPE_CHECKING:
    from tenuto.testing.kv import KV_LAWS, TinyLM, check_kv_policy

__all__ = [
    "KV_LAWS",
    "LAWS",
    "STEPS",
    "LawError",
    "TinyDiT",
    "TinyLM",
    "check_feature_policy",
    "check_kv_policy",
    "denoise",
    "law_closed_is_identity",
    "law_detaches",
    "law_generations_apart",
    "law_guidance",
    "law_honest_books",
    "law_identical_inputs",
    "law_round_trip",
    "law_shadow_sees_every_error",
    "law_warm_up",
    "profile_for",
]


def __getattr__(name: str) -> Any:
    if name not in ("KV_LAWS", "TinyLM", "check_kv_policy"):
        raise AttributeError(f"module 'tenuto.testing' has no public name {name!r}.")
    return getattr(importlib.import_module("tenuto.testing.kv"), name)
