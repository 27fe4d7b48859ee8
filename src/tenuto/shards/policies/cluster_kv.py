"""KeyCluster: tokens whose keys are alike share pages, so that one summary describes a page well.

The keys of a row's first chunk (its prompt) are clustered by k-means, all KV heads of a layer together; later tokens go
to the nearest centre. Centres do not move afterwards: tokens stay where they are. A shard takes several clusters, and
no more than its share and some slack.

What it does not do: ClusterKV's own selection, which reads the clusters nearest to the query, its clusters per head,
and its clustering again of what decoding adds.

Source: the clusters of ClusterKV, Liu et al. 2024, https://arxiv.org/abs/2412.03213, as a placement
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from tenuto.errors import PolicyError
from tenuto.shards.policy import Arrivals, Claim, Paper, Placement, Places, Sharding, ShardMethod, capped

if TYPE_CHECKING:
    from tenuto.calibration import Profile

__all__ = ["KeyCluster"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyCluster(Placement, ShardMethod):
    """Cluster ``c`` lives on shard ``c mod shards``.

    Attributes:
        clusters: the most there are; a prompt of few tokens has one per page.
        rounds: of k-means.
        slack: what a shard may hold of a row, as a multiple of its share, at least 1.
    """

    clusters: int = 64
    rounds: int = 8
    slack: float = 1.25

    aliases: ClassVar[Mapping[str, str]] = {"key_cluster": "cluster_kv"}
    exact: ClassVar[bool] = True
    trials: ClassVar[tuple[str, ...]] = ("cluster_kv:page=4,clusters=6",)
    paper: ClassVar[Paper] = Paper(
        "ClusterKV: Manipulating LLM KV Cache in Semantic Space for Recallable Compression",
        "Guangda Liu, Chengwei Li, Jieru Zhao, Chenqi Zhang, Minyi Guo",
        2024,
        "https://arxiv.org/abs/2412.03213",
    )
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            "decoding throughput against the full cache", "up to 2.5x", "32k context, budget of 1k to 2k", "abstract"
        ),
        Claim("latency against the full cache", "up to 2x", "32k context, budget of 1k to 2k", "abstract"),
    )

    def __post_init__(self) -> None:
        if min(self.page, self.clusters, self.slack) < 1 or self.rounds < 0:
            raise PolicyError(
                f"KeyCluster: page={self.page}, clusters={self.clusters}, slack={self.slack:g}, rounds={self.rounds}. "
                "rounds must be zero or more, the others at least 1."
            )

    @property
    def kinds(self) -> int:
        return self.clusters

    def compose(self, profile: Profile | None = None) -> Sharding:
        return Sharding(placement=self)

    def place(self, new: Arrivals, memory: torch.Tensor | None) -> Places:
        points = new.keys.float().transpose(0, 1).flatten(1)
        centres = self._fit(points) if memory is None else memory
        kind = torch.cdist(points, centres).argmin(-1)
        return Places(capped(kind % new.shards, new.loads, self.slack), kind, centres)

    def _fit(self, points: torch.Tensor) -> torch.Tensor:
        """Centres ``[clusters, channels]``, from evenly spaced points on; one that loses all its points stays."""
        count = min(self.clusters, max(len(points) // self.page, 1))
        centres = points[torch.linspace(0, len(points) - 1, count).long()].clone()
        for _ in range(self.rounds):
            nearest = torch.cdist(points, centres).argmin(-1)
            sizes = torch.bincount(nearest, minlength=count)
            means = torch.zeros_like(centres).index_add_(0, nearest, points) / sizes.clamp(min=1)[:, None]
            centres = torch.where(sizes[:, None] > 0, means, centres)
        return centres
