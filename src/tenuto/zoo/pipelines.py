"""Load an image or video model, bundled or from a folder, and generate from it with one seed per picture or clip."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tenuto.calibration import fingerprint
from tenuto.errors import InputError, ModelError
from tenuto.measure.devices import pick_device
from tenuto.zoo import clips
from tenuto.zoo.named import PREFIX, resolve

__all__ = ["ClipModel", "ImageModel", "load_model"]

NAME = "dit-fashion"
CLASSES = 10
PAD = 2
OPTIONS = {"local_files_only": True, "use_safetensors": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageModel:
    """A class-conditional pipeline and how to draw from it.

    Attributes:
        name: as it was given; pipe: a ``diffusers.DiTPipeline``; fingerprint: of its transformer's weights.
    """

    name: str
    pipe: Any
    fingerprint: str

    @property
    def device(self) -> torch.device:
        return torch.device(self.pipe.transformer.device)

    @property
    def classes(self) -> int:
        """How many classes may be asked for."""
        return CLASSES if self.name.startswith(PREFIX) else int(self.pipe.transformer.config.num_embeds_ada_norm)

    @property
    def prompts(self) -> int:
        """How many prompts a measurement asks for in turn: the first ten classes."""
        return CLASSES

    def calls(self, guidance: float) -> int:
        """Calls of the denoiser in one denoising step: guidance is one batch."""
        return 1

    @property
    def sampler(self) -> str:
        """The scheduler's class name."""
        return type(self.pipe.scheduler).__name__

    def check(self, steps: int, guidance: float) -> None:
        """Refuse numbers that the pipeline cannot run with.

        Raises:
            InputError: naming the number and its range.
        """
        most = int(self.pipe.scheduler.config.num_train_timesteps)
        if not 1 <= steps <= most:
            raise InputError(f"steps={steps} is not allowed: give 1 to {most} denoising steps.")
        if not 0 <= guidance < float("inf"):
            raise InputError(f"guidance={guidance} is not allowed: give 1 for none, or more, for example 1.5.")

    def draw(self, labels: Sequence[int], seeds: Sequence[int], steps: int, guidance: float) -> torch.Tensor:
        """Pictures ``[n, channels, height, width]`` in [0, 1] on the processor, one per label and seed.

        A picture depends on its own label and seed only, not on the others of the batch (up to rounding). The border of
        pictures padded from 28x28 to 32x32, one channel, is cut off again.
        """
        with self._seeded(seeds) as generators:
            pictures: torch.Tensor = self.pipe(
                class_labels=list(labels),
                guidance_scale=guidance,
                generator=generators,
                num_inference_steps=steps,
                output_type="pt",
            ).images
        if pictures.shape[1:] == (1, 28 + 2 * PAD, 28 + 2 * PAD):
            pictures = pictures[..., PAD:-PAD, PAD:-PAD]
        return pictures.float().cpu()

    @contextmanager
    def _seeded(self, seeds: Sequence[int]) -> Iterator[list[torch.Generator]]:
        """One generator per seed; the global one, from which some samplers take noise at every step, is lent."""
        used = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=used):
            torch.manual_seed(seeds[0])
            yield [torch.Generator().manual_seed(seed) for seed in seeds]


