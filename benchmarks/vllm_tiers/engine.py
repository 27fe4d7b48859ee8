"""One vLLM engine behind a pipe, in the interpreter of its own venv.

    VENV/bin/python benchmarks/vllm_tiers/engine.py '{"model": DIR, "dtype": "bfloat16", "connector": {...} or null}'

Prints the seconds it took to start, then reads one JSON object a line, ``{"ids": [...], "tokens": 1}``, and writes one:
seconds to the last of these tokens, token ids, text, log-probabilities of the most likely first tokens, and how many
prompt tokens did not have to be computed. Ends with its standard input.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

TOP = 20


def answer(engine: Any, sampling: Any, ids: list[int], tokens: int) -> dict[str, Any]:
    """One greedy completion."""
    start = time.perf_counter()
    (request,) = engine.generate(
        [{"prompt_token_ids": ids}],
        sampling(max_tokens=tokens, temperature=0.0, logprobs=TOP, ignore_eos=True),
        use_tqdm=False,
    )
    seconds = time.perf_counter() - start
    (told,) = request.outputs
    first = told.logprobs[0] if told.logprobs else {}
    return {
        "seconds": seconds,
        "tokens": list(told.token_ids),
        "text": told.text,
        "logprobs": {str(token): found.logprob for token, found in first.items()},
        "cached": request.num_cached_tokens or 0,
        "finish": told.finish_reason,
    }


def main() -> None:
    given = json.loads(sys.argv[1])
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    from vllm import LLM, SamplingParams

    start = time.perf_counter()
    engine = LLM(
        model=given["model"],
        dtype=given.get("dtype", "bfloat16"),
        max_model_len=2048,
        block_size=given.get("block_size"),
        enforce_eager=True,
        kv_cache_memory_bytes=2**29,
        tensor_parallel_size=given.get("tp", 1),
        kv_transfer_config=given.get("connector"),
    )
    print(json.dumps({"started": time.perf_counter() - start}), file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        told = answer(engine, SamplingParams, request["ids"], request.get("tokens", 1))
        print(json.dumps(told), file=replies, flush=True)
        if pause := request.get("pause"):
            time.sleep(pause)
    engine.llm_engine.engine_core.shutdown(timeout=60.0)


if __name__ == "__main__":
    main()
