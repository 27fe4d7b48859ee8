"""Where the transformer blocks of a model are, found by structure and not by class name.

A *block list* is a ``ModuleList`` directly under the denoiser whose modules all take ``hidden_states``. This covers
DiT, PixArt, SD3, Flux, Wan, CogVideoX, HunyuanVideo, QwenImage, LTX, Sana, Chroma and models built like them.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tenuto.errors import AttachError

__all__ = ["Block", "Layout", "find_denoisers", "find_layout", "pack", "unpack"]

ENDINGS = ("blocks", "layers")
BESIDES = ("text_", "control", "vace_", "temporal_", "context_", "noise_")
STREAMS = ("hidden_states", "encoder_hidden_states")


@dataclass(frozen=True, slots=True)
class Block:
    """One transformer block.

    Attributes:
        index: number over all block lists; path: dotted name under the denoiser.
        order: positions of (image, text) in a tuple output as written in the source; None if that does not tell.
        names: of the (image, text) arguments. The second stream is sound in LTX-2, whose text is only looked at.
    """

    index: int
    path: str
    module: nn.Module
    signature: inspect.Signature
    order: tuple[int, int] | None
    names: tuple[str, str] = STREAMS

    def streams(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor | None, ...]:
        """The (image, text) input streams of a call, positional or by keyword; text is None if not given."""
        given = self.signature.bind_partial(*args, **kwargs).arguments
        image = given.get(self.names[0])
        if not isinstance(image, torch.Tensor):
            raise AttachError(f"Block {self.path} was called without a {self.names[0]} tensor: it cannot be cached.")
        text = given.get(self.names[1])
        return image, text if isinstance(text, torch.Tensor) else None

    def with_streams(
        self, streams: tuple[torch.Tensor | None, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call with other input streams."""
        given = self.signature.bind(*args, **kwargs)
        given.arguments |= {key: value for key, value in zip(self.names, streams, strict=True) if value is not None}
        return given.args, given.kwargs


@dataclass(frozen=True, slots=True)
class Layout:
    """The blocks of one denoiser: ``lists`` holds the lengths of its block lists, in calling order; ``left_out`` names
    its other lists of blocks, which always run."""

    root: nn.Module
    name: str
    lists: tuple[int, ...]
    blocks: tuple[Block, ...]
    left_out: tuple[str, ...] = ()

    def coverage(self) -> dict[str, Any]:
        """Which part of the model can be cached, JSON-ready: ``blocks`` (how many in each list), ``left_out``,
        ``parameters`` (the blocks' share of all)."""
        counts: dict[str, int] = {}
        for block in self.blocks:
            name = block.path.rpartition(".")[0]
            counts[name] = counts.get(name, 0) + 1
        mine = sum(p.numel() for block in self.blocks for p in block.module.parameters())
        every = sum(p.numel() for p in self.root.parameters())
        return {"blocks": counts, "left_out": list(self.left_out), "parameters": mine / every if every else 1.0}


def _order_in_source(module: nn.Module, allowed: Container[str]) -> tuple[tuple[int, int], tuple[str, str]] | None:
    """Read the positions of (image, text) and their names off the block's own return statement: both are arguments."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(type(module).forward)))
    except (OSError, TypeError, SyntaxError):
        return None
    for node in reversed([n for n in ast.walk(tree) if isinstance(n, ast.Return)]):
        if isinstance(node.value, ast.Tuple) and len(node.value.elts) == 2:
            names = [e.id if isinstance(e, ast.Name) else "" for e in node.value.elts]
            if STREAMS[0] in names and all(name in allowed for name in names):
                image = names.index(STREAMS[0])
                return (image, 1 - image), (STREAMS[0], names[1 - image])
    return None


def _is_block_list(module: nn.ModuleList) -> bool:
    return len(module) > 0 and all(STREAMS[0] in inspect.signature(type(block).forward).parameters for block in module)


def _is_u_net(module: nn.Module) -> bool:
    """Whether it is a U-Net, or the half of one that a ControlNet is."""
    names = {name for name, _ in module.named_children()}
    return {"down_blocks", "mid_block"} <= names and bool({"up_blocks", "controlnet_down_blocks"} & names)


def _is_besides(name: str) -> bool:
    """Whether a list's name says that it serves others: text or control, refiners before the stack."""
    return not name.endswith(ENDINGS) or name.startswith(BESIDES)


def _block(index: int, path: str, module: nn.Module) -> Block:
    # the class's own signature: an instance may carry a wrapper (offloading, LoRA) with (*args, **kwargs)
    own = inspect.signature(type(module).forward)
    signature = own.replace(parameters=list(own.parameters.values())[1:])
    written = _order_in_source(module, signature.parameters)
    order, names = written or (None, STREAMS)
    return Block(index, path, module, signature, order, names)


