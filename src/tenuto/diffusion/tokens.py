"""Run a transformer block for some of its image tokens, exactly: their queries, with the keys and values of all tokens.

The block's own ``forward`` runs on the whole input, so norms, modulation, rotary embeddings and masks are the model's.
Only the expensive parts are narrowed: query and output projections, attention and the MLP are computed for the chosen
tokens; what comes out for the others is meaningless and must be replaced. Where image and text are joined into one
sequence (Flux, SD3, HunyuanVideo, CogVideoX), the text's rows are computed as well.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from tenuto.diffusion.models import Block
from tenuto.errors import AttachError

__all__ = ["Subset"]

MLPS = ("ff", "ffn", "mlp", "feed_forward", "img_mlp", "proj_mlp")
PROJECTIONS = ("proj_out",)
NESTED = (".to_q", ".to_out.0")
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
SDPA = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


class _Narrow(TorchFunctionMode):
    """Computes attention for the chosen rows of its queries only.

    Attributes:
        rows: by the length of a sequence, the rows ``[batch, chosen]`` to compute; other lengths are computed whole.
    """

    def __init__(self, tokens: torch.Tensor, count: int) -> None:
        super().__init__()
        self.tokens, self.count = tokens, count
        self.rows = {count: tokens}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func is torch.cat:
            self._joined(*args, **options)
        elif func is nn.functional.scaled_dot_product_attention:
            return self._attention(dict(zip(SDPA, args, strict=False)) | options)
        return func(*args, **options)

    def _joined(self, tensors: Sequence[torch.Tensor], dim: int = 0) -> None:
        """Image and text are joined into one sequence: learn where the image's rows are in it.

        Where both have the same length they cannot be told apart, and such sequences are computed whole.
        """
        lengths = [tensor.shape[dim] for tensor in tensors]
        place = dim % tensors[0].dim()
        if len(tensors) != 2 or lengths.count(self.count) != 1 or place not in (1, tensors[0].dim() - 2):
            return
        if place == 0 or len(tensors[0]) != len(self.tokens):
            return
        image = lengths.index(self.count)
        text, start = lengths[1 - image], image * lengths[0]
        words = torch.arange(text, device=self.tokens.device) + (1 - image) * self.count
        self.rows[self.count + text] = torch.cat([words.expand(len(self.tokens), -1), self.tokens + start], 1)

    def _attention(self, given: dict[str, Any]) -> torch.Tensor:
        """Attention of the chosen queries, zero for the others; ``query [batch, (heads,) tokens, channels]``."""
        attend: Callable[..., torch.Tensor] = nn.functional.scaled_dot_product_attention
        query, mask = given["query"], given.get("attn_mask")
        rows, count = self.rows.get(query.shape[-2]), query.shape[-2]
        if rows is None or len(query) != len(rows) or given.get("is_causal"):
            return attend(**given)
        rows = rows.view(len(rows), *[1] * (query.dim() - 3), -1, 1).expand(*query.shape[:-2], -1, -1)
        given["query"] = query.take_along_dim(rows, -2)
        if mask is not None and mask.dim() > 1 and mask.shape[-2] == count:
            given["attn_mask"] = mask.expand(*query.shape[:-1], -1).take_along_dim(rows, -2)
        return _put(rows, attend(**given), count)


def _put(rows: torch.Tensor, values: torch.Tensor, count: int) -> torch.Tensor:
    """``values [..., chosen, width]`` at their places ``rows [..., chosen, 1]`` among ``count``, zero elsewhere."""
    whole = values.new_zeros(*values.shape[:-2], count, values.shape[-1])
    return whole.scatter_(-2, rows.expand_as(values), values)


class _Narrowing(threading.local):
    """What this thread narrows."""

    narrow: _Narrow | None = None


class Subset:
    """What can be narrowed in one block.

    Attributes:
        parts: the modules to wrap with :meth:`part`: MLPs, and attention's query and output projections.

    Raises:
        AttachError: the block mixes tokens by a convolution, or has no MLP of a known name.
    """

    def __init__(self, block: Block) -> None:
        self._here = _Narrowing()
        name = type(block.module).__name__
        mixing = [type(m).__name__ for m in block.module.modules() if isinstance(m, CONVOLUTIONS)]
        if mixing:
            raise AttachError(
                f"Block {block.path} ({name}) mixes tokens by a convolution ({mixing[0]}): some of its tokens cannot "
                "be computed alone. Use a policy without a token level."
            )
        parts = dict(block.module.named_modules())
        if not any(key in MLPS for key in parts):
            raise AttachError(
                f"Block {block.path} ({name}) has no MLP called {', '.join(MLPS)}: computing some of its tokens would "
                "save little. Use a policy without a token level."
            )
        narrowed = MLPS + PROJECTIONS
        self.parts = [part for key, part in parts.items() if key in narrowed or key.endswith(NESTED)]

    def part(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The wrapper of a token-wise module's ``forward``."""

        def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            narrow = self._here.narrow
            if narrow is None or hidden_states.dim() != 3 or len(hidden_states) != len(narrow.tokens):
                return original(hidden_states, *args, **kwargs)
            count = hidden_states.shape[1]
            if count not in narrow.rows:
                return original(hidden_states, *args, **kwargs)
            rows = narrow.rows[count][..., None]
            return _put(rows, original(hidden_states.take_along_dim(rows, 1), *args, **kwargs), count)

        return forward

    def run(self, tokens: torch.Tensor, count: int, block: Callable[[], Any]) -> Any:
        """Run a block; its image output is right at ``tokens [batch, chosen]`` of ``count``, meaningless elsewhere."""
        try:
            with _Narrow(tokens, count) as self._here.narrow:
                return block()
        finally:
            self._here.narrow = None
