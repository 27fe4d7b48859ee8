"""Which of PiKV's ideas help: perplexity where a decoding step reads few tokens, placements x selectors.

    python benchmarks/pikv.py [MODEL] [--context 1024 --tokens 64 --texts 2 --keep 0.125 --top-k 16]

Real text, teacher-forced; every text is one row. A mixture of experts is measured as it is. A dense model (SmolLM2)
becomes a mixture of 16 experts per layer (an exact partition of its MLPs, tenuto.zoo.mixture); ``--top-k 16`` leaves
its output what it was, fewer change it, and the reference is always the same model reading everything, in one plain
forward pass. Texts are prose, or with ``--held-out`` documents that models of ``tenuto train mini-lm`` were not trained
on.
``--keep`` counts all tokens read, sinks and window too. Each placement reads the context once; every selector starts
from a copy. KL is the mean Kullback-Leibler divergence from the reference's distributions, in nats: far less noisy than
perplexity on so few tokens.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tenuto.bench.likelihood import text_of
from tenuto.kv.models import find_layout
from tenuto.shards import Affinity, Expert, KeyCluster, RoundRobin, Router, Summary, calibrate_affinity, shard
from tenuto.shards.routes import Routes
from tenuto.shards.selector import Asked, Selector
from tenuto.train.tokens import prepare
from tenuto.train.training import read_log
from tenuto.zoo.language import load_language
from tenuto.zoo.mixture import partition

EXPERTS, FITTED = 16, 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Everything(Selector):
    """Reads all pages, and has every summary made."""

    keep: float = 1.0

    @property
    def needs(self) -> tuple[str, ...]:
        return ("total", "least", "most", "experts")

    def score(self, asked: Asked) -> torch.Tensor:
        return asked.newest.float()


@dataclass(frozen=True, slots=True, kw_only=True)
class Random(Selector):
    """Pages drawn anew at every step."""

    def score(self, asked: Asked) -> torch.Tensor:
        return torch.rand(len(asked.counts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Newest(Selector):
    """A sliding window: the newest pages."""

    def score(self, asked: Asked) -> torch.Tensor:
        return asked.newest.float()


def scored(run: Any, cache: Any, selector: Selector, ids: torch.Tensor, context: int) -> dict[str, Any]:
    """Mean negative log-likelihood of what follows the context, and what was read."""
    plan = run.plan
    run.plan = replace(plan, selector=selector)
    cache = copy.deepcopy(cache)
    cache.plan = run.plan
    for layer in cache.engine:
        layer.plan = run.plan
    start, said = time.perf_counter(), []
    for at in range(context, ids.shape[1] - 1):
        logits = run.model(ids[:, at : at + 1], past_key_values=cache).logits[:, -1]
        said.append(logits.float().log_softmax(-1))
    seconds = (time.perf_counter() - start) / len(said)
    facts, run.plan = run.summary(), plan
    found = torch.stack(said, 1)
    loss = -found.gather(-1, ids[:, context + 1 :, None]).mean()
    return {"said": found, "loss": float(loss), "seconds": seconds, **facts}


def texts_of(language: Any, count: int, tokens: int, held_out: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts to measure on ``[count, tokens]``, and another one to fit on ``[1, FITTED]``."""
    if not held_out:
        return torch.cat([text_of(language, seed, tokens) for seed in range(count)]), text_of(language, 99, FITTED)
    told, text = read_log(Path(language.name)), prepare()
    if told.digest != text.digest:
        raise SystemExit("The model was trained on another text than is installed now: held-out documents may not be.")
    documents = [row.long() for row in text.held if len(row) >= max(tokens, FITTED)]
    documents = documents[:: max(len(documents) // (count + 1), 1)][: count + 1]  # of all kinds
    return torch.stack([row[:tokens] for row in documents[1:]]), documents[0][None, :FITTED]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="bundled:smollm2")
    for name, value in {"context": 1024, "tokens": 64, "texts": 2, "top-k": EXPERTS, "page": 16, "window": 32}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--keep", type=float, default=0.125)
    parser.add_argument("--placements", default="round_robin,key_cluster,expert")
    parser.add_argument("--selectors", default="all,newest,random,router,affinity alone,affinity,centroid,bound,both")
    parser.add_argument("--held-out", action="store_true")
    given = parser.parse_args()
    torch.manual_seed(0)
    language = load_language(given.model)
    ids, fitting = texts_of(language, given.texts, given.context + given.tokens + 1, given.held_out)
    plain = language.model(ids[:1], use_cache=False).logits[0, given.context : -1].float()
    before = float(torch.nn.functional.cross_entropy(plain, ids[0, given.context + 1 :]))
    if not Routes(find_layout(language.model).blocks).gates:
        partition(language.model, fitting, EXPERTS, given.top_k)
    profile = calibrate_affinity(language.model, fitting)
    few: dict[str, Any] = {"keep": given.keep, "window": given.window}
    selectors: dict[str, Selector] = {
        "all": Everything(),
        "newest": Newest(**few),
        "random": Random(**few),
        "router": Router(**few),
        "affinity alone": Affinity(profile=profile, summary=False, **few),
        "affinity": Affinity(profile=profile, **few),
        "centroid": Summary(**few),
        "bound": Summary(by="bound", **few),
        "both": Summary(by="both", **few),
    }
    made = {
        "round_robin": RoundRobin(page=given.page),
        "key_cluster": KeyCluster(page=given.page),
        "expert": Expert(page=given.page),
    }
    print(f"{given.texts} texts, {given.context} tokens of context, {given.tokens} predicted, keep {given.keep:g}")
    print(f"model as it was given, text 0: perplexity {math.exp(before):.3f}")
    print("| placement | selector | perplexity | against all | KL | tokens read | dropped mass | balance | s/step |")
    print("|---|---|---|---|---|---|---|---|---|")
    whole = language.model(ids, use_cache=False).logits[:, given.context : -1].float().log_softmax(-1)
    loss = -float(whole.gather(-1, ids[:, given.context + 1 :, None]).mean())
    for name in given.placements.split(","):
        with shard(language.model, made[name], shards=4, selector=Everything()) as run:
            cache = run.cache()
            language.model(ids[:, : given.context], past_key_values=cache, logits_to_keep=1)
            for label, selector in selectors.items():
                if label not in given.selectors.split(","):
                    continue
                facts = scored(run, cache, selector, ids, given.context)
                gap = float((whole.exp() * (whole - facts["said"])).sum(-1).mean())
                worse = math.exp(facts["loss"] - loss) - 1
                read = facts["tokens_read"] / facts["tokens_held"]
                print(
                    f"| {name} | {label} | {math.exp(facts['loss']):.3f} | {worse:+.1%} | {gap:.4f} | {read:.1%} "
                    f"| {facts['dropped_mass'] or 0:.3f} | {facts['balance']:.2f} | {facts['seconds']:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
