"""What the numbers of a module depend on, as a name that changes when any of it does.

    every parameter and buffer, in full              also those that are packed, quantised or offloaded to the host
    what modules hold besides                        eps, scaling, dropout, activation, an adapter's strength and state
    the configuration                                rotary embedding, caps, kinds of layers; not names and token ids

Hashing the bytes costs about 1 s per 4 GB and happens once (:mod:`tenuto.weights`); afterwards comparing is enough
(:class:`ModuleState`): modules and tensors are the same objects, at the same place, of the same version, and some bytes
of each are as they were. What that cannot see is a change of a few rows through ``.data``, which PyTorch does not
count; attaching again hashes again.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from operator import is_, itemgetter
from typing import Any

import torch
from torch import nn

from tenuto.errors import AttachError
from tenuto.weights import digests, join, pieces

__all__ = ["Identity", "ModuleState", "autocast", "configuration", "told"]

OURS = ("accelerate", "diffusers", "peft", "tenuto", "torch", "transformers")
"""Packages whose hooks are known not to change what a module computes, or say so in what is looked at."""
ASIDE = (set(vars(nn.Module())) - {"training"}) | {
    "__getstate__",
    "_gradient_checkpointing_func",
    "_internal_dict",
    "config",
    "_hf_hook",
    "_is_hf_initialized",
    "_old_forward",
    "forward",
    "generation_config",
    "gradient_checkpointing",
    "hf_device_map",
    "name_or_path",
    "padding_idx",
    "warnings_issued",
}
"""Attributes of modules that no number depends on, or that are looked at by themselves."""
WORDS = "_token_id _name _version architectures dtype id2label label2id output_ problem_type return_dict use_cache"
"""Parts of names of settings that no forward pass reads; with them go all that begin with an underscore."""
SPARE = 2
"""Numbers of each tensor that are looked at again."""


class Identity:
    """The name of one module, looked at again whenever it is asked for."""

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self._look: ModuleState | None = None
        self._mark = ""

    def mark(self) -> str:
        """32 hex digits.

        Raises:
            AttachError: what the module's numbers depend on cannot be known.
        """
        if self._look is None or not self._look.same():
            look = ModuleState(self.root)
            if look.problem:
                self._look = None
                raise AttachError(look.problem)
            known = self._look.hashed if self._look is not None and self._look.untouched() else {}
            self._mark, self._look = look.name(known), look
        return self._mark


class ModuleState:
    """A module as it is now.

    Attributes:
        named: its tensors by name; derived: those names whose tensors follow from the configuration.
        problem: why nothing can be kept under a name of it: weights made in inference mode, hooks of others, numbers
            that are drawn (dropout in training mode); empty if there is no reason.
        hashed: the digests of its tensors, by the object, once :meth:`name` was asked for.

    Raises:
        AttachError: weights that are not in memory, or of a kind whose bytes cannot be had.
    """

    def __init__(self, root: nn.Module) -> None:
        self.hashed: dict[int, tuple[torch.Tensor, int, int, bytes]] = {}
        self.named: list[tuple[str, torch.Tensor]] = []
        self.derived: set[str] = set()
        self.problem = ""
        self._facts: list[str] = []
        self._values: list[tuple[Callable[[dict[str, Any]], Any], dict[str, Any], Any]] = []
        self._held: list[dict[str, Any]] = []
        self._inside: list[dict[str, Any]] = []
        configs = dict[int, Any]()
        for name, module in root.named_modules():
            self._see(name, module)
            if (config := vars(module).get("config", vars(module).get("_internal_dict"))) is not None:
                configs[id(config)] = config
        self._configs = [(vars(config), _kept(vars(config))) for config in configs.values() if _has_vars(config)]
        self._facts += [configuration(config) for config in configs.values()]
        self._sizes = [*map(len, self._held), *map(len, self._inside)]
        self._objects = [value for inside in self._inside for value in inside.values()]
        self._tensors = [tensor for _, tensor in self.named if tensor.numel()]
        if made := [name for name, tensor in self.named if tensor.is_inference()]:
            self.problem = self.problem or (
                f"The weights {made[0]} were made in inference mode, where changes cannot be noticed, so nothing can "
                "be kept under their name. Load the model outside of it, or attach no store."
            )
        self._versions, self._places = self._counts()
        self._spots = _spots(self._tensors)
        self._bytes = [torch.cat(spots) for spots in self._spots]

    def _see(self, name: str, module: nn.Module) -> None:
        held = vars(module)
        self.problem = self.problem or _problem(name, module, held)
        names = [key for key in held if key not in ASIDE]
        look = itemgetter("training", *names)
        self._values.append((look, held, _copied(look(held))))
        self._held.append(held)
        inside = [held[key] for key in ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")]
        self._inside += inside
        plain = sorted(f"{key}={told(held[key])}" for key in names)
        self._facts.append(f"{name}:{type(module).__module__}.{type(module).__qualname__}({', '.join(plain)})")
        own = {key: value for each in inside[:2] for key, value in each.items() if value is not None}
        own |= {key: held[key] for key in names if isinstance(held[key], torch.Tensor)}
        spare = held["_non_persistent_buffers_set"] | (own.keys() - inside[0].keys() - inside[1].keys())
        if type(module)._save_to_state_dict is not nn.Module._save_to_state_dict:
            module._save_to_state_dict(packed := dict[str, Any](), "", keep_vars=True)
            own = packed | own
        for key in sorted(own):
            path = f"{name}.{key}" if name else key
            self.named += pieces(path, _on_host(module, key, own[key]))
            if key in spare:
                self.derived.add(path)

    def name(self, known: Mapping[int, tuple[torch.Tensor, int, int, bytes]]) -> str:
        """The name, 32 hex digits; tensors that are in ``known`` and as they were are not hashed again."""
        for _, tensor in self.named:
            old = known.get(id(tensor))
            if old is not None and old[1:3] == (_version(tensor), tensor.data_ptr()):
                self.hashed[id(tensor)] = old
        fresh = [tensor for _, tensor in self.named if id(tensor) not in self.hashed]
        for tensor, digest in zip(fresh, digests(fresh), strict=True):
            self.hashed[id(tensor)] = (tensor, _version(tensor), tensor.data_ptr(), digest)
        return join("\n".join(self._facts), [(label, self.hashed[id(tensor)][3]) for label, tensor in self.named])

    def same(self) -> bool:
        """Whether nothing has changed since, as far as a look can tell."""
        if [*map(len, self._held), *map(len, self._inside)] != self._sizes:
            return False
        now = chain.from_iterable([inside.values() for inside in self._inside])
        if not all(map(is_, now, self._objects)):
            return False
        if not all(_equal(look(held), before) for look, held, before in self._values):
            return False
        return all(_equal(_kept(held), old) for held, old in self._configs) and self.untouched()

    def untouched(self) -> bool:
        """Whether the tensors looked at are where and what they were."""
        if self._counts() != (self._versions, self._places):
            return False
        pairs = zip(self._spots, self._bytes, strict=True)
        return all(torch.equal(torch.cat(spots), before) for spots, before in pairs)

    def brief(self) -> Any:
        """What :meth:`same` compares, as values that hold no module and no tensor."""
        spots = [before.tolist() for before in self._bytes]
        return list(self._facts), [id(tensor) for tensor in self._tensors], self._versions, self._places, spots

    def _counts(self) -> tuple[list[int], list[int]]:
        return [_version(tensor) for tensor in self._tensors], [tensor.data_ptr() for tensor in self._tensors]


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def autocast(device: torch.device) -> bool:
    """Whether what is computed on a device is rounded by autocast now; of an offloaded model's device, on any."""
    if device.type != "meta":
        return torch.is_autocast_enabled(device.type)
    near = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.is_autocast_enabled("cpu") or (near is not None and torch.is_autocast_enabled(near.type))


