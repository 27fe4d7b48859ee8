"""Tiny random-weight configurations of eleven diffusers transformers, and generations that drive them.

A *generation* here feeds latents that do not depend on the outputs, so that outputs of two runs can be compared step by
step.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import nn

__all__ = ["ARCHITECTURES", "STEPS", "Architecture", "Outputs", "generate", "relative", "same"]

STEPS = 6
TEXT, WORDS = 8, 3  # channels and tokens of a prompt
Inputs = dict[str, Any]
Outputs = dict[str, list[torch.Tensor]]  # by guidance branch, one output per step
Make = Callable[[Callable[..., torch.Tensor], int, int], Inputs]


@dataclass(frozen=True)
class Architecture:
    """One diffusers transformer.

    Attributes:
        name: class in diffusers; config: its arguments.
        make: ``(randn, batch, size)`` -> arguments of a call but the timestep; latents are ``size`` high and wide.
        unit: the timestep of pure noise.
    """

    name: str
    config: dict[str, Any]
    make: Make
    unit: float = 1000.0

    def build(self, seed: int = 0) -> nn.Module:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`FluxPosEmbed` is deprecated", FutureWarning)  # Chroma's own import
            torch.manual_seed(seed)
            model: nn.Module = getattr(diffusers, self.name)(**self.config).eval()
            for parameter in model.parameters():  # some start at zero or at one: then nothing depends on the timestep
                nn.init.normal_(parameter, std=1 / math.sqrt(parameter.shape[-1]))
        return model

    @property
    def contexts(self) -> bool:
        """Whether the model has diffusers' ``cache_context``."""
        return issubclass(getattr(diffusers, self.name), diffusers.CacheMixin)


def _dit(randn: Callable[..., torch.Tensor], batch: int, size: int) -> Inputs:
    return {"hidden_states": randn(batch, 4, size, size), "class_labels": randn(batch).abs().mul(3).long().clamp(max=9)}


def _prompted(randn: Callable[..., torch.Tensor], batch: int, size: int) -> Inputs:
    return {"hidden_states": randn(batch, 4, size, size), "encoder_hidden_states": randn(batch, WORDS, TEXT)}


