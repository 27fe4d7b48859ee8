"""Public conformance laws: what every method must satisfy, for the catalogue's own and for yours.

    from tenuto.testing import check_feature_policy, check_kv_policy
    check_feature_policy(MyPolicy(threshold=0.1))
    check_kv_policy(MyMethod(window=16))

The other families have ``check_attention``, ``check_prompt_method``, ``check_assembler`` and ``check_shard_method``.

Each law is a function ``law_*``; a failed law raises :class:`LawError` with what was expected and what was seen. Names
of families but diffusion are imported when they are first used, because they need transformers.
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
    from tenuto.testing.attention import ATTENTION_LAWS, check_attention
    from tenuto.testing.kv import KV_LAWS, TinyLM, check_kv_policy
    from tenuto.testing.prompt import PROMPT_LAWS, check_prompt_method
    from tenuto.testing.reuse import REUSE_LAWS, check_assembler
    from tenuto.testing.shards import SHARD_LAWS, check_shard_method

_HOMES = {
    "ATTENTION_LAWS": "attention",
    "KV_LAWS": "kv",
    "PROMPT_LAWS": "prompt",
    "REUSE_LAWS": "reuse",
    "SHARD_LAWS": "shards",
    "TinyLM": "kv",
    "check_assembler": "reuse",
    "check_attention": "attention",
    "check_kv_policy": "kv",
    "check_prompt_method": "prompt",
    "check_shard_method": "shards",
}

__all__ = [
    "ATTENTION_LAWS",
    "KV_LAWS",
    "LAWS",
    "PROMPT_LAWS",
    "REUSE_LAWS",
    "SHARD_LAWS",
    "STEPS",
    "LawError",
    "TinyDiT",
    "TinyLM",
    "check_assembler",
    "check_attention",
    "check_feature_policy",
    "check_kv_policy",
    "check_prompt_method",
    "check_shard_method",
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
    if name not in _HOMES:
        raise AttributeError(f"module 'tenuto.testing' has no public name {name!r}.")
    return getattr(importlib.import_module(f"tenuto.testing.{_HOMES[name]}"), name)
