"""PiKV made sound: tokens on the shards of their experts, and pages read by experts where that is asked for.

*Placement* (``Expert``). A token lies on the shard of the expert that its router liked best. Attention of layer l runs
before router l, so router l-1 decides; layer 0, and layers after one without a router, fall back to round robin.
Router loads are skewed, so no shard takes more than its share and some slack; what is too much goes to the shards with
the most room. Pages hold tokens of one expert.

*Selection*. ``read=all`` is exact; ``router`` (``Router``) is PiKV's rule; ``affinity`` (``Affinity``) goes by how much
attention tokens of one expert pay to tokens of another, learnt in one pass over a text.

*Scheduling* (``Schedule``). PiKV's list of schedulers, each as a utility of a page: the pages of the lowest utility are
demoted to a lower tier, and come back when they are read, so that what is read is exact whatever the utility; a bad one
only fetches more. With ``lossy=True`` they are deleted, as PiKV's schedulers do.

What it does not do: PiKV stores a token with each of its k experts, and forgets when a buffer is full. Both change the
attention; here nothing is stored twice, and nothing is lost unless it is asked for.

Source: Liu et al. 2025, PiKV: KV Cache Management System for Mixture of Experts, https://arxiv.org/abs/2508.06526
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from tenuto.calibration import Profile
from tenuto.errors import CalibrationError, PolicyError, closest
from tenuto.kv.index import shared
from tenuto.shards.policies.page_summary import centroid_logits
from tenuto.shards.policy import Arrivals, Claim, Paper, Placement, Places, Sharding, ShardMethod, capped
from tenuto.shards.schedule import SINKS, PageUse, Scheduler, edges, order
from tenuto.shards.selector import Asked, Selector

__all__ = ["READS", "UTILITIES", "Affinity", "Expert", "PiKV", "Router", "Schedule"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expert(Placement):
    """PiKV's placement made sound: expert ``e`` lives on shard ``e mod shards``.

    Attributes:
        slack: what a shard may hold of a row, as a multiple of its share, at least 1.
        experts: how many experts are told apart; a larger number costs nothing but page tables.
    """

    slack: float = 1.25
    experts: int = 256

    def __post_init__(self) -> None:
        if self.page < 1 or self.slack < 1 or self.experts < 1:
            raise PolicyError(
                f"Expert: page={self.page}, slack={self.slack:g}, experts={self.experts}. All must be at least 1."
            )

    @property
    def kinds(self) -> int:
        return self.experts

    @property
    def routed(self) -> bool:
        return True

    def place(self, new: Arrivals, memory: torch.Tensor | None) -> Places:
        if new.experts is None:
            return Places(new.numbers // self.page % new.shards, torch.zeros_like(new.numbers))
        return Places(capped(new.experts % new.shards, new.loads, self.slack), new.experts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Router(Selector):
    """PiKV's rule, for comparison: read the pages of the experts that the query's own router likes.

    A page is worth the router's mean probability of its tokens' experts. In layers without a router before them the
    newest pages are read. The premise, that a token attends to tokens of its own experts, did not hold in our
    measurements (docs/pikv.md).
    """

    @property
    def needs(self) -> tuple[str, ...]:
        return ("experts",)

    def score(self, asked: Asked) -> torch.Tensor:
        experts = asked.summaries.get("experts")
        if asked.router is None or experts is None:
            return asked.newest.float()
        return (experts @ asked.router / asked.counts.clamp(min=1)).clamp(min=1e-30).log()


@dataclass(frozen=True, slots=True, kw_only=True)
class Affinity(Selector):
    """A rule of ours: read the pages whose experts the query's experts attend to.

    Layers without a router before them go by the mean key, or without ``summary`` by age.

    Attributes:
        profile: from :func:`calibrate_affinity`, for the same model.
        summary: add the logit of the mean key; False: the experts alone.
    """

    profile: Profile = field(compare=False, repr=False)
    summary: bool = True

    @property
    def needs(self) -> tuple[str, ...]:
        return ("experts", "total") if self.summary else ("experts",)

    @property
    def learnt(self) -> Profile:
        return self.profile

    def score(self, asked: Asked) -> torch.Tensor:
        table, experts = self.profile.tensors.get(str(asked.layer)), asked.summaries.get("experts")
        known = table is not None and asked.router is not None and experts is not None
        if not known:
            return shared(centroid_logits(asked)).log() if self.summary else asked.newest.float()
        mass = experts @ (asked.router @ table.to(asked.router.device)) / asked.counts.clamp(min=1)  # type: ignore
        prior = mass.clamp(min=1e-30).log()
        return shared(centroid_logits(asked) + prior).log() if self.summary else prior


UTILITIES: dict[str, Callable[[PageUse], torch.Tensor]] = {
    "h2o": lambda use: use.mass,
    "streaming_llm": lambda use: use.newest + 1e9 * (use.oldest < SINKS),
    "quest": lambda use: use.share,
    "flexgen": lambda use: -use.oldest,
    "lru": lambda use: use.last,
    "lru+": lambda use: order(use.last) + 0.5 * order(use.count),
    "adakv": lambda use: 0.5 * order(use.mass) + 0.3 * order(use.last) + 0.2 * order(use.count),
    "duo": lambda use: order(use.mass) + 2 * edges(use),
}
"""What a page is worth, by the name PiKV gives the scheduler. ``flexgen``: a plan made in advance, the first tokens
stay. ``quest``: the selector's score for the last query. ``adakv``, ``duo``: mixtures with fixed weights, which PiKV
adapts or learns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule(Scheduler):
    """Keep some of each shard's full pages in memory.

    Attributes:
        resident: share of a shard's full pages that stay in memory, in (0, 1].
        utility: a name of ``UTILITIES``.
        slack: pages above that which are let be, so that memory is not rearranged at every step.
        lossy: delete instead of demoting, in decoding steps; never the first 4 and last 64 tokens.

    Raises:
        PolicyError: a number or name that is not allowed.
    """

    resident: float = 0.5
    utility: str = "lru"
    slack: int = 4
    lossy: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.resident <= 1 or self.slack < 0:
            raise PolicyError(
                f"Schedule: resident={self.resident:g}, slack={self.slack}. "
                "resident must be in (0, 1], slack 0 or more."
            )
        if self.utility not in UTILITIES:
            raise PolicyError(f"Schedule: utility={self.utility!r} is unknown.{closest(self.utility, UTILITIES)}")

    @property
    def estimated(self) -> bool:
        return self.utility in ("h2o", "quest", "adakv", "duo")

    def worth(self, use: PageUse) -> torch.Tensor:
        return UTILITIES[self.utility](use)


