"""Run a transformer block for some of its image tokens, exactly: their queries, with the keys and values of all tokens.

The block's own ``forward`` runs on the whole input, so norms, modulation, rotary embeddings and masks are the model's.
Only the expensive parts are narrowed: attention is computed for the chosen queries, the output projection and the MLP
for the chosen tokens; what comes out for the others is meaningless and must be replaced. Attention over text and image
together (Flux, SD3) is computed whole, and only the MLP narrowed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from tenuto.diffusion.models import Block
from tenuto.errors import AttachError

__all__ = ["Subset"]

MLPS = ("ff", "ffn", "mlp", "feed_forward")
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _put(tokens: torch.Tensor, values: torch.Tensor, count: int) -> torch.Tensor:
    """``values [batch, chosen, width]`` at their places among ``count`` tokens, zero elsewhere."""
    whole = values.new_zeros(values.shape[0], count, values.shape[-1])
    return whole.scatter_(1, tokens[..., None].expand(-1, -1, values.shape[-1]), values)


class _Queries(TorchFunctionMode):
    """Computes attention whose queries are the image tokens for the chosen ones only."""

    def __init__(self, tokens: torch.Tensor, count: int) -> None:
        super().__init__()
        self.tokens, self.count = tokens, count

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **options)
        given = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False))
        given |= options
        query = given["query"]
        if query.dim() != 4 or query.shape[-2] != self.count or len(query) != len(self.tokens):
            return func(**given)
        if given.get("is_causal"):
            return func(**given)
        rows = self.tokens[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[-1])
        given["query"] = query.gather(2, rows)
        mask = given.get("attn_mask")
        if mask is not None and mask.shape[-2] == self.count:
            whole = mask.expand(len(self.tokens), query.shape[1], *mask.shape[-2:])
            given["attn_mask"] = whole.gather(2, rows[..., :1].expand(-1, -1, -1, mask.shape[-1]))
        found = func(**given)
        rows = rows[..., :1].expand(-1, -1, -1, found.shape[-1])
        return found.new_zeros(*query.shape[:-1], found.shape[-1]).scatter_(2, rows, found)


class Subset:
    """What can be narrowed in one block.

    Attributes:
        parts: the modules to wrap with :meth:`part`: MLPs and attention's output projections.

    Raises:
        AttachError: the block mixes tokens by a convolution, or has no MLP of a known name.
    """

    def __init__(self, block: Block) -> None:
        self.tokens: torch.Tensor | None = None
        self.count = 0
        name = type(block.module).__name__
        mixing = [type(m).__name__ for m in block.module.modules() if isinstance(m, CONVOLUTIONS)]
        if mixing:
            raise AttachError(
                f"Block {block.path} ({name}) mixes tokens by a convolution ({mixing[0]}): some of its tokens cannot "
                "be computed alone. Use a policy without a token level."
            )
        self.parts: list[nn.Module] = []
        for key, child in block.module.named_modules():
            if key in MLPS or (key.endswith("to_out.0") and isinstance(child, nn.Linear)):
                self.parts.append(child)
        if not any(key in MLPS for key, _ in block.module.named_children()):
            raise AttachError(
                f"Block {block.path} ({name}) has no MLP called {', '.join(MLPS)}: computing some of its tokens would "
                "save nothing. Use a policy without a token level."
            )

    def part(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The wrapper of a token-wise module's ``forward``."""

        def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            tokens = self.tokens
            if tokens is None or hidden_states.shape[:2] != (len(tokens), self.count):
                return original(hidden_states, *args, **kwargs)
            chosen = hidden_states.take_along_dim(tokens[..., None], 1)
            return _put(tokens, original(chosen, *args, **kwargs), self.count)

        return forward

    def run(self, tokens: torch.Tensor, count: int, block: Callable[[], Any]) -> Any:
        """Run a block; its image output is right at ``tokens [batch, chosen]`` of ``count``, meaningless elsewhere."""
        self.tokens, self.count = tokens, count
        try:
            with _Queries(tokens, count):
                return block()
        finally:
            self.tokens = None
