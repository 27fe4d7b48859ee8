"""The table, in Markdown: every row against vLLM alone on the same prompt of the same round."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from vllm_tiers.systems import Answer

__all__ = ["table"]

COLD = "vLLM, cold"
LIKELY = 5
COLUMNS = (
    "row",
    "prompts",
    "s to first token (range)",
    "of cold (range)",
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


def table(answers: Sequence[Answer]) -> str:
    """One line for each row that has answers."""
    cold = {(a.round, a.prompt): a for a in answers if a.row == COLD}
    lines = [COLUMNS, ("---",) * len(COLUMNS)]
    for row in dict.fromkeys(answer.row for answer in answers):
        mine = [a for a in answers if a.row == row and (a.round, a.prompt) in cold]
        pairs = [(a, cold[a.round, a.prompt]) for a in mine]
        if not pairs:
            continue
        stored = [a.stored for a in mine if a.stored is not None]
        same = sum(
            max(a.logprobs, key=a.logprobs.__getitem__) == max(c.logprobs, key=c.logprobs.__getitem__) for a, c in pairs
        )
        lines.append(
            (
                row,
                str(len(pairs)),
                _spread([a.seconds for a, _ in pairs], ".3f"),
                _spread([a.seconds / c.seconds for a, c in pairs], ".3f"),
                f"{median(a.cached for a, _ in pairs):.0f}",
                f"{max(difference(c.logprobs, a.logprobs) for a, c in pairs):.3f}",
                f"{same} of {len(pairs)}",
                f"{median(stored) / 1e6:.1f}" if stored else "",
            )
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
