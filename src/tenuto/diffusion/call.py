"""One call of a denoiser: what is decided for each of its spans, and what stands in for what is skipped.

A :class:`Call` belongs to one thread and ends with the denoiser's ``forward``. It sees the blocks that run, in their
order: the first of a span that runs opens it, the last closes it. Which is the last is known from the branch's calls
before (its *path*); a call that runs through other blocks has *wandered*, and if it skipped something, it is repeated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from tenuto.diffusion.branch import Branch
from tenuto.diffusion.gate import Verdict
from tenuto.diffusion.policy import Span, Step, Streams
from tenuto.diffusion.trajectory import change_of
from tenuto.errors import AttachError
from tenuto.telemetry import Decision, Event

if TYPE_CHECKING:
    from tenuto.diffusion.cache import FeatureCache

__all__ = ["Call"]


def _residual(output: Streams, hidden: Streams) -> Streams:
    """Output minus input, None for a stream that changes its shape."""
    return tuple(
        None if o is None or h is None or o.shape != h.shape else (o - h).detach()
        for o, h in zip(output, hidden, strict=True)
    )


def _added(hidden: Streams, residual: Streams) -> Streams:
    return tuple(h if r is None or h is None else h + r for h, r in zip(hidden, residual, strict=True))


@dataclass(slots=True)
class _Open:
    """The span being executed: its step, the verdict, the estimated residual and output if it is skipped, and which of
    its tokens are computed all the same."""

    step: Step
    verdict: Verdict
    estimate: Streams | None = None
    output: Streams = ()
    tokens: torch.Tensor | None = None

    @property
    def share(self) -> float:
        """The chosen tokens' share of all."""
        image = self.step.hidden[0]
        return self.tokens.shape[1] / image.shape[1] if self.tokens is not None and image is not None else 0.0


