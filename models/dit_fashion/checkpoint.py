"""Resumable training: one file, written beside and renamed, so that an interrupted run loses nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


def save(path: Path, state: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def resume(path: Path, modules: dict[str, Any]) -> int:
    """Load ``path`` into ``modules`` (anything with ``load_state_dict``) and return the step to go on from."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, module in modules.items():
        module.load_state_dict(state[name])
    torch.set_rng_state(state["rng"])
    return int(state["step"])


def snapshot(step: int, modules: dict[str, Any]) -> dict[str, Any]:
    return {"step": step, "rng": torch.get_rng_state(), **{name: m.state_dict() for name, m in modules.items()}}