class ClipModel(ImageModel):
    """A ``diffusers.WanPipeline`` on pixels, as ``models/wan_fashion`` makes it: its pictures are clips, its labels the
    numbers of prompts (:mod:`tenuto.zoo.clips`)."""

    @property
    def classes(self) -> int:
        return clips.PROMPTS

    @property
    def prompts(self) -> int:
        return clips.PROMPTS

    def calls(self, guidance: float) -> int:
        """Calls of the denoiser in one denoising step: with guidance one after the other."""
        return 2 if guidance > 1 else 1

    def draw(self, labels: Sequence[int], seeds: Sequence[int], steps: int, guidance: float) -> torch.Tensor:
        """Clips ``[n, frames, 1, height, width]`` in [0, 1] on the processor, one per prompt and seed."""
        given = clips.tokens(labels).to(self.device)
        nothing = clips.tokens(labels, torch.zeros(len(labels), dtype=torch.bool)).to(self.device)
        with self._seeded(seeds) as generators:
            drawn: torch.Tensor = self.pipe(
                prompt_embeds=given,
                negative_prompt_embeds=nothing,
                height=clips.SIDE * self.pipe.vae_scale_factor_spatial,
                width=clips.SIDE * self.pipe.vae_scale_factor_spatial,
                num_frames=(clips.FRAMES - 1) * self.pipe.vae_scale_factor_temporal + 1,
                guidance_scale=guidance,
                generator=generators,
                num_inference_steps=steps,
                output_type="latent",  # which are the pixels
            ).frames
        return (drawn.transpose(1, 2).float().cpu() / 2 + 0.5).clamp(0, 1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without diffusers' loading bars and notes: what matters is raised."""
    from diffusers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


def _parts(folder: Path, classes: Mapping[str, Any]) -> dict[str, Any]:
    """Parts of a pipeline; one whose weights are not all there is refused (diffusers would draw them at random)."""
    parts = {}
    for needed in (*(f"{name}/config.json" for name in classes), "scheduler/scheduler_config.json"):
        if not (folder / needed).is_file():
            raise ValueError(f"{needed} is missing")
    for name, cls in classes.items():
        parts[name], info = cls.from_pretrained(folder / name, output_loading_info=True, **OPTIONS)
        if lacking := info["missing_keys"] or info["unexpected_keys"]:
            raise ValueError(f"the weights in {name}/ do not fit its config.json, for example {lacking[0]}")
    return parts


def _load_dit(folder: Path) -> Any:
    from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel

    parts = _parts(folder, {"transformer": DiTTransformer2DModel, "vae": AutoencoderKL})
    if parts["transformer"].config.out_channels is None:
        raise ValueError("transformer/config.json has no out_channels, which DiTPipeline needs")
    return DiTPipeline.from_pretrained(folder, **parts, **OPTIONS)


def _load_wan(folder: Path) -> Any:
    from diffusers import WanPipeline, WanTransformer3DModel

    parts = _parts(folder, {"transformer": WanTransformer3DModel})
    config = parts["transformer"].config
    if (config.in_channels, config.text_dim) != (1, clips.TOKEN_WIDTH):
        raise ValueError(
            f"its transformer takes {config.in_channels} channels and tokens of width {config.text_dim}; a WanPipeline "
            f"can be drawn from if it works on pixels in 1 channel, with tokens of width {clips.TOKEN_WIDTH}"
        )
    return WanPipeline.from_pretrained(folder, vae=None, text_encoder=None, tokenizer=None, **parts, **OPTIONS)


def _load_pipeline(folder: Path) -> tuple[type[ImageModel], Any]:
    """The pipeline, and what draws from it."""
    kind = json.loads((folder / "model_index.json").read_text()).get("_class_name")
    if kind == "DiTPipeline":
        return ImageModel, _load_dit(folder)
    if kind == "WanPipeline":
        return ClipModel, _load_wan(folder)
    raise ValueError(f"model_index.json names a {kind}; only a DiTPipeline or a WanPipeline can be drawn from")


def load_model(model: str, device: str = "auto") -> ImageModel:
    """Load ``bundled:NAME`` or a folder that ``save_pretrained`` of a ``DiTPipeline`` or ``WanPipeline`` wrote.

    Args:
        model: the name or the path; never downloaded.
        device: "auto" (an NVIDIA GPU if there is one), or a torch device.

    Raises:
        ModelError: there is no such model, or a file of it is missing or damaged.
        InputError: the device does not exist.
    """
    folder = resolve(model, "diffusion")
    if not (folder / "model_index.json").is_file():
        raise ModelError(
            f"There is no model at {model}: the folder or its model_index.json is missing. "
            f"Give {PREFIX}{NAME} or a folder written by DiTPipeline.save_pretrained()."
        )
    with _quiet():
        try:
            cls, pipe = _load_pipeline(folder)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300].rstrip(" .")
            raise ModelError(f"The model {model} cannot be loaded: {reason}. Restore its files.") from error
    pipe.set_progress_bar_config(disable=True)
    pipe.to(pick_device(device))
    return cls(name=model, pipe=pipe, fingerprint=fingerprint(pipe.transformer))
