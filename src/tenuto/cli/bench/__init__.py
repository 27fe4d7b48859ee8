"""``tenuto bench``: measure policies, a file per family."""

from tenuto.cli.bench import attention, diffusion, kv, prompt, reuse, shards
from tenuto.cli.bench.group import bench

__all__ = ["attention", "bench", "diffusion", "kv", "prompt", "reuse", "shards"]
