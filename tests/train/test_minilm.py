from __future__ import annotations

import pytest

from tenuto.errors import InputError, PolicyError
from tenuto.train.minilm import SIZES, build, canonical, parameters, read_size

TINY = SIZES["tiny"]


ATTENTIONS = [
    "mha",
    "mqa",
    "gqa",
    "gqa:kv_heads=2",
    "mla",
    "mla:rank=16",
    "olmoe",
    "olmoe:experts=4",
    "window:window=8",
    "short_conv+window:window=8",
    "short_conv+mqa",
    "short_conv:kernel=2+gqa:kv_heads=2",
]


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_attention_has_the_same_budget(attention: str) -> None:
    model = build(attention, TINY, 300, seed=0)
    assert parameters(model) == pytest.approx(parameters(build("mha", TINY, 300, seed=0)), rel=0.02)


def test_the_seed_decides_the_weights() -> None:
    one, same, other = (build("mha", TINY, 300, seed).model.embed_tokens.weight for seed in (1, 1, 2))
    assert one.equal(same) and not one.equal(other)


def test_what_cannot_be_built_is_refused() -> None:
    for wrong in ("gqa:heads=2", "mha:kv_heads=2", "mla:rank=x", "gqa:kv_heads=0"):
        with pytest.raises(PolicyError):
            canonical(wrong)
    with pytest.raises(PolicyError, match="gqa, mha, mka, mla, mqa, olmoe, pi_attention"):
        canonical("mah")
    with pytest.raises(PolicyError, match="attends by itself"):
        canonical("window:window=8+short_conv")
    with pytest.raises(PolicyError, match="Did you mean 'mqa'"):
        canonical("short_conv+mqqa")
    with pytest.raises(PolicyError, match="mha is a model's own attention"):
        canonical("short_conv+mha+mka")
    assert canonical("window:sinks=4,window=8") == "window:window=8"
    assert canonical("short_conv:kernel=4+window:sinks=4,window=8") == "short_conv+window:window=8"
    assert canonical("short_conv:kernel=4+mqa") == "short_conv+mqa"
    with pytest.raises(InputError, match="does not divide the 4 heads"):
        build("gqa:kv_heads=3", TINY, 300, seed=0)
    with pytest.raises(InputError, match="does not divide the 96 neurons"):
        build("olmoe:experts=7", TINY, 300, seed=0)
    with pytest.raises(InputError, match="cpu, gpu, moe, tiny"):
        read_size("huge")
