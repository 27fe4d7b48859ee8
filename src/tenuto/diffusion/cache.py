"""The engine of the diffusion family: state per (generation, branch, span), decisions, and their books.

It knows tensors and policies, not modules: ``attach.py`` calls it at the start of every denoiser call, at the first and
the last block of every span, and, where a policy computes some tokens of an estimated span, at its blocks in between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch

from tenuto.diffusion.gate import Verdict
from tenuto.diffusion.policy import Composition, Recorder, Span, Step, Streams, alone
from tenuto.diffusion.trajectory import change_of
from tenuto.telemetry import Decision, Event, Telemetry

__all__ = ["FeatureCache", "tensor_bytes"]


def tensor_bytes(state: Any) -> int:
    """Bytes that the tensors in a state keep alive: tuples, dictionaries and dataclasses are searched; a storage counts
    in full and once, however many views there are of it."""
    seen: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, (tuple, list)):
            for item in value:
                visit(item)
        elif isinstance(value, dict):
            for item in value.values():
                visit(item)
        elif is_dataclass(value):
            for item in fields(value):
                visit(getattr(value, item.name))

    visit(state)
    return sum(seen.values())


def _residual(output: Streams, hidden: Streams) -> Streams:
    """Output minus input, None for a stream that changes its shape."""
    return tuple(
        None if o is None or h is None or o.shape != h.shape else (o - h).detach()
        for o, h in zip(output, hidden, strict=True)
    )


def _fraction(now: _Open) -> float:
    """The chosen tokens' share of all."""
    image = now.step.hidden[0]
    return now.tokens.shape[1] / image.shape[1] if now.tokens is not None and image is not None else 0.0


@dataclass(slots=True)
class _Branch:
    """What is remembered for one guidance branch of one generation."""

    generation: int
    signature: Any
    index: int = -1
    timestep: float | None = None
    gates: dict[int, Any] = field(default_factory=dict)
    estimators: dict[int, Any] = field(default_factory=dict)
    correctors: dict[int, Any] = field(default_factory=dict)
    inner: dict[int, dict[int, torch.Tensor]] = field(default_factory=dict)
    held: dict[int, int] = field(default_factory=dict)
    shared: Verdict | None = None
    probe: Streams | None = None
    expected: dict[int, list[list[float]]] = field(default_factory=dict)
    stale: bool = False
    read_at: int = -1


@dataclass(slots=True)
class _Open:
    """The span being executed: its step, the verdict, whether it is skipped, and which tokens are not."""

    step: Step
    verdict: Verdict
    skip: bool
    tokens: torch.Tensor | None = None