def configuration(config: Any) -> str:
    """A configuration as text, without what no forward pass reads."""
    made = config.to_dict() if isinstance(getattr(config, "to_dict", None), Callable) else config  # type: ignore[arg-type]
    return told(_without(made)) if isinstance(made, Mapping) else told(config)


def _without(made: Mapping[Any, Any]) -> dict[str, Any]:
    kept = {str(key): value for key, value in made.items() if not str(key).startswith("_")}
    kept = {key: value for key, value in kept.items() if not any(word in key for word in WORDS.split())}
    return {key: _without(value) if isinstance(value, Mapping) else value for key, value in kept.items()}


def told(value: Any, depth: int = 0) -> str:
    """A value as text that is the same in every process; of an object its kind, and what it holds one level down."""
    if isinstance(value, enum.Enum) or value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if isinstance(value, torch.dtype | torch.Size):
        return str(value)
    if isinstance(value, list | tuple):
        return "[" + ",".join(told(part, depth) for part in value) + "]"
    if isinstance(value, set | frozenset):
        return "{" + ",".join(sorted(told(part, depth) for part in value)) + "}"
    if isinstance(value, Mapping):
        return "{" + ",".join(sorted(f"{told(key, depth)}:{told(part, depth)}" for key, part in value.items())) + "}"
    if isinstance(value, partial):
        return f"partial({told(value.func)},{told(value.args)},{told(value.keywords)})"
    if isinstance(value, type) or inspect.isroutine(value):
        return f"{value.__module__}.{value.__qualname__}"
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if depth or isinstance(value, torch.Tensor | nn.Module) or not _has_vars(value):
        return kind
    return f"{kind}({told(vars(value), depth + 1)})"


