"""Prompts with fewer entries than tokens: how likely the text's own next tokens stay, what is still known, how soon.

Every row reads the same context, and is judged on the same original tokens after it: their mean negative
log-likelihood, and numbers that were told in the context, given token by token after a question. All rows of an example
are run in turn, so that differences and times are paired.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, cast

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from tenuto import catalog
from tenuto.budget import MemoryBudget
from tenuto.errors import InputError, closest
from tenuto.kv.attach import AttachedRun, attach
from tenuto.kv.policy import KVMethod, KVPolicy
from tenuto.measure.devices import device_words, versions
from tenuto.measure.resume import Unfinished
from tenuto.measure.speed import synchronise
from tenuto.prompt.policy import PromptMethod
from tenuto.prompt.read import Prompt, read
from tenuto.records.intervals import mean_interval
from tenuto.records.prompt import BASELINE, PromptRun, write_prompt_run
from tenuto.texts.redundant import KINDS, compose
from tenuto.texts.tasks import TEXT_TASKS
from tenuto.zoo.language import LanguageModel, check_length

__all__ = [
    "ASKED",
    "PromptCase",
    "Way",
    "WayOutcome",
    "bench",
    "make_case",
    "measure",
    "outcome",
    "read_kinds",
    "read_methods",
    "summarise",
    "ways",
]

FACTS, FOLLOWING = 2, 128

ASKED = ("niah_single", "niah_multikey", "passkey")
"""Tasks that are kinds of text as well: one question, one answer; nothing follows them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to read a context: with a method for the prompt, a policy that keeps a share of it, both or neither."""

    name: str
    merge: PromptMethod | None = None
    policy: KVMethod | None = None
    keep: float = 1.0


def ways(method: PromptMethod, policy: KVMethod | None = None) -> list[Way]:
    """The uncompressed prompt, a method, and what it is measured beside, all at the same entries over tokens.

    Beside it: the baselines of its family, which merge or drop at the same layer, and the KV methods that are a
    yardstick.

    Args:
        policy: also the method with this policy, which keeps half of its entries.
    """
    rows, ratio = [Way(name=BASELINE), Way(name=method.name, merge=method)], method.ratio
    for info in catalog.methods("prompt").values():
        if info.cls.baseline and info.name != method.name:
            other = cast(PromptMethod, info.cls.of({"ratio": ratio, "layer": method.layer}))
            rows.append(Way(name=info.name, merge=other))
    for info in catalog.methods("kv").values():
        if issubclass(info.cls, KVMethod) and info.cls.yardstick:
            rows.append(Way(name=info.name, policy=info.cls.of({}), keep=ratio))
    if policy is not None:
        rows.append(Way(name=f"{method.name}+policy", merge=method, policy=policy, keep=ratio / 2))
        rows.append(Way(name="policy", policy=policy, keep=ratio / 2))
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptCase:
    """One context and what is asked after it.

    Attributes:
        context: ``[1, tokens]``; following: the text's own next tokens ``[tokens]``, none of a task.
        questions: ``[1, tokens]`` each, and the tokens of its right answer ``[tokens]``.
    """

    context: torch.Tensor
    following: torch.Tensor
    questions: tuple[tuple[torch.Tensor, torch.Tensor], ...]


def make_case(language: LanguageModel, kind: str, seed: int, tokens: int) -> PromptCase:
    """A text of this kind of at most so many tokens, whole lines, with two facts in its middle three quarters; or the
    context of a task with its question."""
    if kind in ASKED:
        example = TEXT_TASKS[kind].make(seed, tokens, language.count)
        asked = ((language.encode(it.text), language.encode(f" {it.answers[0]}")[0]) for it in example.questions)
        context = language.encode(example.context)
        return PromptCase(context=context, following=context[0, :0], questions=tuple(asked))
    pieces, facts = compose(kind, seed, FACTS)
    told = [f"The code of the {key} is {number}.\n" for key, number in facts]
    room = tokens - sum(language.count(sentence) + 2 for sentence in told)
    count = 0
    while count < len(pieces) and (room := room - language.count(pieces[count])) > 0:
        count += 1
    if count < 3:
        raise InputError(f"context={tokens} is too short for {kind}. Give 400 tokens or more.")
    rng, body = Random(f"places {kind} {seed}"), pieces[:count]
    for sentence in told:
        body.insert(rng.randrange(max(count // 8, 1), count * 7 // 8 + 1), sentence)
    questions = tuple(
        (
            language.encode(f"\n\nQuestion: What is the code of the {key}?\nAnswer: The code of the {key} is"),
            language.encode(f" {number}")[0],
        )
        for key, number in facts
    )
    following = language.encode("".join(pieces[count : count + 40]))[0, :FOLLOWING]
    return PromptCase(context=language.encode("".join(body))[:, :tokens], following=following, questions=questions)


@dataclass(frozen=True, slots=True, kw_only=True)
class WayOutcome:
    """What one way did on one example.

    Attributes:
        loss: nats per following token, or per token of the right answers where nothing follows.
        right: share of the answers' tokens that are the model's likeliest after those before them; answered: share of
            the answers of which all are, which are those that greedy generation begins with.
        seconds: to the first token, all it takes included.
        held: entries over tokens; size: bytes over those of the full cache.
    """

    loss: float
    right: float
    answered: float
    seconds: float
    held: float
    size: float


@torch.no_grad()
def outcome(language: LanguageModel, way: Way, case: PromptCase) -> WayOutcome:
    """Read the context one way, and see what is still known."""
    with attach(language.model, way.policy or KVPolicy(), budget=MemoryBudget.keep(way.keep)) as run:
        synchronise(language.device)
        start = time.perf_counter() if language.device.type != "cpu" else time.process_time()
        cache, logits = _started(language, run, way, case.context)
        logits.argmax().item()
        seconds = (time.perf_counter() if language.device.type != "cpu" else time.process_time()) - start
        counts = [sum(row) / len(row) for layer in cache.counts() for row in layer]
        held, size = sum(counts) / len(counts) / case.context.shape[1], cache.bytes_held / cache.bytes_full
        with run.whole():
            right, answers = [], []
            for question, answer in case.questions:
                asked, many = torch.cat([question, answer[None, :-1]], 1), len(answer)
                found = language.model(asked, past_key_values=cache.fork(), logits_to_keep=many).logits[0].float()
                right.append((found.argmax(-1) == answer).float())
                answers.append(float(cross_entropy(found, answer)))
            loss = _mean(answers)
            if len(case.following):
                later = language.model(case.following[None, :-1], past_key_values=cache.fork()).logits[0].float()
                loss = float(cross_entropy(torch.cat([logits[None], later]), case.following))
    return WayOutcome(
        loss=loss,
        right=_mean([float(tokens.mean()) for tokens in right]),
        answered=_mean([float(tokens.min()) for tokens in right]),
        seconds=seconds,
        held=held,
        size=size,
    )


def _started(language: LanguageModel, run: AttachedRun, way: Way, context: torch.Tensor) -> tuple[Any, torch.Tensor]:
    if way.merge is not None:
        prompt: Prompt = read(run, context, way.merge, tokenizer=language.tokenizer)
        return prompt.cache, prompt.logits
    cache = run.cache()
    logits = language.model(context, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
    return cache, logits.float()


def measure(
    language: LanguageModel, rows: Sequence[Way], kind: str, *, tokens: int, examples: int, seed: int = 0
) -> Iterator[Mapping[str, WayOutcome]]:
    """Every example in turn: what each way did on it, by name.

    Raises:
        InputError: the context is too short or longer than the model was made for.
    """
    check_length(language, tokens + FOLLOWING)
    for number in range(examples):
        yield one_example(language, rows, kind, number, tokens=tokens, seed=seed)


def one_example(
    language: LanguageModel, rows: Sequence[Way], kind: str, number: int, *, tokens: int, seed: int = 0
) -> Mapping[str, WayOutcome]:
    """What each way did on an example by its number, by name; another one begins each time."""
    case = make_case(language, kind, seed + number, tokens)
    turn = number % len(rows)
    found = {way.name: outcome(language, way, case) for way in [*rows[turn:], *rows[:turn]]}
    return {way.name: found[way.name] for way in rows}


def bench(
    language: LanguageModel,
    methods: Sequence[PromptMethod],
    kinds: Sequence[str],
    *,
    policy: KVMethod | None = None,
    tokens: int = 2048,
    examples: int = 12,
    seed: int = 0,
    out: Path | None = None,
    command: str = "",
) -> list[PromptRun]:
    """Every kind of text with every method, and with what it is measured beside, with a progress bar; records in
    ``out`` as they come, the methods' with the first example in pieces. The command is stored in them.

    Raises:
        InputError, PolicyError: as :func:`measure`.
    """
    made: list[PromptRun] = []
    shared: dict[str, Any] = {
        "model": language.name,
        "fingerprint": language.fingerprint,
        "settings": {"following": FOLLOWING, "facts": FACTS, "seed": seed},
        "versions": versions("transformers"),
        "device": device_words(language.device, language.model.dtype),
        "command": command,
    }
    check_length(language, tokens + FOLLOWING)
    plan = {name: value for name, value in shared.items() if name != "command"}
    plan |= {"kinds": list(kinds), "ways": [str(one) for one in methods], "tokens": tokens, "examples": examples}
    unfinished = Unfinished(out, {**plan, "policy": catalog.text(policy) if policy else None})
    with tqdm(total=len(kinds) * len(methods) * examples, desc="prompt", unit="example", disable=None) as bar:
        for kind in kinds:
            for method in methods:
                rows, found = ways(method, policy), []
                for number in range(examples):
                    key = [kind, str(method), number]
                    if (before := unfinished.get(key)) is None:
                        outcomes = one_example(language, rows, kind, number, tokens=tokens, seed=seed)
                        unfinished.put(key, {name: asdict(it) for name, it in outcomes.items()})
                    else:
                        outcomes = {name: WayOutcome(**facts) for name, facts in before.items()}
                    found.append(outcomes)
                    bar.update()
                new = summarise(kind, method, tokens, rows, found, shared)
                made += new
                if out is not None:
                    out.mkdir(parents=True, exist_ok=True)
                    shown = pieces(language, kind, method, tokens=tokens, seed=seed)
                    for row in new:
                        write_prompt_run(replace(row, pieces=shown) if row.reference else row, out)
    unfinished.remove()
    return made


def pieces(
    language: LanguageModel, kind: str, method: PromptMethod, *, tokens: int, seed: int = 0
) -> list[tuple[str, int]]:
    """The first example of a kind in pieces, with the sizes of the spans they became."""
    case = make_case(language, kind, seed, tokens)
    with attach(language.model, KVPolicy(), budget=MemoryBudget.keep(1.0)) as run:
        return read(run, case.context, method, tokenizer=language.tokenizer).table(language.tokenizer)


def summarise(
    kind: str,
    method: PromptMethod,
    tokens: int,
    rows: Sequence[Way],
    found: Sequence[Mapping[str, WayOutcome]],
    header: Mapping[str, Any],
) -> list[PromptRun]:
    """One row per way; differences are to the method's. ``header``: the fields that all records begin with."""
    made = []
    for way in rows:
        mine = [outcomes[way.name] for outcomes in found]
        base, ours = ([outcomes[name] for outcomes in found] for name in (BASELINE, method.name))
        extra = [a.loss - b.loss for a, b in zip(mine, base, strict=True)]
        behind = [a.loss - b.loss for a, b in zip(mine, ours, strict=True)]
        right = [b.right - a.right for a, b in zip(mine, ours, strict=True)]
        answered = [b.answered - a.answered for a, b in zip(mine, ours, strict=True)]
        made.append(
            PromptRun(
                **header,
                kind=kind,
                ratio=method.ratio,
                way=way.name,
                beside=method.name,
                method=" ".join(filter(None, (str(way.merge or ""), catalog.text(way.policy) if way.policy else ""))),
                context=tokens,
                examples=len(found),
                held=_mean([it.held for it in mine]),
                size=_mean([it.size for it in mine]),
                loss=_mean([it.loss for it in mine]),
                extra=_mean(extra),
                extra_interval=mean_interval(extra),
                behind=_mean(behind),
                behind_interval=mean_interval(behind),
                right=_mean([it.right for it in mine]),
                right_behind=_mean(right),
                right_behind_interval=mean_interval(right),
                answered=_mean([it.answered for it in mine]),
                answered_behind=_mean(answered),
                answered_behind_interval=mean_interval(answered),
                seconds=median(it.seconds for it in mine),
                speedup=median(b.seconds / a.seconds for a, b in zip(mine, base, strict=True)),
            )
        )
    return made


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def read_methods(texts: Sequence[str], ratio: str) -> list[PromptMethod]:
    """Every method at every ratio of a text such as ``0.75,0.5``; without any, those of the family that are no
    baselines.

    Raises:
        PolicyError: there is no such method, a number is wrong, or an option unknown.
    """
    named = texts or [name for name, info in catalog.methods("prompt").items() if not info.cls.baseline]
    return [
        catalog.parse(f"{text}{',' if ':' in text else ':'}ratio={part}", "prompt")
        for text in named
        for part in ratio.split(",")
    ]


def read_kinds(given: str) -> list[str]:
    """Kinds of text, or tasks, from a text such as ``logs,prose,niah_single``.

    Raises:
        InputError: there is no such kind.
    """
    names = [part.strip() for part in given.split(",") if part.strip()]
    for name in names:
        if name not in (*KINDS, *ASKED):
            raise InputError(f"kind {name!r} is unknown.{closest(name, (*KINDS, *ASKED))}")
    if not names:
        raise InputError("No kind of text was given. Give for example logs,prose.")
    return list(dict.fromkeys(names))
