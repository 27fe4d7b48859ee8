"""PiKV made sound: a KV cache on shards, exact when all are read. docs/pikv.md says what helped and what is refused.

``placement`` says which shard holds a token (``round_robin``, ``blocks``, ``key_cluster``, ``expert``), ``table`` which
page; ``merge`` makes one attention of several; ``exchange`` and ``mesh`` join ranks; ``selector`` says which pages are
read (``summary``, ``affinity``, ``router``), ``schedule`` which leave memory; ``layer``, ``cache`` and ``attach``
put it on a model.
"""

from tenuto.kv.placements.affinity import Affinity, calibrate_affinity
from tenuto.kv.placements.attach import ShardedRun, shard
from tenuto.kv.placements.blocks import Blocks
from tenuto.kv.placements.expert import Expert
from tenuto.kv.placements.key_cluster import KeyCluster
from tenuto.kv.placements.mesh import open_mesh
from tenuto.kv.placements.round_robin import RoundRobin
from tenuto.kv.placements.router import Router
from tenuto.kv.placements.schedule import Schedule
from tenuto.kv.placements.summary import Summary

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
