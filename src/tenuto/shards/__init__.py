"""PiKV made sound: a KV cache on shards, exact when all are read. docs/pikv.md says what helped and what is refused.

``placement`` says which shard holds a token (``round_robin``, ``blocks``, ``key_cluster``, ``expert``), ``table`` which
page; ``merge`` makes one attention of several; ``exchange`` and ``mesh`` join ranks; ``selector`` says which pages are
read (``summary``, ``affinity``, ``router``), ``schedule`` which leave memory; ``layer``, ``cache`` and ``attach``
put it on a model.
"""

from tenuto.shards.affinity import Affinity, calibrate_affinity
from tenuto.shards.attach import ShardedRun, shard
from tenuto.shards.mesh import open_mesh
from tenuto.shards.policies.blocks import Blocks
from tenuto.shards.policies.expert import Expert
from tenuto.shards.policies.key_cluster import KeyCluster
from tenuto.shards.policies.round_robin import RoundRobin
from tenuto.shards.router import Router
from tenuto.shards.schedule import Schedule
from tenuto.shards.summary import Summary

__all__ = [
    "Affinity",
    "Blocks",
    "Expert",
    "KeyCluster",
    "RoundRobin",
    "Router",
    "Schedule",
    "ShardedRun",
    "Summary",
    "calibrate_affinity",
    "open_mesh",
    "shard",
]
