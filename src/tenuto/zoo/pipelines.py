"""Load an image model, bundled or from a folder, and generate from it with one seed per picture."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tenuto.calibration import fingerprint
from tenuto.errors import InputError, ModelError
from tenuto.measure.devices import pick_device
from tenuto.zoo.named import PREFIX, resolve

__all__ = ["ImageModel", "load_model"]

NAME = "dit-fashion"
CLASSES = 10
PAD = 2


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
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        used = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=used):
            torch.manual_seed(seeds[0])  # samplers that add noise at every step take it from the global generator
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


def _load_pipeline(folder: Path) -> Any:
    """The pipeline; parts whose weights are not all there are refused (diffusers would draw them at random)."""
    from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel

    index = json.loads((folder / "model_index.json").read_text())
    if index.get("_class_name") != "DiTPipeline":
        raise ValueError(f"model_index.json names a {index.get('_class_name')}; only a DiTPipeline can be drawn from")
    for needed in ("transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json"):
        if not (folder / needed).is_file():
            raise ValueError(f"{needed} is missing")
    parts, options = {}, {"local_files_only": True, "use_safetensors": True}
    for name, cls in (("transformer", DiTTransformer2DModel), ("vae", AutoencoderKL)):
        parts[name], info = cls.from_pretrained(folder / name, output_loading_info=True, **options)
        if lacking := info["missing_keys"] or info["unexpected_keys"]:
            raise ValueError(f"the weights in {name}/ do not fit its config.json, for example {lacking[0]}")
    if parts["transformer"].config.out_channels is None:
        raise ValueError("transformer/config.json has no out_channels, which DiTPipeline needs")
    return DiTPipeline.from_pretrained(folder, **parts, **options)


def load_model(model: str, device: str = "auto") -> ImageModel:
    """Load ``bundled:NAME`` or a folder that ``diffusers.DiTPipeline.save_pretrained`` wrote.

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
            pipe = _load_pipeline(folder)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300].rstrip(" .")
            raise ModelError(f"The model {model} cannot be loaded: {reason}. Restore its files.") from error
    pipe.set_progress_bar_config(disable=True)
    pipe.to(pick_device(device))
    return ImageModel(name=model, pipe=pipe, fingerprint=fingerprint(pipe.transformer))
