"""Our policies: the context is compressed alone, each question asked on a fork of it and, like its answer, kept whole
as in kvpress."""

from __future__ import annotations

from time import process_time
from typing import Any

import torch

from kv_peers.answering import Answers, Asked, Decoder, Request
from tenuto import attach, catalog
from tenuto.budget import MemoryBudget

__all__ = ["answer"]


@torch.no_grad()
def answer(model: Any, policy: str, budget: MemoryBudget, request: Request) -> Answers:
    """Compress a context under a policy, then ask."""
    decoder = Decoder(request.ends)
    with attach(model, catalog.parse(policy, "kv"), budget=budget) as run:
        cache = run.cache()
        start = process_time()
        model.model(input_ids=request.ids(), past_key_values=cache)
        prefill = process_time() - start
        held = cache.bytes_held

        def write(asked: Asked) -> list[int]:
            fork = cache.fork()

            def step(new: torch.Tensor) -> torch.Tensor:
                logits: torch.Tensor = model(input_ids=new, past_key_values=fork, logits_to_keep=1).logits[0, -1]
                return logits

            with run.whole():
                return decoder.write(step, asked)

        tokens = [write(asked) for asked in request.questions]
    return Answers(tokens=tokens, bytes_held=held, prefill_s=prefill, decode_ms=decoder.milliseconds)