def find_layout(root: nn.Module, name: str = "transformer") -> Layout | None:
    """The block lists of a denoiser, or None if it has none.

    Lists called ``blocks``, ``..._blocks`` or ``layers`` are preferred, unless the name says that they serve others;
    otherwise any list of at least two blocks counts.
    """
    if _is_u_net(root):
        return None
    found = [
        (key, child)
        for key, child in root.named_children()
        if isinstance(child, nn.ModuleList) and _is_block_list(child)
    ]
    chosen = [pair for pair in found if not _is_besides(pair[0])] or [pair for pair in found if len(pair[1]) > 1]
    if not chosen:
        return None
    blocks: list[Block] = []
    for key, modules in chosen:
        for position, module in enumerate(modules):
            blocks.append(_block(len(blocks), f"{key}.{position}", module))
    left = tuple(key for key, _ in found if key not in dict(chosen))
    return Layout(root, name, tuple(len(modules) for _, modules in chosen), tuple(blocks), left)


def find_denoisers(target: Any) -> tuple[Layout, ...]:
    """The denoisers of a diffusers pipeline (``transformer``, ``transformer_2``), or the module itself.

    Raises:
        AttachError: nothing with transformer blocks was found; the message says what was searched.
    """
    if isinstance(target, nn.Module):
        layout = find_layout(target, type(target).__name__)
        if layout:
            return (layout,)
        children = [f"{key} ({type(child).__name__})" for key, child in target.named_children()]
        searched = f"its children {', '.join(children) or 'none'}"
    else:
        components: dict[str, Any] = getattr(target, "components", {})
        modules = {key: value for key, value in components.items() if isinstance(value, nn.Module)}
        layouts = [find_layout(value, key) for key, value in modules.items() if key.startswith("transformer")]
        if present := tuple(layout for layout in layouts if layout):
            return present
        listed = [f"{key} ({type(value).__name__})" for key, value in modules.items()]
        searched = f"its components {', '.join(listed) or 'none'}"
    parts = [target] if isinstance(target, nn.Module) else list(modules.values())
    reason = next(
        filter(None, map(_reason, parts)), "Give a diffusers pipeline with a transformer, or the transformer itself."
    )
    raise AttachError(
        f"No transformer blocks in {type(target).__name__}: searched {searched} for a list of modules whose forward "
        f"takes {STREAMS[0]}. {reason}"
    )


def _reason(module: nn.Module) -> str | None:
    """Why a module that looks like a denoiser is none, and the way out."""
    name = type(module).__name__
    if _is_u_net(module):
        return (
            f"{name} is a U-Net: its blocks change the resolution and skip over each other, so no run of them has a "
            "residual to cache. Tenuto caches diffusion transformers (DiT, PixArt, SD3, Flux, Wan and their kin)."
        )
    for path, part in module.named_modules():
        if path and find_layout(part, path):
            return f"{name} wraps {path} ({type(part).__name__}), which has such a list: attach to that module."
    return None


def unpack(block: Block, raw: Any, inputs: tuple[torch.Tensor | None, ...]) -> tuple[torch.Tensor | None, ...]:
    """The (image, text) streams of a block's output.

    Raises:
        AttachError: the output is neither a tensor nor a pair, or its image stream changes shape.
    """
    if isinstance(raw, torch.Tensor):
        streams: tuple[torch.Tensor | None, ...] = (raw, None)
    elif isinstance(raw, tuple) and len(raw) == 2:
        image, text = output_order(block, raw, inputs)
        streams = (raw[image], raw[text])
    else:
        what = f"a tuple of {len(raw)}" if isinstance(raw, tuple) else type(raw).__name__
        raise AttachError(f"Block {block.path} returns {what}; a tensor or a pair (image, text) can be cached.")
    image_in, image_out = inputs[0], streams[0]
    if image_in is None or image_out is None or image_in.shape != image_out.shape:
        raise AttachError(f"Block {block.path} changes the shape of its hidden states: its residual is not defined.")
    return streams


def output_order(block: Block, raw: tuple[Any, ...], inputs: tuple[torch.Tensor | None, ...]) -> tuple[int, int]:
    """Positions of (image, text) in a pair: by the source, else by shape, else by which input it is nearer to."""
    shapes = [None if r is None else r.shape for r in raw]
    image, text = inputs[0], inputs[1] if len(inputs) > 1 else None
    if block.order and image is not None and shapes[block.order[0]] == image.shape:
        return block.order
    fits = [position for position in (0, 1) if image is not None and shapes[position] == image.shape]
    if len(fits) == 2 and text is not None and image is not None:
        near = [float((r - image).norm()) for r in raw]
        fits = [0] if near[0] <= near[1] else [1]
    if not fits:
        raise AttachError(f"Block {block.path} returns no stream of its input's shape: it cannot be cached.")
    return fits[0], 1 - fits[0]


def pack(order: tuple[int, int] | None, streams: tuple[torch.Tensor | None, ...]) -> Any:
    """Streams in the form the block returns them: a tensor (``order`` None) or a pair."""
    if order is None:
        return streams[0]
    pair: list[torch.Tensor | None] = [None, None]
    pair[order[0]], pair[order[1]] = streams[0], streams[1]
    return tuple(pair)
