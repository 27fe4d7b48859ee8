"""Expert affinity: how much attention tokens of one expert pay to tokens of another, learnt in one pass over a text.

``A[e_q, e_k]`` is the attention mass per older token, by the expert the router of the layer before liked best for the
query and for the key. Which experts attend to which is not the router's probability: a pair may carry signal where
"my own experts" carries none. The table is a prior; with ``summary`` it is added to the logits of mean keys.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch

from tenuto.calibration import Profile, fingerprint
from tenuto.errors import AttachError
from tenuto.kv.index import shared
from tenuto.kv.models import find_layout
from tenuto.shards.routes import Routes
from tenuto.shards.selector import Asked, Selector
from tenuto.shards.summary import centroid_logits

__all__ = ["NAME", "Affinity", "calibrate_affinity"]

AWAY = 16
"""Tokens nearer than this to the query do not count: they are read anyway."""
NAME = "shards"
"""Of profiles: ``tenuto calibrate shards`` makes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Affinity(Selector):
    """Read the pages whose experts the query's experts attend to. Layers without a router before them go by the mean
    key, or without ``summary`` by age.

    Attributes:
        profile: from :func:`calibrate_affinity`, for the same model.
        summary: add the logit of the mean key; False: the experts alone.
    """

    profile: Profile = field(compare=False, repr=False)
    summary: bool = True

    @property
    def needs(self) -> tuple[str, ...]:
        return ("experts", "total") if self.summary else ("experts",)

    def score(self, asked: Asked) -> torch.Tensor:
        table, experts = self.profile.tensors.get(str(asked.layer)), asked.summaries.get("experts")
        known = table is not None and asked.router is not None and experts is not None
        if not known:
            return shared(centroid_logits(asked)).log() if self.summary else asked.newest.float()
        mass = experts @ (asked.router @ table.to(asked.router.device)) / asked.counts.clamp(min=1)  # type: ignore
        prior = mass.clamp(min=1e-30).log()
        return shared(centroid_logits(asked) + prior).log() if self.summary else prior


def calibrate_affinity(model: Any, ids: torch.Tensor) -> Profile:
    """Learn the tables from one text, ``ids [1, tokens]``; some hundred tokens at least.

    All attention of the text is held at once: layers x heads x tokens x tokens float32.

    Raises:
        AttachError: the model has no routers.
    """
    layout, before = find_layout(model), model.config._attn_implementation
    routes = Routes(layout.blocks)
    if not routes.gates:
        raise AttachError(f"{type(model).__name__} has no routers: affinity is for mixtures of experts.")
    with ExitStack() as stack:
        routes.listen(stack)
        model.set_attn_implementation("eager")
        stack.callback(model.set_attn_implementation, before)
        with torch.no_grad():
            attentions = model(ids, output_attentions=True, use_cache=False, logits_to_keep=1).attentions
    tokens, tables = ids.shape[1], {}
    old = torch.ones(tokens, tokens, device=ids.device).tril(-AWAY)
    for number, attention in enumerate(attentions):
        probs = routes.before(number)
        if probs is None or layout.layers[number].site is None:
            continue
        hot = torch.nn.functional.one_hot(probs.argmax(-1), probs.shape[-1]).float()
        mass = hot.T @ (attention[0].float().mean(0) * old) @ hot
        pairs = hot.T @ old @ hot
        mean = float(mass.sum() / pairs.sum().clamp(min=1))
        tables[str(number)] = (mass + 8 * mean) / (pairs + 8)  # rare pairs lean to the mean
    settings = {"tokens": tokens, "away": AWAY}
    return Profile(policy=NAME, fingerprint=fingerprint(layout.decoder), settings=settings, tensors=tables)