class FeatureCache:
    """Decisions and state for one denoiser.

    Args:
        composition: the policy's choices.
        lists: lengths of the denoiser's block lists.
        warmup: steps at the start of every generation that always compute (at least 1).
        telemetry: where events and totals go.
        reduce: as in ``Step``.
        watcher: is shown every estimate whose truth is known (closed-loop calibration).
    """

    def __init__(
        self,
        composition: Composition,
        lists: tuple[int, ...],
        warmup: int,
        telemetry: Telemetry,
        reduce: Callable[[torch.Tensor], torch.Tensor] = alone,
        watcher: Recorder | None = None,
    ) -> None:
        self.composition = composition
        self.spans = composition.scope.spans(lists)
        self.warmup = max(warmup, 1)
        self.telemetry = telemetry
        self.reduce, self.watcher = reduce, watcher
        self.totals: dict[str, int] = {}
        self.generations = 0
        self._branches: dict[tuple[str, str], _Branch] = {}
        self._branch: _Branch | None = None
        self._session = self._name = ""
        self._open: _Open | None = None
        telemetry.hold(composition.estimator.nbytes())

    def reset(self, session: str | None = None, total: int | None = None) -> None:
        """Forget everything (or one session): the next step of every branch starts cold."""
        for key in [key for key in self._branches if session in (None, key[0])]:
            self._forget(key)
        if session is None:
            self.totals.clear()
        elif total is None:
            self.totals.pop(session, None)
        else:
            self.totals[session] = total
        self._branch = self._open = None

    def _forget(self, key: tuple[str, str]) -> None:
        self.telemetry.hold(-sum(self._branches.pop(key).held.values()))

    def begin(self, session: str, branch: str, timestep: float, signature: Any, fresh: bool) -> None:
        """A denoiser call starts. A new shape, or ``fresh``, starts the branch cold."""
        key = (session, branch)
        held = self._branches.get(key)
        if held is None or fresh or held.signature != signature:
            latest = max((b.generation for (name, _), b in self._branches.items() if name == session), default=-1)
            if held:
                self._forget(key)
            if latest < 0 or (held and held.generation == latest):  # else another branch has begun it already
                latest, self.generations = self.generations, self.generations + 1
            held = self._branches[key] = _Branch(latest, signature)
        held.index += 1
        held.timestep = timestep
        held.shared = held.probe = None
        self._branch, self._session, self._name, self._open = held, session, branch, None

    def enter(self, span: Span, streams: Streams, modulated: Callable[[], torch.Tensor]) -> bool:
        """The first block of a span is about to run: True if the span is skipped."""
        branch = self._current()
        composition = self.composition
        leading = not span.always and branch.shared is None
        step = Step(
            branch.index,
            self.totals.get(self._session),
            branch.timestep or 0.0,
            self._name,
            span,
            leading,
            streams,
            branch.probe,
            modulated,
            self.reduce,
            lambda: self._expected(branch).get(span.index),
        )
        if span.always:
            self._open = _Open(step, Verdict(reuse=False), False)
            return False
        verdict = self._judge(branch, step)
        state = branch.estimators.setdefault(span.index, composition.estimator.init())
        skip = verdict.reuse and branch.index >= self.warmup and composition.estimator.ready(state, step)
        tokens = self._select(branch, step) if skip else None
        self._open = _Open(step, verdict, skip, tokens)
        return skip

    def _expected(self, branch: _Branch) -> dict[int, list[list[float]]]:
        """What the estimators of all spans have seen of their errors, read from the device once after each step that
        computed any."""
        if branch.read_at != branch.index and branch.stale:
            branch.read_at, branch.stale = branch.index, False
            told = {index: self.composition.estimator.expected(state) for index, state in branch.estimators.items()}
            seen = {index: numbers for index, numbers in told.items() if numbers is not None}
            branch.expected = dict(zip(seen, torch.stack([*seen.values()]).tolist(), strict=True)) if seen else {}
        return branch.expected

    def _select(self, branch: _Branch, step: Step) -> torch.Tensor | None:
        """The tokens that are computed although the span is estimated."""
        corrector = self.composition.corrector
        if corrector is None:
            return None
        return corrector.select(branch.correctors.setdefault(step.span.index, corrector.init()), step)

    def _judge(self, branch: _Branch, step: Step) -> Verdict:
        gate = self.composition.gate
        if gate.shared and branch.shared is not None:
            return branch.shared
        key = 0 if gate.shared else step.span.index
        state = branch.gates[key] if key in branch.gates else gate.init()
        verdict, branch.gates[key] = gate.judge(state, step)
        branch.shared = verdict
        return verdict

    def estimate(self, truth: Streams | None = None, mixed: Streams | None = None) -> Streams:
        """The output streams of the open, skipped span.

        Args:
            truth: the true output, if it was computed as well: it tells the error.
            mixed: the output of the span's blocks where only the chosen tokens were computed.
        """
        branch, now = self._current(), self._opened()
        span, hidden = now.step.span, now.step.hidden
        state = branch.estimators[span.index]
        residual = self.composition.estimator.estimate(state, now.step)
        self.telemetry.flops += self.composition.estimator.flops(state, now.step)
        if mixed is not None:
            residual = self._corrected(branch, now, residual, _residual(mixed, hidden))
            if self.composition.corrector and now.tokens is not None:
                self.telemetry.flops += self.composition.corrector.flops(now.step, now.tokens.shape[1])
        output = tuple(h if r is None or h is None else h + r for h, r in zip(hidden, residual, strict=True))
        error = None
        if truth is not None and truth[0] is not None and output[0] is not None:
            error = float(change_of(output[0], truth[0], self.reduce).max())
            if self.watcher:
                self.watcher.estimated(now.step, state, _residual(truth, hidden))
        self._settle(branch, now, computed=False, error=error)
        return output

    def _corrected(self, branch: _Branch, now: _Open, estimate: Streams, mixed: Streams) -> Streams:
        """The estimate after the corrector has seen the computed tokens; other streams were computed as a whole."""
        corrector, tokens, image, fresh = self.composition.corrector, now.tokens, estimate[0], mixed[0]
        if corrector is None or tokens is None or image is None or fresh is None:
            raise RuntimeError("a span without chosen tokens cannot be corrected")
        chosen = fresh.take_along_dim(tokens[..., None], 1)
        state = branch.correctors[now.step.span.index]
        return corrector.correct(state, now.step, tokens, image, chosen), *mixed[1:]

    def passed(self, block: int, streams: Streams, output: Streams) -> Streams:
        """A block of the open span has run.

        If the span is computed its residual is kept for correctors. If only some tokens were chosen, the others leave
        the block with the residual it had at the last computed step.
        """
        branch, now = self._current(), self._opened()
        inner = branch.inner.setdefault(now.step.span.index, {})
        image, before = output[0], streams[0]
        if image is None or before is None:
            return output
        if now.tokens is None:
            inner[block] = (image - before).detach()
            return output
        held, tokens = before + inner[block], now.tokens[..., None].expand(-1, -1, image.shape[-1])
        return held.scatter(1, tokens, image.gather(1, tokens)), *output[1:]

    def computed(self, output: Streams) -> None:
        """The last block of the open span has run."""
        branch, now = self._current(), self._opened()
        span, corrector = now.step.span, self.composition.corrector
        residual = _residual(output, now.step.hidden)
        if span.always:
            branch.probe = residual
        else:
            estimator = self.composition.estimator
            self.telemetry.flops += estimator.flops_observed(branch.estimators[span.index], now.step)
            state = estimator.observe(branch.estimators[span.index], now.step, residual)
            branch.estimators[span.index], branch.stale = state, True
            if corrector is not None:
                known = branch.correctors.get(span.index)
                branch.correctors[span.index] = corrector.observe(known, now.step, residual)
        self._settle(branch, now, computed=True)

    def _settle(self, branch: _Branch, now: _Open, computed: bool, error: float | None = None) -> None:
        span, gate = now.step.span, self.composition.gate
        judged = None
        if not span.always and (now.step.leading or not gate.shared):
            key = 0 if gate.shared else span.index
            judged = branch.gates[key] = gate.settled(branch.gates[key], now.step, now.verdict, computed)
        states = (branch.estimators, branch.correctors, branch.inner)
        held = tensor_bytes((judged, *(state.get(span.index) for state in states)))
        self.telemetry.hold(held - branch.held.get(span.index, 0))
        branch.held[span.index] = held
        self.telemetry.record(
            Event(
                generation=branch.generation,
                step=branch.index,
                branch=self._name,
                first_block=span.first,
                last_block=span.last,
                decision=self._decision(now, computed),
                tokens=_fraction(now) if not computed else 0.0,
                statistic=now.verdict.statistic,
                critical=now.verdict.critical,
                error=error,
            )
        )
        self._open = None

    def _decision(self, now: _Open, computed: bool) -> Decision:
        if computed:
            return "compute"
        return self.composition.estimator.kind if now.tokens is None else "correct"

    @property
    def skipping(self) -> bool:
        """Whether the open span is being skipped, perhaps but for some tokens."""
        return self._open is not None and self._open.skip

    @property
    def tokens(self) -> torch.Tensor | None:
        """The tokens ``[batch, chosen]`` that the open span computes although it is skipped."""
        return self._open.tokens if self._open else None

    def _current(self) -> _Branch:
        if self._branch is None:
            raise RuntimeError("a block ran outside a call of its denoiser: call the denoiser, not its blocks")
        return self._branch

    def _opened(self) -> _Open:
        if self._open is None:
            raise RuntimeError("a span was closed that was never opened: the model calls its blocks out of order")
        return self._open
