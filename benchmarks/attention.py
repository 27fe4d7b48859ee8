"""Attentions side by side: the same text, steps and number of parameters, several seeds.

    python benchmarks/attention.py --out build/attention                # size cpu, three seeds
    python benchmarks/attention.py --size gpu --seeds 0 --out build/gpu

Trains every attention with every seed, one after the other, then measures all of them and prints the tables. Both go on
where they were stopped. Models are in OUT/models, records in OUT/runs (``tenuto report OUT/runs``).
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from tqdm import tqdm

from tenuto.eval.attentiontable import attention_tables
from tenuto.eval.minilm import canonical, read_size
from tenuto.eval.records import file_name
from tenuto.eval.tasks.attention import AttentionJob, bench
from tenuto.eval.training import Training, train


def attentions(context: int) -> list[str]:
    """What is compared: MKA with a window of an eighth of the context, what it must beat, then all others and MKA with
    a level off. ``mqa`` holds more bytes than MKA at four times the context, ``mha`` six times as many."""
    window = f"window={context // 8}"
    levels = f"mka:{window},chunk={context // 32},crowd=28"
    return [
        f"{levels},recall=2",
        f"window:{window}",
        "mqa",
        "mha",
        "fastmka",
        f"pi:{window},stride={context // 16},coprime=true",
        f"{levels},recall=0",
        f"{levels},recall=2,horizons=0",
        f"{levels},recall=4",
        "short_conv",
        "gqa",
        "mla",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", default="cpu")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--attentions", help="apart by semicolons; otherwise the list in this file")
    parser.add_argument("--baselines", default="mha;mqa;window:window=64", help="apart by semicolons; if trained")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    names = given.attentions.split(";") if given.attentions else attentions(read_size(given.size).context)
    texts = list(dict.fromkeys(map(canonical, names)))
    folders = []
    pairs = [(text, int(seed)) for seed in given.seeds.split(",") for text in texts]
    for text, seed in tqdm(pairs, desc="trainings", disable=None):
        folder = given.out / "models" / f"{file_name(text)}-{seed}"
        asked = Training(
            attention=text, seed=seed, steps=given.steps, size=given.size, device=given.device, threads=given.threads
        )
        train(asked, folder)
        folders.append(folder)
    command = shlex.join(["python", "benchmarks/attention.py", *sys.argv[1:]])
    runs = bench(folders, given.out / "runs", AttentionJob(), device=given.device, command=command)
    print(attention_tables(runs, [name for name in given.baselines.split(";") if name in texts]))


if __name__ == "__main__":
    main()
