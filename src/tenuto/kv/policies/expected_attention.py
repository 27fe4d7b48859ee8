"""Expected Attention: keep what queries that are still to come are likely to attend to.

The queries seen so far, their rotation undone, are taken as draws of one Gaussian per head. The same Gaussian, rotated
as the next ``future`` positions will be on average, gives the expected exponential of every key's logit in closed form;
the softmax of these is multiplied by the norm of the value. No attention is computed, and no question is needed.

What it does not do: nothing is trained and no statistics are loaded. Where decoding compresses too, the Gaussian is
that of the tokens since the last compression. ``epsilon`` is 0 in the formula; 0.01 is what published results use.

Source: Devoto et al. 2025, Expected Attention: KV Cache Compression by Estimating Attention from Future Queries
Distribution, https://arxiv.org/abs/2510.00636
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tenuto.errors import PolicyError
from tenuto.kv.policy import ALL, KVMethod, KVPolicy, Paper, Scorer, TopK, View
from tenuto.kv.rope import Rope

__all__ = ["ExpectedAttention", "FutureAttention", "mean_rotation"]


def mean_rotation(rope: Rope, first: int, count: int, width: int) -> torch.Tensor:
    """The mean of the rotations to positions ``first``, ..., ``first + count - 1``, ``[width, width]`` float32; it
    multiplies columns."""
    half = rope.frequencies.numel()
    angle = torch.arange(first, first + count, device=rope.frequencies.device)[:, None] * rope.frequencies.float()
    cos, sin = angle.cos().mean(0), angle.sin().mean(0)
    matrix, at = torch.eye(width, device=cos.device), torch.arange(half, device=cos.device)
    matrix[at, at] = matrix[at + half, at + half] = cos
    matrix[at, at + half], matrix[at + half, at] = -sin, sin
    return matrix


@dataclass(frozen=True, slots=True)
class FutureAttention(Scorer):
    """``(mean over the group of softmax_i(s k·m + s² k·C k / 2) + epsilon) |v|``: m and C are mean and covariance of
    the queries before RoPE, rotated by the mean rotation of the next ``future`` positions; s is the logit scale.

    The first ``sinks`` tokens are no sample of queries and have no part in the softmax.
    """

    future: int = 512
    epsilon: float = 0.01
    sinks: int = 4
    probes: int = ALL

    def score(self, view: View) -> torch.Tensor:
        mean, covariance = self._gaussian(view)
        heads, keys = view.keys.shape[0], view.keys.float()
        linear = torch.einsum("hgd,hnd->hgn", mean.unflatten(0, (heads, -1)), keys)
        square = torch.einsum("hnd,hgde,hne->hgn", keys, covariance.unflatten(0, (heads, -1)), keys)
        logits = view.scaling * linear + view.scaling**2 / 2 * square + view.weights.log()[:, None]
        open_ = view.held & ((view.held & (view.index >= 0)).cumsum(-1) > self.sinks)
        expected = logits.masked_fill(~open_[:, None], float("-inf")).softmax(-1).nan_to_num(0.0).mean(1)
        norms: torch.Tensor = torch.linalg.vector_norm(view.values.float(), dim=-1)
        return (expected + self.epsilon) * norms

    def _gaussian(self, view: View) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean ``[heads, head_dim]`` and covariance ``[heads, head_dim, head_dim]`` of the queries to come.

        Raises:
            PolicyError: the model's rotary embedding cannot be undone.
        """
        if view.rope is None:
            raise PolicyError("expected_attention needs a model with rotary positions of fixed frequencies.")
        later = view.query_positions >= self.sinks
        used = later if bool(later.any()) else later.logical_not()
        queries = view.rope.rotate(view.queries[:, used].float(), -view.query_positions[used])
        count = max(queries.shape[1], 1)
        mean = queries.sum(1) / count
        centred = queries - mean[:, None]
        covariance = centred.transpose(1, 2) @ centred / count
        turn = mean_rotation(view.rope, int(view.positions.max()) + 1, self.future, queries.shape[-1])
        return mean @ turn.T, turn @ covariance @ turn.T


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedAttention(KVMethod):
    """Keep what future queries are expected to attend to.

    Attributes:
        future: positions over which the rotation of future queries is averaged.
        epsilon: added to the expected attention before it is multiplied by the norm of the value.
        sinks: first tokens, which are always kept and whose queries do not count.
    """

    future: int = 512
    epsilon: float = 0.01
    sinks: int = 4

    paper: ClassVar[Paper] = Paper(
        "Expected Attention: KV Cache Compression by Estimating Attention from Future Queries Distribution",
        "Devoto, Jeblick, Jegou",
        2025,
        "https://arxiv.org/abs/2510.00636",
    )
    sweep: ClassVar[tuple[str, ...]] = ("expected_attention",)

    def __post_init__(self) -> None:
        if self.future < 1 or self.epsilon < 0 or self.sinks < 0:
            raise PolicyError(
                f"expected_attention: future={self.future}, epsilon={self.epsilon}, sinks={self.sinks}. future must be "
                "at least 1, epsilon and sinks zero or more."
            )

    def compose(self) -> KVPolicy:
        return KVPolicy(scorer=FutureAttention(self.future, self.epsilon, self.sinks), selector=TopK(sinks=self.sinks))
