"""Train a small language model: seeded, logged, and resumed bit by bit where it was stopped.

A linear warm-up and a cosine to a tenth of the rate, gradients clipped. The folder holds ``training.json`` and
``checkpoint.pt`` from the first checkpoint on, and in the end the model, its tokenizer and no checkpoint.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tqdm import tqdm

from tenuto.attention import load
from tenuto.errors import InputError, ModelError
from tenuto.measure.devices import device_words, pick_device
from tenuto.measure.folders import check_folder
from tenuto.texts.facts import Facts
from tenuto.train.batches import batch_of
from tenuto.train.minilm import Size, build, canonical, is_plain, parameters, read_size
from tenuto.train.optimiser import Optimiser
from tenuto.train.tokens import Tokens, prepare
from tenuto.zoo.language import DAMAGED

__all__ = ["LOG", "Training", "TrainingLog", "load_trained", "read_log", "train"]

LOG, CHECKPOINT = "training.json", "checkpoint.pt"
WARM_UP, FLOOR, CLIP = 0.05, 0.1, 1.0
BALANCE = 0.01
"""What a mixture's loss has of the load balancing loss of its routers."""
EVERY = 100
"""Steps between two checkpoints."""

IDENTITY = ("attention", "seed", "steps", "size", "digest")


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What to train.

    Attributes:
        attention: as text. seed: of weights and data order. steps: of the optimiser; None for those of the size.
        size: a name of :data:`tenuto.train.minilm.SIZES`. device: "auto", "cpu", "cuda"; threads: None for torch's own.
    """

    attention: str
    seed: int = 0
    steps: int | None = None
    size: str = "cpu"
    device: str = "auto"
    threads: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingLog:
    """What came of it; one JSON file.

    Attributes:
        attention, seed, steps, size: as asked; digest: of the text; bible: whether the Bible is in it.
        done: steps taken. parameters: of the model; device: in words.
        losses: mean loss in nats per token of every step. seconds: of wall clock that every step took;
            cpu_seconds: of the processor, in all threads.
        tokens_per_step: tokens of a step. resumed: steps before which training had been stopped.
        shape: the numbers of the size then; empty in logs that are older than this field.
    """

    attention: str
    seed: int
    steps: int
    size: str
    digest: str
    bible: bool
    parameters: int
    device: str
    tokens_per_step: int
    done: int = 0
    losses: tuple[float, ...] = ()
    seconds: tuple[float, ...] = ()
    cpu_seconds: tuple[float, ...] = ()
    resumed: tuple[int, ...] = ()
    shape: dict[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.done >= self.steps

    @property
    def tokens_per_s(self) -> float:
        """Training tokens per second of wall clock, of the median step."""
        return self.tokens_per_step / median(self.seconds)

    @property
    def tokens_per_cpu_s(self) -> float:
        """Training tokens per processor second, of the median step: what other programs do changes it little."""
        return self.tokens_per_step / median(self.cpu_seconds)


def read_log(folder: Path) -> TrainingLog:
    """The log of a training folder.

    Raises:
        ModelError: there is none, or it is damaged.
    """
    try:
        raw = json.loads((folder / LOG).read_text())
        names = {f.name for f in fields(TrainingLog)}
        kept: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in raw.items() if key in names}
        return TrainingLog(**kept)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{folder} holds no readable {LOG} ({error}). Train a model there with: tenuto train mini-lm --out {folder}"
        ) from error


def load_trained(folder: Path, device: torch.device | str = "cpu") -> tuple[Any, Any]:
    """A finished model in evaluation mode, and its tokenizer.

    Raises:
        ModelError: training is not finished, or files are missing.
    """
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    log = read_log(folder)
    if not log.finished:
        raise ModelError(f"{folder} is at step {log.done} of {log.steps}. Go on with: tenuto train mini-lm.")
    try:
        with _quiet():
            if is_plain(log.attention):
                model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
            else:
                model = load(folder)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except DAMAGED as error:
        raise ModelError(f"The model in {folder} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    return model.eval().to(device), tokenizer


def train(training: Training, out: Path, tokens: Tokens | None = None) -> TrainingLog:
    """Train until done, from the checkpoint in ``out`` if there is one; return at once if it is finished.

    Args:
        training: what to train.
        out: the folder.
        tokens: the text; None for what is installed here (:func:`tenuto.train.tokens.prepare`).

    Raises:
        InputError: ``out`` holds another training, or cannot be written; a number cannot be used.
        PolicyError: the attention is unknown.
    """
    size = read_size(training.size)
    steps = size.steps if training.steps is None else training.steps
    attention, device = canonical(training.attention), pick_device(training.device)
    check_folder(out)
    if training.threads:
        torch.set_num_threads(training.threads)
    text = prepare() if tokens is None else tokens
    log = TrainingLog(
        attention=attention,
        seed=training.seed,
        steps=steps,
        size=size.name,
        digest=text.digest,
        bible=text.bible,
        parameters=0,
        device=device_words(device, torch.float32 if device.type == "cpu" else torch.bfloat16),
        tokens_per_step=size.batch * size.context,
        shape={name: value for name, value in asdict(size).items() if name not in ("name", "steps")},
    )
    if (out / LOG).exists():
        earlier = read_log(out)
        _check_same(log, earlier, out)
        if earlier.finished:
            return earlier
    return _Trainer(log, size, text, device, out).run()


def _check_same(asked: TrainingLog, there: TrainingLog, out: Path) -> None:
    """Refuse a folder of another training."""
    pairs = {name: (getattr(asked, name), getattr(there, name)) for name in IDENTITY}
    pairs |= {
        name: (asked.shape.get(name), found) for name, found in there.shape.items() if name not in ("name", "steps")
    }
    for name, (wanted, found) in pairs.items():
        if wanted != found:
            raise InputError(
                f"{out} holds a training of {name}={found}, asked for was {name}={wanted}. Give another --out, "
                f"or remove that folder."
            )


class _Trainer:
    """One training in progress."""

    def __init__(self, log: TrainingLog, size: Size, text: Tokens, device: torch.device, out: Path) -> None:
        self.size, self.text, self.device, self.out = size, text, device, out
        self.facts = Facts(text.tokenizer)
        self.model = build(log.attention, size, text.pieces, log.seed).to(device).train()
        self.log = TrainingLog(**{**asdict(log), "parameters": parameters(self.model)})
        self.optimiser = Optimiser(self.model, size.rate)
        mixture = getattr(self.model.config, "num_experts", 0)
        self.routed = {"output_router_logits": True} if mixture else {}
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.resumed: list[int] = []

    def run(self) -> TrainingLog:
        """To the end."""
        first = self._resume()
        steps = self.log.steps
        title = f"{self.log.attention} seed {self.log.seed}" + (f", resumed at step {first}" if first else "")
        bar = tqdm(range(first, steps), initial=first, total=steps, desc=title, disable=None, leave=False)
        for step in bar:
            start, cpu = time.perf_counter(), time.process_time()
            self.losses.append(self._step(step))
            self.seconds.append(time.perf_counter() - start)
            self.cpu_seconds.append(time.process_time() - cpu)
            bar.set_postfix_str(f"loss {self.losses[-1]:.3f}")
            if (step + 1) % EVERY == 0 and step + 1 < steps:
                self._save(step + 1)
        return self._finish()

    def _step(self, step: int) -> float:
        """One optimiser step; the mean loss in nats per token."""
        batch = batch_of(
            self.text, self.facts, seed=self.log.seed, step=step, rows=self.size.batch, length=self.size.context
        ).to(self.device)
        with _precision(self.device):
            told = self.model(input_ids=batch[:, :-1], use_cache=False, **self.routed)
        loss = torch.nn.functional.cross_entropy(told.logits.float().flatten(0, 1), batch[:, 1:].flatten())
        (loss + BALANCE * told.aux_loss if self.routed else loss).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimiser.step(self.size.rate * _schedule(step, self.log.steps))
        return float(loss.detach())

    def _told(self, done: int) -> TrainingLog:
        lists = {
            "losses": tuple(self.losses),
            "seconds": tuple(self.seconds),
            "cpu_seconds": tuple(self.cpu_seconds),
            "resumed": tuple(self.resumed),
        }
        return TrainingLog(**{**asdict(self.log), **lists, "done": done})

    def _save(self, done: int) -> None:
        """Checkpoint, then log: each beside and renamed."""
        self.out.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "rng": torch.get_rng_state(),
            "log": json.dumps(asdict(self._told(done))),
        }
        temporary = self.out / f"{CHECKPOINT}.tmp"
        torch.save(state, temporary)
        os.replace(temporary, self.out / CHECKPOINT)
        self._write_log(done)

    def _write_log(self, done: int) -> None:
        temporary = self.out / f"{LOG}.tmp"
        temporary.write_text(json.dumps(asdict(self._told(done))))
        os.replace(temporary, self.out / LOG)

    def _resume(self) -> int:
        """The step to go on from."""
        path = self.out / CHECKPOINT
        if not path.exists():
            return 0
        state = torch.load(path, map_location="cpu", weights_only=True)
        told = json.loads(state["log"])
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["rng"])
        self.losses, self.seconds = list(told["losses"]), list(told["seconds"])
        self.cpu_seconds, self.resumed = list(told["cpu_seconds"]), [*told["resumed"], int(told["done"])]
        return int(told["done"])

    def _finish(self) -> TrainingLog:
        """The model, then its tokenizer, then the log that says it is finished; then the checkpoint goes."""
        self.out.mkdir(parents=True, exist_ok=True)
        with _quiet():
            self.model.save_pretrained(self.out)
        self.text.tokenizer.save_pretrained(self.out)
        self._write_log(self.log.steps)
        (self.out / CHECKPOINT).unlink(missing_ok=True)
        return self._told(self.log.steps)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars for files."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def _schedule(step: int, steps: int) -> float:
    """The share of the highest rate at a step: a line up, a cosine down to :data:`FLOOR`."""
    warm = max(round(WARM_UP * steps), 1)
    if step < warm:
        return (step + 1) / warm
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))


def _precision(device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 where there is an accelerator, float32 on the processor."""
    return nullcontext() if device.type == "cpu" else torch.autocast(device.type, torch.bfloat16)
