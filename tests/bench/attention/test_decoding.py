from __future__ import annotations

import pytest
import torch

from tenuto.bench.attention.decoding import decoding
from tenuto.errors import InputError
from tenuto.train.minilm import SIZES, build

TINY = SIZES["tiny"]


@pytest.mark.usefixtures("one_thread")
def test_bytes_are_those_of_the_caches() -> None:
    models = {name: build(name, TINY, 300, seed=0).eval() for name in ("mha", "mqa", "mla", "window:window=8")}
    text = torch.randint(300, (700,), generator=torch.Generator().manual_seed(0))
    found = decoding(models, text, [40, 600], repeats=3)
    per_token = {"mha": 2 * 32, "mqa": 2 * 8, "mla": 16 + 4}  # numbers per layer: keys and values, or a latent
    for name, numbers in per_token.items():
        assert [decode.held["device"] for decode in found[name]] == [t * 2 * numbers * 4 for t in (40, 600)]
    first, last = found["window:window=8"]
    assert first.held == last.held and first.held["device"] < found["mha"][0].held["device"]
    assert all(len(d.seconds) == 3 and d.milliseconds > 0 for decodes in found.values() for d in decodes)
    with pytest.raises(InputError, match="must rise"):
        decoding(models, text, [40, 42], repeats=3)
    with pytest.raises(InputError, match="shorter contexts"):
        decoding(models, text, [698], repeats=3)
