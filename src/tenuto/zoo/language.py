"""Load a language model, by name or from a folder, for the KV family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError

from tenuto.calibration import fingerprint
from tenuto.errors import InputError, ModelError
from tenuto.measure.devices import pick_device
from tenuto.zoo.named import PREFIX, resolve

__all__ = ["LanguageModel", "load_language"]

NAME = "smollm2"
DAMAGED = (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError, SafetensorError)
"""What transformers raises on files that are missing or damaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModel:
    """A causal language model with its tokenizer.

    Attributes:
        name: as it was given; model: a transformers model in evaluation mode; fingerprint: of its weights.
    """

    name: str
    model: Any
    tokenizer: Any
    fingerprint: str

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    @property
    def positions(self) -> int:
        """The longest sequence the model was made for, in tokens."""
        return int(getattr(self.model.config.get_text_config(decoder=True), "max_position_embeddings", 2**31))

    def encode(self, text: str) -> torch.Tensor:
        """Token ids ``[1, tokens]``, nothing added at either end."""
        ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt", verbose=False).input_ids
        return torch.as_tensor(ids, dtype=torch.int64).to(self.device)

    def decode(self, ids: torch.Tensor) -> str:
        """The text of token ids ``[tokens]``, special tokens left out."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    def chat(self, turns: list[dict[str, str]]) -> str:
        """The text of a conversation up to where the model answers; lines of the user where there is no template."""
        if self.tokenizer.chat_template is None:
            return "".join(turn["content"] + "\n" * (turn["role"] == "user") for turn in turns)
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    @property
    def ends(self) -> frozenset[int]:
        """Token ids that end an answer."""
        told = self.model.generation_config.eos_token_id
        given = told if isinstance(told, list) else [told, self.tokenizer.eos_token_id]
        return frozenset(int(token) for token in given if token is not None)


def load_language(model: str, device: str = "auto") -> LanguageModel:
    """Load ``bundled:smollm2`` or a folder that ``save_pretrained`` wrote; never downloaded.

    Raises:
        ModelError: there is no such model, it must be pulled first, or a file of it is missing or damaged.
        InputError: the device does not exist.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    folder = resolve(model, "kv")
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"There is no language model at {model}: the folder or its config.json is missing. "
            f"Give {PREFIX}{NAME} or a folder written by save_pretrained()."
        )
    where = pick_device(device)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        loaded, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except DAMAGED as error:
        reason = " ".join(str(error).split())[:300].rstrip(" .")
        raise ModelError(f"The model {model} cannot be loaded: {reason}. Restore its files.") from error
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
    if lacking := sorted(info["missing_keys"]):
        raise ModelError(
            f"The weights of {model} do not fit its config.json, for example {lacking[0]}. Restore its files."
        )
    loaded.eval().to(where)
    return LanguageModel(name=model, model=loaded, tokenizer=tokenizer, fingerprint=fingerprint(loaded))


def check_length(model: LanguageModel, tokens: int) -> None:
    """Refuse sequences longer than the model was made for.

    Raises:
        InputError: naming both lengths.
    """
    if tokens > model.positions:
        raise InputError(f"{tokens} tokens are too many: {model.name} was made for {model.positions}.")
