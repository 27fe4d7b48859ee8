"""kvpress (https://github.com/NVIDIA/kvpress) behind a pipe: it needs an older transformers than ours, so its own venv.

    PYTHONPATH=benchmarks VENV/bin/python -m kv_peers.kvpress_side --model DIR

Reads one JSON object a line from standard input, ``{"press": NAME, "keep": 0.25, "request": ...}``, and writes one a
line: the answers, or ``{"error": ...}`` in kvpress's own words. The first line tells its versions.

The steps are those of its own pipeline: the press is on for the context alone, questions keep their true positions and
stay whole, the cache is cropped after each. What differs: token ids instead of texts, and no chat template, so KVzip is
told that there is none; its tokenizer, which it reads anew for every context, is read once and not in the timings.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from importlib.metadata import version
from time import process_time
from typing import Any

import torch

from kv_peers.answering import REFUSALS, Answers, Asked, Decoder, Request

__all__ = ["PRESSES", "answer"]

Press = Callable[[Any], AbstractContextManager[None]]

PRESSES: dict[str, Callable[[Any, float], Press]] = {
    "knorm": lambda k, keep: k.KnormPress(1 - keep),
    "snapkv": lambda k, keep: k.SnapKVPress(1 - keep, window_size=64, kernel_size=5),
    "streaming_llm": lambda k, keep: k.StreamingLLMPress(1 - keep, n_sink=4),
    "expected_attention": lambda k, keep: k.ExpectedAttentionPress(1 - keep),
    "pyramidkv": lambda k, keep: k.PyramidKVPress(1 - keep, window_size=64, kernel_size=5, beta=20),
    "adakv_expected_attention": lambda k, keep: k.AdaKVPress(k.ExpectedAttentionPress(1 - keep, epsilon=1e-2)),
    "adakv_snapkv": lambda k, keep: k.AdaKVPress(k.SnapKVPress(1 - keep, window_size=64, kernel_size=5)),
    "kvzip": lambda k, keep: k.KVzipPress(1 - keep),
    "think": lambda k, keep: k.ThinKPress(0.5, window_size=32),
}
"""Its presses by the names used here; ``keep`` is the fraction of tokens. ThinK prunes half of the key channels."""


def _tensors(cache: Any) -> list[torch.Tensor]:
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def _crop(cache: Any, lengths: list[int]) -> None:
    for layer, length in zip(cache.layers, lengths, strict=True):
        layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]


def answer(model: Any, press: Press, request: Request) -> Answers:
    """Compress a context with a press, then ask. Bytes are those of the keys and values by their shapes: what a
    head-wise press masks is still held, the lists of what it masks are not counted."""
    from transformers import DynamicCache

    ids, cache = request.ids(), DynamicCache()
    for layer in model.model.layers:
        layer.self_attn.masked_key_indices = None  # of the example before
    start = process_time()
    with press(model):
        model.model(input_ids=ids, past_key_values=cache)
    prefill = process_time() - start
    held = sum(tensor.nbytes for tensor in _tensors(cache))
    lengths, decoder = [layer.keys.shape[2] for layer in cache.layers], Decoder(request.ends)

    def write(asked: Asked) -> list[int]:
        position = ids.shape[1]

        def step(new: torch.Tensor) -> torch.Tensor:
            nonlocal position
            where = torch.arange(position, position + new.shape[1])[None]
            position += new.shape[1]
            told = model(input_ids=new, past_key_values=cache, position_ids=where, logits_to_keep=1)
            logits: torch.Tensor = told.logits[0, -1]
            return logits

        found = decoder.write(step, asked)
        _crop(cache, lengths)
        return found

    tokens = [write(asked) for asked in request.questions]
    return Answers(tokens=tokens, bytes_held=held, prefill_s=prefill, decode_ms=decoder.milliseconds)


class _Tokenizers:
    """Stands in for ``AutoTokenizer`` in KVzip: the one that was read already, without a chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        tokenizer.chat_template = None

    def from_pretrained(self, *_: object) -> Any:
        return self.tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    folder = parser.parse_args().model
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    import kvpress
    import kvpress.presses.kvzip_press as kvzip
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    kvzip.AutoTokenizer = _Tokenizers(AutoTokenizer.from_pretrained(folder, local_files_only=True))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True).eval()
    print(json.dumps({name: version(name) for name in ("kvpress", "transformers", "torch")}), file=told, flush=True)
    for line in sys.stdin:
        given = json.loads(line)
        asked = [Asked(**question) for question in given["request"].pop("questions")]
        request = Request(questions=asked, **given["request"])
        try:
            reply = asdict(answer(model, PRESSES[given["press"]](kvpress, given["keep"]), request))
        except REFUSALS as error:
            reply = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        print(json.dumps(reply), file=told, flush=True)


if __name__ == "__main__":
    main()
