"""The table, in Markdown: every row against vLLM alone on the same prompt of the same round."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from vllm_tiers.systems import COLD, Answer

__all__ = ["table"]

LIKELY = 5
COLUMNS = (
    "row",
    "prompts",
    "s to first token (range)",
    "of cold (range)",
    "s again, in the same process",
    "tokens reused",
    f"largest log-prob. difference of the {LIKELY} likeliest",
    "same first token",
    "MB stored a prompt",
)


def difference(one: dict[str, float], other: dict[str, float]) -> float:
    """The largest difference over the likeliest tokens of ``one``; a token that ``other`` does not list counts as its
    least likely one."""
    least = min(other.values())
    likely = sorted(one, key=one.__getitem__, reverse=True)[:LIKELY]
    return max(abs(one[token] - other.get(token, least)) for token in likely)


def _spread(values: Sequence[float], form: str) -> str:
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def _median(values: Sequence[float | None], form: str) -> str:
    there = [value for value in values if value is not None]
    return f"{median(there):{form}}" if there else ""


def table(answers: Sequence[Answer]) -> str:
    """One line for each row that has answers."""
    again = {(a.row, a.round, a.prompt): a.seconds for a in answers}
    cold = {(a.round, a.prompt): a for a in answers if a.row == COLD}
    lines = [COLUMNS, ("---",) * len(COLUMNS)]
    for row in dict.fromkeys(answer.row for answer in answers if not answer.row.endswith(", again")):
        mine = [a for a in answers if a.row == row and (a.round, a.prompt) in cold]
        pairs = [(a, cold[a.round, a.prompt]) for a in mine]
        if not pairs:
            continue
        same = sum(
            max(a.logprobs, key=a.logprobs.__getitem__) == max(c.logprobs, key=c.logprobs.__getitem__) for a, c in pairs
        )
        lines.append(
            (
                row,
                str(len(pairs)),
                _spread([a.seconds for a, _ in pairs], ".3f"),
                _spread([a.seconds / c.seconds for a, c in pairs], ".3f"),
                _median([again.get((f"{row}, again", a.round, a.prompt)) for a, _ in pairs], ".3f"),
                f"{median(a.cached for a, _ in pairs):.0f}",
                f"{max(difference(c.logprobs, a.logprobs) for a, c in pairs):.3f}",
                f"{same} of {len(pairs)}",
                _median([a.stored and a.stored / 1e6 for a, _ in pairs], ".1f"),
            )
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