class Call:
    """One call of a denoiser.

    Attributes:
        branch: what is remembered; total: denoising steps of its generation, None if unknown; name: guidance branch.
        closed: compute everything.
        path: numbers of the blocks that have run or were skipped, in order.
        used: blocks whose stand-ins were used by something else than the next block (see ``passed``).
        flops: operations of the policy itself; whole: those of the denoiser without caching.
        recording: whether gradients are; over: whether the call has returned.
    """

    def __init__(
        self, cache: FeatureCache, branch: Branch, total: int | None, name: str, spans: Sequence[Span], *, closed: bool
    ) -> None:
        self.cache, self.branch, self.total, self.name, self.closed = cache, branch, total, name, closed
        self.path: list[int] = []
        self.used: set[int] = set()
        self.flops = self.whole = 0.0
        self.skipped = self.recording = self.over = False
        self.truth: Streams = ()
        self._span_of = {block: span for span in spans for block in range(span.first, span.last + 1)}
        expected = self._span_of if branch.path is None else branch.path
        self._ends = {self._span_of[block].index: block for block in expected if block in self._span_of}
        self._expected = tuple(expected)
        self._open: _Open | None = None
        self._done: dict[int, Event] = {}
        self._shared: Verdict | None = None
        self._probe: Streams | None = None

    @property
    def wandered(self) -> bool:
        """Whether other blocks ran than the calls before let expect."""
        return tuple(self.path) != self._expected

    @property
    def strayed(self) -> bool:
        """Whether something was skipped and the blocks so far are others than expected."""
        return self.skipped and tuple(self.path) != self._expected[: len(self.path)]

    @property
    def repeats(self) -> bool:
        """Whether the call must be made again: what it skipped was used, or it skipped on another path."""
        return bool(self.used) or (self.skipped and self.wandered)

    def arrive(self, block: int) -> bool:
        """A block's turn has come: True if it opens its span."""
        if self.path and block <= self.path[-1]:
            raise AttachError(
                f"Block {block} ran after block {self.path[-1]} (numbers over all block lists): the model runs its "
                "blocks in another order than they stand in, or one of them twice. It cannot be cached."
            )
        self.path.append(block)
        span = self._span_of[block]
        if self._open is not None and self._open.step.span is not span:
            self._open = None  # the block that was to close it did not run: the call has wandered
        return self._open is None and span.index not in self._done

    def closes(self, block: int) -> bool:
        """Whether a block is the last of the open span."""
        return self._open is not None and self._ends.get(self._open.step.span.index) == block

    @property
    def skipping(self) -> bool:
        """Whether the open span is being skipped, perhaps but for some tokens."""
        return self._open is not None and self._open.estimate is not None

    @property
    def computing(self) -> bool:
        """Whether a span is open that could be skipped and is not."""
        return self._open is not None and self._open.estimate is None and not self._open.step.span.always

    @property
    def tokens(self) -> torch.Tensor | None:
        """The tokens ``[batch, chosen]`` that the open span computes although it is skipped."""
        return self._open.tokens if self._open else None

    def events(self) -> list[Event]:
        """What was decided for each span that a block ran of, in order."""
        spans = {self._span_of[block].index: self._span_of[block] for block in self.path}
        return [self._done.get(span.index) or self._event(span, "compute") for span in spans.values()]

    @torch.no_grad()
    def enter(self, block: int, streams: Streams, modulated: Callable[[], torch.Tensor]) -> bool:
        """The first block of a span is about to run: True if the span is skipped."""
        branch, composition, span = self.branch, self.cache.composition, self._span_of[block]
        leading = not span.always and self._shared is None
        hidden = tuple(None if s is None else s.detach() for s in streams)
        step = Step(
            branch.index,
            self.total,
            branch.timestep or 0.0,
            self.name,
            span,
            leading,
            hidden,
            self._probe,
            modulated,
            self.cache.reduce,
        )
        if span.always:
            self._open = _Open(step, Verdict(reuse=False))
            return False
        now = self._open = _Open(step, self._judge(step))
        state = branch.estimators.setdefault(span.index, composition.estimator.init())
        known = not self.closed and block == next((b for b in branch.path or () if b >= span.first), None)
        if (
            known
            and now.verdict.reuse
            and branch.index >= self.cache.warmup
            and composition.estimator.ready(state, step)
        ):
            self._estimate(now, state)
        return now.estimate is not None

    def _estimate(self, now: _Open, state: object) -> None:
        """Have the open span skipped, unless its estimate is not finite: then its state is dropped."""
        step, composition = now.step, self.cache.composition
        estimate = composition.estimator.estimate(state, step)
        now.output = _added(step.hidden, estimate)
        wide = torch.promote_types(step.hidden[0].dtype, torch.float32) if step.hidden[0] is not None else None
        sums = torch.stack([s.sum(dtype=wide) for s in now.output if s is not None])
        if not math.isfinite(float(step.reduce(sums).sum())):  # the sum of what is not finite is not finite
            self._forget(step.span.index)
            return
        self.flops += composition.estimator.flops(state, step)
        now.estimate, self.skipped = estimate, True
        if composition.corrector is not None:
            known = self.branch.correctors.setdefault(step.span.index, composition.corrector.init())
            now.tokens = composition.corrector.select(known, step)

    def _forget(self, span: int) -> None:
        """Drop what is remembered of a span; the gate keeps its state, which holds what was spent."""
        self.branch.estimators[span] = self.cache.composition.estimator.init()
        for states in (self.branch.correctors, self.branch.inner):
            states.pop(span, None)

    def _judge(self, step: Step) -> Verdict:
        gate = self.cache.composition.gate
        if gate.shared and self._shared is not None:
            return self._shared
        key = 0 if gate.shared else step.span.index
        state = self.branch.gates[key] if key in self.branch.gates else gate.init()
        verdict, self.branch.gates[key] = gate.judge(state, step)
        self._shared = verdict
        return verdict

    @torch.no_grad()
    def estimate(self, truth: Streams | None = None, mixed: Streams | None = None) -> Streams:
        """The output streams of the open, skipped span.

        Args:
            truth: the true output, if it was computed as well: it tells the error.
            mixed: the output of the span's blocks where only the chosen tokens were computed.
        """
        now, cache = self._opened(), self.cache
        step, residual = now.step, now.estimate
        if residual is None:
            raise RuntimeError("a span that is computed has no estimate")
        if mixed is not None:
            residual = self._corrected(now, residual, _residual(mixed, step.hidden))
            if cache.composition.corrector and now.tokens is not None:
                self.flops += cache.composition.corrector.flops(step, now.tokens.shape[1])
        output = now.output if mixed is None else _added(step.hidden, residual)
        error = None
        if truth is not None and truth[0] is not None and output[0] is not None:
            error = float(change_of(output[0], truth[0], cache.reduce).max())
            if cache.watcher:
                state = self.branch.estimators[step.span.index]
                cache.watcher.estimated(step, state, _residual(truth, step.hidden))
        self._settle(now, computed=False, error=error)
        return output

    def _corrected(self, now: _Open, estimate: Streams, mixed: Streams) -> Streams:
        """The estimate after the corrector has seen the computed tokens; other streams were computed as a whole."""
        corrector, tokens, image, fresh = self.cache.composition.corrector, now.tokens, estimate[0], mixed[0]
        if corrector is None or tokens is None or image is None or fresh is None:
            raise RuntimeError("a span without chosen tokens cannot be corrected")
        chosen = fresh.take_along_dim(tokens[..., None], 1)
        state = self.branch.correctors[now.step.span.index]
        return corrector.correct(state, now.step, tokens, image, chosen), *mixed[1:]

    @torch.no_grad()
    def passed(self, block: int, streams: Streams, output: Streams) -> Streams:
        """A block of the open span has run.

        If the span is computed its residual is kept for correctors. If only some tokens were chosen, the others leave
        the block with the residual it had at the last computed step.
        """
        now = self._opened()
        inner = self.branch.inner.setdefault(now.step.span.index, {})
        image, before = output[0], streams[0]
        if image is None or before is None:
            return output
        if now.tokens is None:
            inner[block] = (image - before).detach()
            return output
        held, tokens = before + inner[block], now.tokens[..., None].expand(-1, -1, image.shape[-1])
        return held.scatter(1, tokens, image.gather(1, tokens)), *output[1:]

    @torch.no_grad()
    def computed(self, output: Streams) -> None:
        """The last block of the open span has run."""
        branch, now, corrector = self.branch, self._opened(), self.cache.composition.corrector
        span = now.step.span
        residual = _residual(output, now.step.hidden)
        if span.always:
            self._probe = residual
        else:
            estimator = self.cache.composition.estimator
            self.flops += estimator.flops_observed(branch.estimators[span.index], now.step)
            branch.estimators[span.index] = estimator.observe(branch.estimators[span.index], now.step, residual)
            if corrector is not None:
                known = branch.correctors.get(span.index)
                branch.correctors[span.index] = corrector.observe(known, now.step, residual)
        self._settle(now, computed=True)

    def _settle(self, now: _Open, computed: bool, error: float | None = None) -> None:
        span, gate, branch = now.step.span, self.cache.composition.gate, self.branch
        judged = None
        if not span.always and (now.step.leading or not gate.shared):
            key = 0 if gate.shared else span.index
            judged = branch.gates[key] = gate.settled(branch.gates[key], now.step, now.verdict, computed)
        self.cache.hold(branch, span.index, judged)
        event = self._event(span, self._decision(now, computed))
        self._done[span.index] = replace(
            event,
            tokens=now.share if not computed else 0.0,
            statistic=now.verdict.statistic,
            critical=now.verdict.critical,
            error=error,
        )
        self._open = None

    def _event(self, span: Span, decision: Decision) -> Event:
        return Event(
            generation=self.branch.generation,
            step=self.branch.index,
            branch=self.name,
            first_block=span.first,
            last_block=span.last,
            decision=decision,
        )

    def _decision(self, now: _Open, computed: bool) -> Decision:
        if computed:
            return "compute"
        return self.cache.composition.estimator.kind if now.tokens is None else "correct"

    def _opened(self) -> _Open:
        if self._open is None:
            raise RuntimeError("a span was closed that was never opened")
        return self._open
