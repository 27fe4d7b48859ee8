"""Learns which experts' tokens attend to which, in one pass over a text: the profile of a selector by experts.

``A[e_q, e_k]`` is the attention mass per older token, by the expert the router of the layer before liked best for the
query and for the key. Which experts attend to which is not the router's probability: a pair may carry signal where
"my own experts" carries none.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch

from tenuto.calibration import Profile, fingerprint
from tenuto.errors import AttachError
from tenuto.kv.models import find_layout
from tenuto.shards.routes import Routes

__all__ = ["NAME", "calibrate_affinity"]

AWAY = 16
"""Tokens nearer than this to the query do not count: they are read anyway."""
NAME = "shards"
"""Of profiles: ``tenuto calibrate shards`` makes them."""


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
