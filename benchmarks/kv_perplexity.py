"""KIVI on a real model: perplexity against the exact formula in float64, and whether its codes drift.

    python benchmarks/kv_perplexity.py MODEL [--bits 2 --residual 128 --windows 3 --tokens 96 --drift 2000]

Perplexity is teacher-forced on Python's own help (``pydoc_data.topics``): per window a context, then tokens decoded one
at a time, under DynamicCache, under ``kivi``, and under a cache that keeps originals and rounds them anew, in float64,
whenever it is read. ``kivi`` must be within 3 per cent of the last. Groups are of 32 and the residual of 128 tokens, as
in the paper. Drift is over a long generation: codes of the prompt must be the same bytes at its end, and the error of
decoded keys against the originals is printed along the way, and by age.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pydoc_data.topics import topics
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

import tenuto
from tenuto.kv.policies.kivi import Groups, Kivi
from tenuto.kv.policy import Code, KVPolicy

GROUP = 32


def exact(x: torch.Tensor, axis: int, bits: int) -> torch.Tensor:
    """``low + step * round((x - low) / step)`` in groups of 32 along an axis, in float64."""
    groups = x.double().unflatten(axis, (-1, GROUP))
    inside = axis % x.dim() + 1
    low, high = groups.amin(inside, keepdim=True), groups.amax(inside, keepdim=True)
    step = ((high - low) / (2**bits - 1)).clamp(min=1e-30)
    return (low + step * ((groups - low) / step).round()).flatten(axis % x.dim(), inside).to(x.dtype)


class Exact(DynamicCache):
    """Originals are kept, and all but the residual and an unfinished group rounded each time they are read."""

    bits, residual = 2, 128

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **options: Any) -> Any:
        keys, values = super().update(key_states, value_states, layer_idx, *args, **options)
        before = keys.shape[2] - key_states.shape[2]
        old = max(before - self.residual, 0) // GROUP * GROUP
        if not old:
            return keys, values
        rounded = exact(keys[:, :, :old], 2, self.bits), exact(values[:, :, :old], 3, self.bits)
        return torch.cat([rounded[0], keys[:, :, old:]], 2), torch.cat([rounded[1], values[:, :, old:]], 2)


@dataclass(frozen=True, slots=True)
class Watched(Groups):
    """KIVI's codec, which also keeps the original keys."""

    def encode(self, keys: torch.Tensor, values: torch.Tensor, **options: Any) -> Code:
        return Groups.encode(self, keys, values, **options) | {"original": keys.clone()}


def losses(model: Any, cache: Any, ids: torch.Tensor, context: int, name: str) -> torch.Tensor:
    """Cross entropy of each token after the context, decoded one at a time."""
    logits = [model(ids[:, :context], past_key_values=cache, logits_to_keep=1).logits[:, -1]]
    for at in tqdm(range(context, ids.shape[1] - 1), desc=name, leave=False):
        logits.append(model(ids[:, at : at + 1], past_key_values=cache).logits[:, -1])
    return torch.nn.functional.cross_entropy(torch.cat(logits).float(), ids[0, context:], reduction="none")


def perplexities(model: Any, text: torch.Tensor, given: argparse.Namespace) -> dict[str, float]:
    found: dict[str, list[torch.Tensor]] = {"DynamicCache": [], "kivi": [], "exact": []}
    policy = Kivi(bits=given.bits, group=GROUP, residual=given.residual)
    Exact.bits, Exact.residual = given.bits, given.residual
    size = given.context + given.tokens
    for window in range(given.windows):
        start = window * (len(text) - size) // given.windows
        ids = text[None, start : start + size]
        for name, cache in (("DynamicCache", DynamicCache), ("exact", Exact)):
            found[name].append(losses(model, cache(config=model.config), ids, given.context, name))
        with tenuto.attach(model, policy, budget=tenuto.MemoryBudget.keep(1)) as run:
            found["kivi"].append(losses(model, run.cache(), ids, given.context, "kivi"))
    return {name: math.exp(float(torch.cat(parts).mean())) for name, parts in found.items()}


def drift(model: Any, text: torch.Tensor, given: argparse.Namespace, context: int = 256) -> None:
    """Print whether the prompt's codes stay the same, and errors of decoded keys over time and by age."""

    def state() -> tuple[list[dict[str, bytes]], torch.Tensor]:
        """Codes of the prompt, and the error of each encoded key ``[layers and heads, entries]``."""
        codes, errors = [], []
        for layer in cache.engine:
            for encoded in layer.held.encoded:
                code, count = encoded.code, len(encoded)
                error = codec.keys(code, 0, count, torch.float32) - code["original"]
                errors.append(error.norm(dim=-1) / code["original"].norm(dim=-1))
                first = {name: code[name][: pages * GROUP] for name in ("keys", "values", "page")}
                first |= {"scales": code["key_scales"][:pages], "own": code["value_scales"][:, :, : pages * GROUP]}
                codes.append({name: part.contiguous().numpy().tobytes() for name, part in first.items()})
        return codes, torch.stack(errors)

    codec, pages = Watched(given.bits, GROUP, given.residual), (context - given.residual) // GROUP
    with tenuto.attach(model, KVPolicy(codec=codec), budget=tenuto.MemoryBudget.keep(1)) as run:
        model(text[None, :context], past_key_values=(cache := run.cache()), logits_to_keep=1)
        before, error = state()
        print(f"drift: error of the prompt's decoded keys {error.mean():.6f} after the prompt", end="")
        for at in tqdm(range(given.drift), desc="drift", leave=False):
            model(text[None, context + at : context + at + 1], past_key_values=cache)
            if (at + 1) % (given.drift // 4) == 0:
                print(f", {state()[1][:, : pages * GROUP].mean():.6f} after {at + 1} tokens", end="")
        after, error = state()
    print(f"; their codes are {'the same bytes' if before == after else 'NOT THE SAME'}")
    quarters = [f"{part.mean():.4f}" for part in error.chunk(4, 1)]
    print(f"drift: error of all {error.shape[1]} encoded keys by age, oldest quarter first: {', '.join(quarters)}")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model folder")
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--residual", type=int, default=128)
    parser.add_argument("--windows", type=int, default=3, help="pieces of text")
    parser.add_argument("--context", type=int, default=1024, help="tokens of context in each")
    parser.add_argument("--tokens", type=int, default=96, help="decoded tokens in each")
    parser.add_argument("--drift", type=int, default=2000, help="decoded tokens, a multiple of four; 0: leave it out")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(given.model, model_max_length=10**9)
    text = torch.tensor(tokenizer("\n\n".join(topics[name] for name in sorted(topics))[:200_000])["input_ids"])
    found = perplexities(model, text, given)
    for name, value in found.items():
        print(f"{name:14} perplexity {value:8.4f}  {value / found['exact'] - 1:+.3%} of exact")
    if given.drift:
        drift(model, text, given)


if __name__ == "__main__":
    main()