READS = ("all", "router", "affinity")
"""What :class:`PiKV` reads in decoding steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PiKV(ShardMethod):
    """Expert placement, and a selector by experts where it is asked for.

    Attributes:
        page: tokens per page.
        slack: what a shard may hold of a row, as a multiple of its share, at least 1.
        experts: how many experts are told apart.
        read: ``all`` pages, which is exact; those of the query's ``router``; or by ``affinity``, which needs a profile.
        keep: tokens read, as a share of the tokens held, in (0, 1].
        sinks: first tokens, which are always read.
        window: last tokens, which are always read.
        penalty: what a page in a lower tier loses of its score.

    Raises:
        PolicyError: a number or a name that is not allowed.
    """

    page: int = 16
    slack: float = 1.25
    experts: int = 256
    read: str = "all"
    keep: float = 0.125
    sinks: int = 4
    window: int = 32
    penalty: float = 0.0

    paper: ClassVar[Paper] = Paper(
        "PiKV: KV Cache Management System for Mixture of Experts",
        "Dong Liu, Yanxuan Yu, Ben Lengerich, Ying Nian Wu, Xuhong Wang",
        2025,
        "https://arxiv.org/abs/2508.06526",
    )
    claims: ClassVar[tuple[Claim, ...]] = (
        Claim(
            "accuracy, compression and hit rate of the router alone",
            "1.3 to 1.5 % lower, 1.0x, 89 %",
            "Mistral-7B, 4k tokens, A100",
            "authors' README",
        ),
        Claim(
            "accuracy, compression and hit rate with four parts",
            "1.4 to 1.7 % lower, 2.5x to 3.5x, 85 %",
            "Mistral-7B, 4k tokens, A100",
            "authors' README",
        ),
    )
    aliases: ClassVar[Mapping[str, str]] = {
        "expert": "pikv",
        "router": "pikv:read=router",
        "affinity": "pikv:read=affinity",
    }
    trials: ClassVar[tuple[str, ...]] = ("pikv:page=4", "pikv:page=4,read=router,keep=0.3,sinks=2,window=4")
    sweep: ClassVar[tuple[str, ...]] = ("pikv", "pikv:read=router,keep=0.5", "pikv:read=router,keep=0.125")

    def __post_init__(self) -> None:
        if self.read not in READS:
            raise PolicyError(f"{self.name}: read={self.read} is not allowed.{closest(self.read, READS)}")
        self._placement()
        Router(**self._share())

    def _placement(self) -> Expert:
        return Expert(page=self.page, slack=self.slack, experts=self.experts)

    def _share(self) -> dict[str, Any]:
        return {"keep": self.keep, "sinks": self.sinks, "window": self.window, "penalty": self.penalty}

    @property
    def profiled(self) -> bool:
        return self.read == "affinity"

    def compose(self, profile: Profile | None = None) -> Sharding:
        if self.read == "all":
            return Sharding(placement=self._placement())
        if self.read == "router":
            return Sharding(placement=self._placement(), selector=Router(**self._share()))
        if profile is None:
            raise CalibrationError(
                f"{self} needs a profile. Make one with `tenuto calibrate shards`, and give profile=."
            )
        return Sharding(placement=self._placement(), selector=Affinity(profile=profile, **self._share()))
