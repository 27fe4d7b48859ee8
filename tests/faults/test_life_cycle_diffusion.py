"""What changes while a policy is attached, and what is refused at attach with its true reason."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import accelerate
import pytest
import torch
from architectures import ARCHITECTURES, generate, same
from torch import nn

import tenuto
from tenuto.calibration import fingerprint
from tenuto.diffusion.models import find_layout
from tenuto.errors import AttachError
from tenuto.testing import TinyDiT, denoise, profile_for

pytestmark = pytest.mark.usefixtures("one_thread")


def test_weights_that_accelerate_keeps_elsewhere() -> None:
    plain, policy = TinyDiT(), tenuto.TeaCache(threshold=9.0)
    profile = profile_for(policy, plain)
    with tenuto.attach(plain, policy, profile=profile):
        expected = denoise(plain)
    model = accelerate.cpu_offload(TinyDiT(), execution_device=torch.device("cpu"))
    assert next(model.parameters()).is_meta and fingerprint(model) == fingerprint(plain)
    with tenuto.attach(model, policy, profile=profile) as run:
        assert torch.equal(denoise(model), expected)
    assert run.telemetry.reuse_ratio > 0


def test_weights_that_are_nowhere() -> None:
    with pytest.raises(tenuto.TenutoError, match="not in memory"):
        with tenuto.attach(TinyDiT().to("meta"), tenuto.TeaCache()):
            pass


def test_packed_weights_have_a_name_of_their_own() -> None:
    marks = set()
    for change in (0.0, 1.0):
        model = TinyDiT()
        with torch.no_grad():
            model.out.weight[3, 5] += change
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.ao is on its way to torchao, and says so in several ways
            marks.add(fingerprint(torch.ao.quantization.quantize_dynamic(model, {nn.Linear})))
    assert len(marks) == 2


def test_inference_mode_and_back_in_one_generation() -> None:
    model, label = TinyDiT(), torch.tensor([1, 2])
    x = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))

    def steps(*modes: Any) -> list[torch.Tensor]:
        outputs = []
        with tenuto.attach(model, tenuto.TaylorSeer(interval=2, warmup=2)) as run:
            for step, mode in enumerate(modes):
                with mode():
                    outputs.append(model(x * (1 + step), torch.full((2,), 900.0 - 100 * step), label).clone())
        assert {event.generation for event in run.telemetry.events} == {0}
        return outputs

    plain = steps(*[torch.no_grad] * 6)
    mixed = steps(*[torch.inference_mode, torch.no_grad] * 3)
    assert all(map(torch.equal, plain, mixed))


def another_backend(model: Any) -> None:
    model.set_attention_backend("_native_math")


def other_processors(model: Any) -> None:
    from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

    model.set_attn_processor({name: FluxAttnProcessor() for name in model.attn_processors})


def fused(model: Any) -> None:
    model.fuse_qkv_projections()


def trained(model: Any) -> None:
    model.train()


@pytest.mark.parametrize("change", [another_backend, other_processors, fused, trained])
def test_what_changes_how_a_model_computes_starts_it_cold(change: Callable[[Any], None]) -> None:
    kind = ARCHITECTURES["flux"]
    model = kind.build()
    with tenuto.attach(model, tenuto.EveryN(n=5)) as run:
        generate(kind, model, steps=2)
        inputs = {"steps": 2, "timesteps": [0.3, 0.2]}
        change(model)
        generate(kind, model, **inputs)
    assert [event.decision for event in run.telemetry.events if event.step == 0] == ["compute"] * 4
    assert len({event.generation for event in run.telemetry.events}) == 2


def test_a_fork_goes_on_by_itself() -> None:
    model = TinyDiT()
    with tenuto.attach(model, tenuto.EveryN(n=2), count_flops=False):
        expected = denoise(model, 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: forks of processes with threads
            child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(denoise(model, 1), expected) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert torch.equal(denoise(model, 1), expected)


def test_gradients_and_tuples() -> None:
    kind = ARCHITECTURES["dit"]
    model = kind.build()
    call = {"hidden_states": torch.randn(1, 4, 4, 4), "class_labels": torch.tensor([1])}
    outputs = []
    for attached in (False, True):
        model.zero_grad()
        with tenuto.attach(model, tenuto.EveryN(n=1)) if attached else torch.enable_grad():
            (output,) = model(**call, timestep=torch.tensor([5]), return_dict=False)
            output.sum().backward()
        outputs.append([output, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(outputs[0]) > 10 and all(map(torch.equal, *outputs))
    with tenuto.attach(model, tenuto.EveryN(n=2)), pytest.raises(AttachError, match=r"torch\.no_grad\(\)"):
        for time in (5, 4):
            model(**call, timestep=torch.tensor([time]))


class Wrapper(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.base_model = nn.Module()
        self.base_model.model = module


def test_a_wrapped_transformer_is_pointed_at() -> None:
    with pytest.raises(AttachError, match=r"Wrapper wraps base_model\.model \(TinyDiT\).*attach to that module"):
        with tenuto.attach(Wrapper(TinyDiT()), tenuto.EveryN()):
            pass


def test_a_u_net_is_called_one() -> None:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        cross_attention_dim=8,
        attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    for target in (unet, SimpleNamespace(components={"unet": unet})):
        with pytest.raises(AttachError, match=r"UNet2DConditionModel is a U-Net.*diffusion transformers"):
            with tenuto.attach(target, tenuto.EveryN()):
                pass


def test_which_part_is_cached_is_said() -> None:
    from diffusers import AuraFlowTransformer2DModel

    model = AuraFlowTransformer2DModel(
        sample_size=4,
        num_mmdit_layers=2,
        num_single_dit_layers=3,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=8,
        pos_embed_max_size=4,
    )
    layout = find_layout(model)
    assert layout is not None and layout.lists == (2, 3)
    with tenuto.attach(model, tenuto.EveryN()) as run:
        said = run.summary()["cached"]["AuraFlowTransformer2DModel"]
    assert said["blocks"] == {"joint_transformer_blocks": 2, "single_transformer_blocks": 3}
    assert (said["left_out"], said["spans"]) == ([], 2) and 0.3 < said["parameters"] < 1


def test_a_block_list_that_is_left_out_is_named() -> None:
    model = TinyDiT()
    model.context_refiner = nn.ModuleList(TinyDiT().blocks)
    with tenuto.attach(model, tenuto.EveryN()) as run:
        assert run.summary()["cached"]["TinyDiT"]["left_out"] == ["context_refiner"]


def test_sound_beside_pictures_is_carried_on() -> None:
    """LTX-2: blocks return picture and sound; the text is only looked at."""

    class Both(nn.Module):
        def forward(self, hidden_states: Any, audio_hidden_states: Any, encoder_hidden_states: Any) -> Any:
            hidden_states, audio_hidden_states = (
                hidden_states + audio_hidden_states.mean(),
                audio_hidden_states + encoder_hidden_states.mean(),
            )
            return hidden_states, audio_hidden_states

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Both() for _ in range(3))

        def forward(self, hidden_states: Any, audio: Any, text: Any, timestep: Any) -> Any:
            for block in self.blocks:
                hidden_states, audio = block(hidden_states, audio, text)
            return hidden_states, audio

    model, given = Model(), (torch.ones(1, 4, 4), torch.ones(1, 3, 2), torch.ones(1, 5, 8))
    plain = model(*given, torch.tensor(1.0))
    with tenuto.attach(model, tenuto.EveryN(n=2)) as run:
        for step in range(4):
            assert all(map(torch.equal, model(*given, torch.tensor(9.0 - step)), plain))
    assert run.telemetry.reuse_ratio == 0.5
    assert same({"": [plain[0]]}, {"": [plain[0]]})
