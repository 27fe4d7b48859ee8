"""How exact sharding is on SmolLM2 as a mixture of experts: tokens and logits against the model's own cache.

    python benchmarks/pikv_exact.py [--shards 1,2,4 --dtypes float32,float64 --steps 64]
    torchrun --nproc-per-node 4 benchmarks/pikv_exact.py      # shards on ranks, over gloo

Four prompts of different lengths in one batch, padded on the left, written on greedily. Beside it, in float32, what
transformers' eager and SDPA attention differ by on the same tokens.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import torch
import torch.distributed as dist
from transformers.utils import logging

from tenuto.bench.likelihood import text_of
from tenuto.bench.shards.bench import as_mixture
from tenuto.shards import Expert, RoundRobin, open_mesh, shard
from tenuto.zoo.language import load_language

LENGTHS = (96, 61, 33, 7)


def padded(language: Any) -> dict[str, torch.Tensor]:
    """The beginnings of four texts, as a batch."""
    width = max(LENGTHS)
    rows = [text_of(language, seed, length)[0] for seed, length in enumerate(LENGTHS)]
    ids = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0)) for row in rows])
    mask = torch.stack([(torch.arange(width) >= width - length).long() for length in LENGTHS])
    return {"input_ids": ids, "attention_mask": mask}


def written(model: Any, given: dict[str, torch.Tensor], steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens, and logits ``[rows, steps, vocabulary]``."""
    count = {"max_new_tokens": steps, "min_new_tokens": steps, "do_sample": False}
    out = model.generate(**given, **count, return_dict_in_generate=True, output_logits=True)
    return out.sequences, torch.stack(out.logits, 1)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", default="1,2,4", help="in one process; under torchrun it is one per rank")
    parser.add_argument("--dtypes", default="float32,float64")
    for name, value in {"steps": 64, "experts": 16, "top-k": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    mesh = open_mesh(ranks) if ranks > 1 else None
    language = load_language("bundled:smollm2", "cpu")
    as_mixture(language, given.experts, given.top_k)
    asked, first = padded(language), not mesh or not dist.get_rank()
    if first:
        print("| numbers | placement | shards | same tokens | largest change of a logit | of the largest logit |")
        print("|---|---|---|---|---|---|", flush=True)
    for dtype in given.dtypes.split(","):
        model = language.model.to(getattr(torch, dtype))
        said, logits = written(model, asked, given.steps)
        wholes = [ranks] if mesh else [int(number) for number in given.shards.split(",")]
        for placement in (RoundRobin(), Expert()):
            for shards in wholes:
                with shard(model, placement, **({"mesh": mesh} if mesh else {"shards": shards})):
                    ids, found = written(model, asked, given.steps)
                gap, same = float((found - logits).abs().max()), bool(torch.equal(ids, said))
                name, told = type(placement).__name__, "yes" if same else "no"
                if first:
                    share = gap / float(logits.abs().max())
                    print(f"| {dtype} | {name} | {shards} | {told} | {gap:.1e} | {share:.1e} |", flush=True)
        if first and dtype == "float32":
            print(f"| {dtype} | transformers: eager against SDPA | | | {_own(model, asked, said):.1e} | |", flush=True)
    if mesh:
        dist.destroy_process_group()


def _own(model: Any, asked: dict[str, torch.Tensor], said: torch.Tensor) -> float:
    """The largest difference of a logit between two attentions of transformers, given the same tokens."""
    steps = said.shape[1] - asked["attention_mask"].shape[1]
    mask = torch.nn.functional.pad(asked["attention_mask"], (0, steps), value=1)
    places, before, logits = (mask.cumsum(-1) - 1).clamp(min=0), model.config._attn_implementation, []
    for way in ("eager", "sdpa"):
        model.set_attn_implementation(way)
        told = model(said, attention_mask=mask, position_ids=places, logits_to_keep=steps + 1)
        logits.append(told.logits[:, :-1])
    model.set_attn_implementation(before)
    return float((logits[0] - logits[1]).abs().max())


if __name__ == "__main__":
    main()