def _pixart(randn: Callable[..., torch.Tensor], batch: int, size: int) -> Inputs:
    return {**_prompted(randn, batch, size), "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}


def _sd3(randn: Callable[..., torch.Tensor], batch: int, size: int) -> Inputs:
    return {**_prompted(randn, batch, size), "pooled_projections": randn(batch, TEXT)}


def _ids(size: int) -> torch.Tensor:
    grid = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"), -1).reshape(-1, 2)
    return torch.cat([torch.zeros(size * size, 1), grid], 1)


def _packed(randn: Callable[..., torch.Tensor], batch: int, size: int) -> Inputs:
    return {"hidden_states": randn(batch, size * size, 4), "encoder_hidden_states": randn(batch, WORDS, TEXT)}


def _chroma(randn: Callable[..., torch.Tensor], batch: int, size: int) -> Inputs:
    return {**_packed(randn, batch, size), "img_ids": _ids(size), "txt_ids": torch.zeros(WORDS, 3)}


def _flux(randn: Callable[..., torch.Tensor], batch: int, size: int) -> Inputs:
    return {**_chroma(randn, batch, size), "pooled_projections": randn(batch, TEXT)}


def _qwen(randn: Callable[..., torch.Tensor], batch: int, size: int) -> Inputs:
    mask = torch.ones(batch, WORDS, dtype=torch.bool)
    return {
        **_packed(randn, batch, size),
        "encoder_hidden_states_mask": mask,
        "img_shapes": [[(1, size, size)]] * batch,
    }


def _ltx(randn: Callable[..., torch.Tensor], batch: int, size: int) -> Inputs:
    shape = {"num_frames": 1, "height": size, "width": size}
    return {**_packed(randn, batch, size), "encoder_attention_mask": torch.ones(batch, WORDS), **shape}


def _wan(randn: Callable[..., torch.Tensor], batch: int, size: int) -> Inputs:
    return {"hidden_states": randn(batch, 4, 1, size, size), "encoder_hidden_states": randn(batch, WORDS, TEXT)}


def _cogvideo(randn: Callable[..., torch.Tensor], batch: int, size: int) -> Inputs:
    return {"hidden_states": randn(batch, 1, 4, size, size), "encoder_hidden_states": randn(batch, WORDS, TEXT)}


def _hunyuan(randn: Callable[..., torch.Tensor], batch: int, size: int) -> Inputs:
    mask = torch.ones(batch, WORDS, dtype=torch.long)
    return {**_wan(randn, batch, size), "encoder_attention_mask": mask, "pooled_projections": randn(batch, TEXT)}


HEADS: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 8}
ROPE: dict[str, Any] = {**HEADS, "num_layers": 2, "axes_dims_rope": (2, 2, 4), "joint_attention_dim": TEXT}
ARCHITECTURES = {
    "dit": Architecture(
        "DiTTransformer2DModel",
        {**HEADS, "in_channels": 4, "num_layers": 3, "sample_size": 4, "num_embeds_ada_norm": 10, "norm_num_groups": 2},
        _dit,
    ),
    "pixart": Architecture(
        "PixArtTransformer2DModel",
        {
            **HEADS,
            **{"in_channels": 4, "out_channels": 4, "num_layers": 3, "sample_size": 4, "norm_num_groups": 2},
            **{"cross_attention_dim": 16, "caption_channels": TEXT, "use_additional_conditions": False},
        },
        _pixart,
    ),
    "sd3": Architecture(
        "SD3Transformer2DModel",
        {
            **HEADS,
            **{"in_channels": 4, "out_channels": 4, "num_layers": 3, "sample_size": 4, "pos_embed_max_size": 8},
            **{"joint_attention_dim": TEXT, "caption_projection_dim": 16, "pooled_projection_dim": TEXT},
        },
        _sd3,
    ),
    "flux": Architecture(
        "FluxTransformer2DModel",
        {**ROPE, "in_channels": 4, "num_single_layers": 2, "pooled_projection_dim": TEXT},
        _flux,
        unit=1.0,
    ),
    "wan": Architecture(
        "WanTransformer3DModel",
        {
            **{"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4},
            **{"text_dim": TEXT, "freq_dim": 16, "ffn_dim": 16, "num_layers": 3, "rope_max_seq_len": 16},
        },
        _wan,
    ),
    "cogvideox": Architecture(
        "CogVideoXTransformer3DModel",
        {
            **HEADS,
            **{"in_channels": 4, "out_channels": 4, "num_layers": 3, "time_embed_dim": 4, "text_embed_dim": TEXT},
            **{"sample_width": 4, "sample_height": 4, "sample_frames": 1, "max_text_seq_length": WORDS},
        },
        _cogvideo,
    ),
    "hunyuan_video": Architecture(
        "HunyuanVideoTransformer3DModel",
        {
            **HEADS,
            **{"in_channels": 4, "out_channels": 4, "num_layers": 2, "num_single_layers": 2, "num_refiner_layers": 1},
            **{"guidance_embeds": False, "text_embed_dim": TEXT, "pooled_projection_dim": TEXT},
            **{"rope_axes_dim": (2, 2, 4), "mlp_ratio": 2.0},
        },
        _hunyuan,
    ),
    "qwenimage": Architecture(
        "QwenImageTransformer2DModel", {**ROPE, "in_channels": 4, "out_channels": 1, "patch_size": 2}, _qwen, unit=1.0
    ),
    "ltx": Architecture(
        "LTXVideoTransformer3DModel",
        {
            **HEADS,
            **{"in_channels": 4, "out_channels": 4, "num_layers": 3, "cross_attention_dim": 16},
            **{"caption_channels": TEXT},
        },
        _ltx,
    ),
    "sana": Architecture(
        "SanaTransformer2DModel",
        {
            **HEADS,
            **{"in_channels": 4, "out_channels": 4, "num_layers": 3, "num_cross_attention_heads": 2, "sample_size": 4},
            **{"cross_attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": TEXT},
        },
        _prompted,
    ),
    "chroma": Architecture(
        "ChromaTransformer2DModel",
        {
            **ROPE,
            **{"in_channels": 4, "num_single_layers": 2, "approximator_num_channels": 8},
            **{"approximator_hidden_dim": 8, "approximator_layers": 1},
        },
        _chroma,
        unit=1.0,
    ),
}


def _joined(first: Inputs, second: Inputs) -> Inputs:
    """Two calls as one batch: everything but position ids has a batch dimension."""

    def join(key: str, a: Any, b: Any) -> Any:
        if isinstance(a, torch.Tensor) and not key.endswith("_ids"):
            return torch.cat([a, b])
        return a + b if isinstance(a, list) else a

    return {key: join(key, value, second[key]) for key, value in first.items()}


@torch.no_grad()
def generate(
    kind: Architecture,
    model: nn.Module,
    seed: int = 1,
    *,
    steps: int = STEPS,
    sizes: Sequence[int] = (),
    guidance: str = "",
    only: str = "",
    timesteps: Sequence[float] = (),
) -> Outputs:
    """One generation; the same seed, the same inputs.

    Args:
        steps: of a schedule from 1 down to 1 / steps; timesteps: fractions of pure noise, instead.
        sizes: height and width of the latents at each step; 4 by default.
        guidance: "" (no guidance: one prompt), "batched" (prompt and null prompt in one call) or "separate".
        only: with separate guidance, make the calls of this branch alone.
    """
    dtype = next(model.parameters()).dtype
    schedule = list(timesteps) or [1 - index / steps for index in range(steps)]
    outputs: Outputs = {}
    for index, time in enumerate(schedule):
        size = sizes[index] if sizes else 4
        generator = torch.Generator().manual_seed(seed)

        def randn(*shape: int, generator: torch.Generator = generator) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).to(dtype)

        cond, uncond = kind.make(randn, 2, size), kind.make(randn, 2, size)
        moved = cond["hidden_states"] + 0.3 * (1 - time) * uncond["hidden_states"]  # drifts along the schedule
        cond, uncond = {**cond, "hidden_states": moved}, {**uncond, "hidden_states": moved}
        calls = {"": {"cond": cond}, "batched": {"cond_uncond": _joined(cond, uncond)}}
        for branch, inputs in calls.get(guidance, {"cond": cond, "uncond": uncond}).items():
            if only in ("", branch):
                stamp = torch.full((len(inputs["hidden_states"]),), time * kind.unit, dtype=torch.float64)
                context: Any = model.cache_context(branch) if kind.contexts else nullcontext()
                with context:
                    outputs.setdefault(branch, []).append(model(**inputs, timestep=stamp).sample)
    return outputs


def same(found: Outputs, expected: Outputs) -> bool:
    """Whether two runs are bit-identical."""
    return found.keys() == expected.keys() and all(
        len(found[key]) == len(expected[key]) and all(map(torch.equal, found[key], expected[key])) for key in found
    )


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative L2 distance."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())
