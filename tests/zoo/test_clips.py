"""The video model's prompts, and clips that depend on their own seed and prompt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tenuto.errors import ModelError
from tenuto.zoo.clips import CLASSES, MOTIONS, PROMPTS, TOKEN_WIDTH, class_of, motion_of, tokens
from tenuto.zoo.pipelines import ClipModel, load_model

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_prompt_is_a_class_and_a_motion() -> None:
    prompts = torch.arange(PROMPTS)
    named = set(zip(class_of(prompts).tolist(), motion_of(prompts).tolist(), strict=True))
    assert named == {(kind, motion) for kind in range(CLASSES) for motion in range(len(MOTIONS))}
    assert len({tuple(given.flatten().tolist()) for given in tokens(prompts)}) == PROMPTS


def test_tokens_are_one_hot_and_the_null_ones_are_no_prompts() -> None:
    given = tokens([13, 13], torch.tensor([True, False]))
    assert given.shape == (2, 2, TOKEN_WIDTH)
    assert given.argmax(2).tolist() == [[3, CLASSES + 1], [TOKEN_WIDTH - 2, TOKEN_WIDTH - 1]]
    assert given.sum(2).tolist() == [[1, 1], [1, 1]]
    assert not tokens(range(PROMPTS))[..., -2:].any()


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_clip_depends_on_its_seed_and_prompt_only(tiny_clips: Path, guidance: float) -> None:
    model = load_model(str(tiny_clips), "cpu")
    assert isinstance(model, ClipModel)
    together = model.draw([0, 31], [5, 6], 3, guidance)
    assert together.shape == (2, 8, 1, 32, 32)
    assert 0 <= together.min() < together.max() <= 1
    alone = torch.cat([model.draw([0], [5], 3, guidance), model.draw([31], [6], 3, guidance)])
    assert torch.allclose(together, alone, atol=1e-4)
    assert not torch.equal(together, model.draw([1, 31], [5, 7], 3, guidance))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_denoisers_calls_are_as_many_as_said(tiny_clips: Path, guidance: float) -> None:
    model, seen = load_model(str(tiny_clips), "cpu"), []
    model.pipe.transformer.register_forward_pre_hook(lambda module, args: seen.append(module))
    model.draw([0], [0], 3, guidance)
    assert len(seen) == 3 * model.calls(guidance)


def test_a_pipeline_of_another_kind_is_refused(tiny_clips: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_clips, tmp_path / "copy")
    weights = copy / "transformer" / "config.json"
    weights.write_text(json.dumps({**json.loads(weights.read_text()), "num_layers": 4}))
    with pytest.raises(ModelError, match=r"do not fit its config\.json"):
        load_model(str(copy))


def test_a_pipeline_on_latents_is_refused(tmp_path: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

    transformer = WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=16, text_dim=8, freq_dim=16, ffn_dim=16, num_layers=1
    )
    parts = {"scheduler": FlowMatchEulerDiscreteScheduler(), "vae": None, "text_encoder": None, "tokenizer": None}
    WanPipeline(transformer=transformer, **parts).save_pretrained(tmp_path / "latents")
    with pytest.raises(ModelError, match=f"16 channels and tokens of width 8; .* of width {TOKEN_WIDTH}"):
        load_model(str(tmp_path / "latents"))
