"""Where the transformer blocks of a model are, found by structure and not by class name.

A *block list* is a ``ModuleList`` directly under the denoiser whose modules all take ``hidden_states``. This covers
DiT, PixArt, SD3, Flux, Wan, CogVideoX, HunyuanVideo, QwenImage, LTX, Sana, Chroma and models built like them.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tenuto.errors import AttachError

__all__ = ["Block", "Layout", "find_denoisers", "find_layout", "pack", "unpack"]

LIST_NAMES = ("blocks", "transformer_blocks", "single_transformer_blocks", "layers", "visual_transformer_blocks")
STREAMS = ("hidden_states", "encoder_hidden_states")


@dataclass(frozen=True, slots=True)
class Block:
    """One transformer block.

    Attributes:
        index: number over all block lists; path: dotted name under the denoiser.
        order: positions of (image, text) in a tuple output as written in the source; None if that does not tell.
    """

    index: int
    path: str
    module: nn.Module
    signature: inspect.Signature
    order: tuple[int, int] | None

    def streams(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor | None, ...]:
        """The (image, text) input streams of a call, positional or by keyword; text is None if not given."""
        given = self.signature.bind_partial(*args, **kwargs).arguments
        image = given.get(STREAMS[0])
        if not isinstance(image, torch.Tensor):
            raise AttachError(f"Block {self.path} was called without a {STREAMS[0]} tensor: it cannot be cached.")
        text = given.get(STREAMS[1])
        return image, text if isinstance(text, torch.Tensor) else None

    def with_streams(
        self, streams: tuple[torch.Tensor | None, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call with other input streams."""
        given = self.signature.bind(*args, **kwargs)
        given.arguments |= {key: value for key, value in zip(STREAMS, streams, strict=True) if value is not None}
        return given.args, given.kwargs


@dataclass(frozen=True, slots=True)
class Layout:
    """The blocks of one denoiser: ``lists`` holds the lengths of its block lists, in calling order."""

    root: nn.Module
    name: str
    lists: tuple[int, ...]
    blocks: tuple[Block, ...]


def _order_in_source(module: nn.Module) -> tuple[int, int] | None:
    """Read (image, text) positions off the block's own return statement."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(type(module).forward)))
    except (OSError, TypeError, SyntaxError):
        return None
    for node in reversed([n for n in ast.walk(tree) if isinstance(n, ast.Return)]):
        if isinstance(node.value, ast.Tuple) and len(node.value.elts) == 2:
            names = [e.id if isinstance(e, ast.Name) else "" for e in node.value.elts]
            if set(names) == set(STREAMS):
                return names.index(STREAMS[0]), names.index(STREAMS[1])
    return None


def _is_block_list(module: nn.ModuleList) -> bool:
    return len(module) > 0 and all(STREAMS[0] in inspect.signature(type(block).forward).parameters for block in module)


def find_layout(root: nn.Module, name: str = "transformer") -> Layout | None:
    """The block lists of a denoiser, or None if it has none.

    Lists with a customary name are preferred; otherwise any list of at least two blocks counts.
    """
    found = [
        (key, child)
        for key, child in root.named_children()
        if isinstance(child, nn.ModuleList) and _is_block_list(child)
    ]
    chosen = [pair for pair in found if pair[0] in LIST_NAMES] or [pair for pair in found if len(pair[1]) > 1]
    if not chosen:
        return None
    blocks: list[Block] = []
    for key, modules in chosen:
        for position, module in enumerate(modules):
            # the class's own signature: an instance may carry a wrapper (offloading, LoRA) with (*args, **kwargs)
            own = inspect.signature(type(module).forward)
            signature = own.replace(parameters=list(own.parameters.values())[1:])
            blocks.append(Block(len(blocks), f"{key}.{position}", module, signature, _order_in_source(module)))
    return Layout(root, name, tuple(len(modules) for _, modules in chosen), tuple(blocks))


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
    raise AttachError(
        f"No transformer blocks in {type(target).__name__}: searched {searched} for a list of modules whose forward "
        f"takes {STREAMS[0]}. Give a diffusers pipeline with a transformer, or the transformer itself."
    )


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