def _has_vars(value: Any) -> bool:
    return isinstance(getattr(value, "__dict__", None), dict)


def _kept(held: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple((key, _copied(value)) for key, value in held.items() if not key.startswith("_"))


def _copied(value: Any) -> Any:
    """A value to be compared with later: containers are copied, what is in them is not."""
    if type(value) is dict:
        return {key: _copied(part) for key, part in value.items()}
    if type(value) is tuple:
        return tuple(map(_copied, value))
    return [_copied(part) for part in value] if type(value) is list else value


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except (KeyError, RuntimeError, TypeError, ValueError):  # gone, or tensors among the values
        return False


def _problem(name: str, module: nn.Module, held: dict[str, Any]) -> str:
    hooks = [*held["_forward_hooks"].values(), *held["_forward_pre_hooks"].values()]
    if "forward" in held and inspect.unwrap(held["forward"]) is not None:
        hooks.append(inspect.unwrap(held["forward"]))
    if strange := [hook for hook in hooks if _package(hook, module) not in OURS]:
        return (
            f"{name or 'The model'} is changed by {told(strange[0])}, of which a store cannot know what it does. "
            "Remove it, or attach no store."
        )
    drawn = [key for key, value in held.items() if ("drop" in key or "jitter" in key) and _positive(value)]
    if isinstance(module, nn.Dropout) and module.p > 0:
        drawn.append("p")
    if module.training and drawn:
        return (
            f"The model is in training mode and {name or 'it'} has {drawn[0]}={told(held.get(drawn[0]))}, so its "
            "numbers are drawn and cannot be kept in a store. Call model.eval(), or attach no store."
        )
    return ""


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _package(hook: Any, module: nn.Module) -> str:
    while isinstance(hook, partial):
        hook = hook.func
    hook = getattr(hook, "__func__", hook)
    if hook is inspect.unwrap(type(module).forward):
        return OURS[0]
    home = getattr(hook, "__module__", None) if inspect.isroutine(hook) else type(hook).__module__
    return str(home).partition(".")[0]


def _on_host(module: nn.Module, key: str, value: Any) -> Any:
    """A tensor that accelerate keeps in the host's memory in place of one on ``meta``."""
    if not (isinstance(value, torch.Tensor) and value.is_meta):
        return value
    hook = vars(module).get("_hf_hook")
    for each in vars(hook).get("hooks", (hook,)) if hook is not None else ():
        weights = vars(each).get("weights_map")
        if weights is not None and key in weights and (found := weights[key]) is weights[key]:
            return found
    return value


def _spots(tensors: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Views of some numbers of each tensor as bytes, those of one device and width together."""
    found = dict[tuple[torch.device, int], list[torch.Tensor]]()
    for tensor in tensors:
        if tensor.is_contiguous():
            step, width = max(tensor.numel() // SPARE, 1), tensor.itemsize
            numbers = tensor.detach().reshape(-1).view(torch.uint8).view(-1, width)
            found.setdefault((tensor.device, width), []).append(numbers[::step])
    return list(found.values())
