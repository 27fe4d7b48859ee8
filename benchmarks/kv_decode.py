"""What decoding one token costs under a KV policy, against transformers' own DynamicCache.

    python benchmarks/kv_decode.py [--context 4096 --tokens 8 --repeats 5 --policies kivi:bits=4,snapkv@0.25]

Per policy one line: CPU milliseconds of one thread per decoded token, and their ratio to DynamicCache's, median and
range of repeats taken in turn. ``policy@keep`` says how much of the cache is kept; without, all of it is. This is about
cost, not about text: unless ``--model`` names a folder, weights are random, in the shape of SmolLM2-135M (30 layers, 9
query and 3 KV heads of 64 channels).
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from contextlib import nullcontext
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, LlamaForCausalLM

import tenuto
from tenuto.catalog import parse

EVICTING = ("snapkv", "adakv", "streaming_llm", "knorm", "expected_attention")
ENCODING = ("kivi:bits=4", "kivi:bits=2", "zipcache", "mikv")
POLICIES = [*(f"{name}@0.25" for name in EVICTING), *ENCODING]


def load(folder: str | None) -> Any:
    """The model of a folder, or random weights in the shape of SmolLM2-135M; float32."""
    if folder:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2**17,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


class Row:
    """One cache that goes on growing: DynamicCache, or a policy's (``text``, for example ``snapkv@0.25``)."""

    def __init__(self, model: Any, text: str | None, prompt: torch.Tensor) -> None:
        self.model, self.name = model, text or "DynamicCache"
        name, _, keep = (text or "").partition("@")
        self.policy = parse(name, "kv") if text else None
        self.budget = tenuto.MemoryBudget.keep(float(keep or 1))
        self.token = prompt[:, -1:]
        with self.attached() as run:
            self.cache = run.cache() if run else DynamicCache(config=model.config)
            model(prompt, past_key_values=self.cache, logits_to_keep=1)

    def attached(self) -> Any:
        return tenuto.attach(self.model, self.policy, budget=self.budget) if self.policy else nullcontext()

    def decode(self, count: int) -> float:
        """CPU milliseconds per token of so many more; the first one after a switch is not timed."""
        with self.attached():
            self.model(self.token, past_key_values=self.cache)
            start = time.process_time()
            for _ in range(count):
                self.model(self.token, past_key_values=self.cache)
            return 1000 * (time.process_time() - start) / count


def line(name: str, times: list[float], base: list[float]) -> str:
    ratios = [mine / other for mine, other in zip(times, base, strict=True)]
    spans = [(statistics.median(x), min(x), max(x)) for x in (times, ratios)]
    return f"{name:28} {spans[0][0]:8.1f} ({spans[0][1]:.1f}-{spans[0][2]:.1f}) ms  " + (
        f"{spans[1][0]:6.2f} ({spans[1][1]:.2f}-{spans[1][2]:.2f}) of DynamicCache"
    )


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=4096, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=8, help="decoded tokens per repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--policies", default=",".join(POLICIES), help="texts with commas between")
    parser.add_argument("--model", help="a model folder; by default random weights")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = load(given.model)
    prompt = torch.randint(0, model.config.vocab_size, (1, given.context))
    texts = re.split(r",(?!\w+=)", given.policies)
    rows = [Row(model, text, prompt) for text in (None, *texts)]
    times: list[list[float]] = [[] for _ in rows]
    for _ in range(given.repeats):
        for row, mine in zip(rows, times, strict=True):
            mine.append(row.decode(given.tokens))
    print(f"{given.context} tokens of context, {given.tokens} tokens a repeat, {given.repeats} repeats, one thread")
    for row, mine in zip(rows, times, strict=True):
        print(line(row.name, mine, times[0]))


if __name__ == "__main__":
    main()
