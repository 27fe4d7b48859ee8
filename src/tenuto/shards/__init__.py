"""PiKV made sound: a KV cache on shards, exact when all are read. docs/pikv.md says what helped and what is refused.

``policy`` is the contract: a method composes a placement (which shard holds a token) and a selector (which pages are
read); ``table`` says which page; ``merge`` makes one attention of several; ``exchange`` and ``mesh`` join ranks;
``schedule`` says which pages leave memory; ``layer``, ``cache`` and ``attach`` put it on a model.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# sync: begin (written by `make sync`)
if TYPE_CHECKING:
    from tenuto.shards.attach import ShardedRun, shard
    from tenuto.shards.calibrate import calibrate_affinity
    from tenuto.shards.mesh import open_mesh
    from tenuto.shards.policies.blocks import Blocks
    from tenuto.shards.policies.cluster_kv import KeyCluster
    from tenuto.shards.policies.page_summary import Summary
    from tenuto.shards.policies.pikv import Affinity, Expert, PiKV, Router, Schedule
    from tenuto.shards.policies.round_robin import RoundRobin

_HOMES = {
    "Affinity": "tenuto.shards.policies.pikv",
    "Blocks": "tenuto.shards.policies.blocks",
    "Expert": "tenuto.shards.policies.pikv",
    "KeyCluster": "tenuto.shards.policies.cluster_kv",
    "PiKV": "tenuto.shards.policies.pikv",
    "RoundRobin": "tenuto.shards.policies.round_robin",
    "Router": "tenuto.shards.policies.pikv",
    "Schedule": "tenuto.shards.policies.pikv",
    "ShardedRun": "tenuto.shards.attach",
    "Summary": "tenuto.shards.policies.page_summary",
    "calibrate_affinity": "tenuto.shards.calibrate",
    "open_mesh": "tenuto.shards.mesh",
    "shard": "tenuto.shards.attach",
}
__all__ = [
    "Affinity",
    "Blocks",
    "Expert",
    "KeyCluster",
    "PiKV",
    "RoundRobin",
    "Router",
    "Schedule",
    "ShardedRun",
    "Summary",
    "calibrate_affinity",
    "open_mesh",
    "shard",
]
# sync: end


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first asked for: the contract needs no model library."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tenuto.shards' has no public name {name!r}.")
    return getattr(importlib.import_module(_HOMES[name]), name)
