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
    """What is compared: plain attentions, windows of a quarter of the context, and memories around such a window."""
    window, chunk = context // 4, context // 16
    levels = f"mka:window={window},chunk={chunk}"
    return [
        "mha",
        "gqa",
        "mqa",
        "mla",
        f"window:window={window}",
        f"{levels},recall=2",
        f"{levels},recall=0",
        "short_conv",
        "fastmka",
        f"pi:window={window},stride={chunk}",
        f"pi:window={window},stride={chunk},coprime=true",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", default="cpu")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--attentions", help="apart by semicolons; otherwise the list in this file")
    parser.add_argument("--baselines", default="mha;gqa", help="apart by semicolons; those that were trained are used")
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
