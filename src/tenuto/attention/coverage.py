"""Which earlier tokens can reach a query of PiAttention at all, layer by layer: computed, not estimated.

After L layers the token at distance d can reach a query if d is a sum of L distances, one from each layer's pattern (0
among them). Heads share the residual stream, so a layer's distances are those of all its heads together. Sinks are left
out: they are seen from everywhere and pass nothing on from later tokens.

The paper's receptive field is ``k L + pi ceil(log2 L)`` for a window of k and a stride of pi. It is no bound: a single
skip per layer reaches ``pi L``, and all multiples reach everything in two layers or so. What limits recall is not how
far the pattern reaches but which distances it leaves out on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tenuto.attention.pi_pattern import Pattern
from tenuto.errors import PolicyError

__all__ = ["Covered", "by_residue", "coverage", "guaranteed", "papers_reach", "reachable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Covered:
    """What is reached after some layers.

    Attributes:
        layers: how many; distances: reached, of ``context``; farthest: the largest of them, in tokens;
        gap: the smallest distance that is not reached, ``context`` if there is none;
        paper: the paper's receptive field, in tokens;
        guarantee: all distances up to it are reached, in closed form (:func:`guaranteed`), None where there is none.
    """

    layers: int
    distances: int
    farthest: int
    gap: int
    paper: int
    guarantee: int | None


def reachable(patterns: Sequence[Pattern], context: int) -> list[int]:
    """Per number of layers 1, 2, ... the distances reached, as the bits of a number: bit d for distance d.

    Args:
        patterns: of the layers; context: distances 0 to ``context - 1`` are looked at.
    """
    everything, found, steps = (1 << context) - 1, 1, {}
    reached = []
    for pattern in patterns:
        if pattern not in steps:
            heads = [chosen[0] for chosen in pattern.groups().values()]
            steps[pattern] = sorted({offset for head in heads for offset in pattern.offsets(head, context)})
        near, width = found, 1
        while width < min(pattern.window, context):  # shifts by 0 to window - 1, doubling
            more = min(width, pattern.window - width)
            near, width = near | near << more, width + more
        for offset in steps[pattern]:
            near |= found << offset
        found = near & everything
        reached.append(found)
    return reached


def by_residue(reached: int, stride: int, context: int) -> list[float]:
    """Of the distances with remainder 0, 1, ... ``stride - 1``, the share that is reached."""
    shares = []
    for residue in range(min(stride, context)):
        of_it = sum(1 << distance for distance in range(residue, context, stride))
        shares.append((reached & of_it).bit_count() / of_it.bit_count())
    return shares


def papers_reach(window: int, stride: int, layers: int) -> int:
    """``k L + pi ceil(log2 L)``, the receptive field that the paper's abstract gives, in tokens."""
    return window * layers + stride * (layers - 1).bit_length()


def guaranteed(pattern: Pattern, layers: int, context: int) -> int | None:
    """A distance up to which everything is reached, if all layers have this pattern, one stride and no phase.

    Windows alone reach ``L (window - 1)``. Any remainder below the stride is walked in ``w = ceil((stride - 1) /
    (window - 1))`` layers of windows, which leaves ``m = L - w`` layers for whole strides: any number of them with all
    multiples and m >= 1, up to ``2^(m+1) - 2`` with 1, 2, 4, ... strides, up to m with single ones.
    """
    stride = pattern.strides[0]
    if not pattern.shared or pattern.phases[0] or pattern.last:
        return None
    alone = min(layers * (pattern.window - 1), context - 1)
    if pattern.window == 1 < stride:
        return alone
    skips = layers - -(-(stride - 1) // max(pattern.window - 1, 1))
    if skips < 1:
        return alone
    if pattern.variant == "multiples":
        return context - 1
    strides = skips if pattern.variant == "single" else (2 << skips) - 2
    return min(max(alone, stride * (strides + 1) - 1), context - 1)


def coverage(patterns: Sequence[Pattern], context: int) -> list[Covered]:
    """The certificate: what is reached after 1, 2, ... layers of these patterns.

    Raises:
        PolicyError: no layers, or no context.
    """
    if not patterns or context < 1:
        raise PolicyError(f"{len(patterns)} layers and a context of {context} were given: give 1 or more of each.")
    stride = min(patterns[0].strides)
    rows = []
    for layers, found in enumerate(reachable(patterns, context), 1):
        same = len(set(patterns[:layers])) == 1
        missing = ~found & (found + 1)  # the lowest bit that is not set
        rows.append(
            Covered(
                layers=layers,
                distances=found.bit_count(),
                farthest=found.bit_length() - 1,
                gap=min(missing.bit_length() - 1, context),
                paper=papers_reach(patterns[0].window, stride, layers),
                guarantee=guaranteed(patterns[0], layers, context) if same else None,
            )
        )
    return rows
