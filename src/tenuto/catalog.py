"""The methods of all families by name: found, described, cited, read from text and written as text.

A policy is written as text, on the command line and in a record: ``name`` or ``name:option=value,option=value``; where
the methods of a family compose, several are joined by a plus, and the family's contract says what that means. Names are
unique over all families.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from typing import Any, Literal, overload

from tenuto import discover
from tenuto.attention.policy import Attention
from tenuto.diffusion.policy import FeaturePolicy
from tenuto.discover import PLUS
from tenuto.errors import PolicyError
from tenuto.kv.policy import KVMethod
from tenuto.method import Method, Option
from tenuto.prompt.policy import PromptMethod
from tenuto.reuse.policy import Assembler
from tenuto.shards.policy import ShardMethod

__all__ = [
    "FAMILIES",
    "Family",
    "MethodInfo",
    "bibtex",
    "describe",
    "method",
    "methods",
    "parse",
    "parse_list",
    "text",
]

Family = Literal["diffusion", "kv", "shards", "reuse", "attention", "prompt"]

FAMILIES: dict[Family, type[Method]] = {
    "diffusion": FeaturePolicy,
    "kv": KVMethod,
    "shards": ShardMethod,
    "reuse": Assembler,
    "attention": Attention,
    "prompt": PromptMethod,
}
"""The families and the base class of each one's contract."""


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """A method that was found.

    Attributes:
        name: in text.
        family: the family it belongs to.
        cls: the class that makes policies.
    """

    name: str
    family: Family
    cls: type[Method]

    @property
    def summary(self) -> str:
        """The first paragraph of the docstring of the method's file, on one line."""
        module = inspect.getmodule(self.cls)
        return " ".join(inspect.cleandoc((module and module.__doc__) or "").split("\n\n")[0].split())

    @property
    def wraps(self) -> bool:
        """Whether the method goes around another one, which must be given."""
        mine = inspect.signature(self.cls).parameters.get(self.cls.linked)
        return mine is not None and mine.default is inspect.Parameter.empty

    def options(self) -> dict[str, Option]:
        """What the policy takes, by name: see :meth:`tenuto.method.Method.options`."""
        return self.cls.options()


def methods(family: Family | None = None) -> dict[str, MethodInfo]:
    """Every method that is installed, by name, sorted; of one family if it is given.

    Raises:
        PolicyError: two methods share a name, or a file or an entry point does not give exactly one policy class.
    """
    points, families = entry_points(), dict[type[Method], Family]()
    sources = list[discover.Source]()
    for kind, base in FAMILIES.items():
        found = [*discover.own(base), *discover.installed(base, points)]
        families |= {cls: kind for cls, _ in found}
        sources += found
    infos = {name: MethodInfo(name, families[cls], cls) for name, (cls, _) in discover.resolved(sources).items()}
    return {name: info for name, info in infos.items() if family in (None, info.family)}


def method(name: str, family: Family | None = None) -> MethodInfo:
    """One method by name, or by a name it had before.

    Raises:
        PolicyError: there is none of that name (in that family, if one is given).
    """
    every = methods()
    for info in every.values():
        if name in info.cls.aliases and family in (None, info.family):
            return info
    if name not in every or family not in (None, every[name].family):
        raise PolicyError(_unknown(name, every, family))
    return every[name]


def _unknown(name: str, every: dict[str, MethodInfo], family: Family | None) -> str:
    """What is said of a name that is not there, or not in that family: what is near, with its family."""
    import difflib

    names = {alias: info for info in every.values() for alias in (info.name, *info.cls.aliases)}
    if name in names:
        return f"{name!r} is a method of the family {names[name].family}, not of {family}. {_allowed(every, family)}"
    near = difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r} ({names[near[0]].family})?" if near else ""
    return f"Unknown policy {name!r}.{hint} {_allowed(every, family)}"


def _allowed(every: dict[str, MethodInfo], family: Family | None) -> str:
    if family is None:
        return "`tenuto methods` lists all there are."
    return f"Allowed: {', '.join(name for name, info in every.items() if info.family == family)}."


def describe(info: MethodInfo) -> dict[str, Any]:
    """A method as JSON-ready values."""
    cls = info.cls
    options = {o.name: {"type": o.type.__name__, "default": o.default} for o in info.options().values()}
    return {
        "name": info.name,
        "family": info.family,
        "class": cls.__name__,
        "summary": info.summary,
        "baseline": cls.baseline,
        "calibrated": cls.calibrated,
        "exact": cls.exact,
        "options": options,
        "sweep": list(cls.sweep),
        "aliases": dict(cls.aliases),
        "paper": asdict(cls.paper) if cls.paper else None,
        "claims": [asdict(claim) for claim in cls.claims],
    }


def bibtex(info: MethodInfo) -> str:
    """The BibTeX entry of a method's paper.

    Raises:
        PolicyError: it is a baseline without a paper.
    """
    paper = info.cls.paper
    if paper is None:
        raise PolicyError(f"{info.name} is a baseline without a paper: there is nothing to cite.")
    authors = [author.strip() for author in paper.authors.split(",")]
    note = f",\n  note = {{{'; '.join(map(_in_short, info.cls.claims))}}}" if info.cls.claims else ""
    return (
        f"@misc{{{info.name}{paper.year},\n  title = {{{{{paper.title}}}}},\n"
        f"  author = {{{' and '.join(authors)}}},\n  year = {{{paper.year}}},\n  url = {{{paper.url}}}{note}\n}}"
    )


def _in_short(claim: Any) -> str:
    return re.sub(r"([%&#$_])", r"\\\1", f"{claim.quantity}: {claim.value} ({claim.model}; {claim.source})")


@overload
def parse(given: str, family: Literal["diffusion"]) -> FeaturePolicy: ...
@overload
def parse(given: str, family: Literal["kv"]) -> KVMethod: ...
@overload
def parse(given: str, family: Literal["shards"]) -> ShardMethod: ...
@overload
def parse(given: str, family: Literal["reuse"]) -> Assembler: ...
@overload
def parse(given: str, family: Literal["attention"]) -> Attention: ...
@overload
def parse(given: str, family: Literal["prompt"]) -> PromptMethod: ...
@overload
def parse(given: str, family: None = None) -> Any: ...
def parse(given: str, family: Family | None = None) -> Any:
    """The policy that a text such as ``name:option=0.1`` or ``one+other`` names. The first name says which family.

    Raises:
        PolicyError: an unknown name or option, a value of the wrong type, or a plus where it does not belong.
        InputError: a value that the policy refuses.
    """
    every = methods()
    first = re.split(r"[+:]", given)[0].strip()
    kind = family or method(first).family
    known = {name: info.cls for name, info in every.items() if info.family == kind}
    return discover.parse(given, known, lambda name: _unknown(name, every, family or (kind if name in every else None)))


@overload
def parse_list(given: str, family: Literal["diffusion"]) -> list[FeaturePolicy]: ...
@overload
def parse_list(given: str, family: Literal["kv"]) -> list[KVMethod]: ...
@overload
def parse_list(given: str, family: Family | None = None) -> list[Any]: ...
def parse_list(given: str, family: Family | None = None) -> Any:
    """Policies from a text such as ``one:threshold=0.1,other:alpha=0.05,rtol=0.1,third``.

    A part that begins with ``option=value`` belongs to the policy before it.

    Raises:
        PolicyError: as for :func:`parse`, or a policy is listed twice.
        InputError: as for :func:`parse`.
    """
    texts: list[str] = []
    for token in given.split(","):
        if "=" not in re.split("[+:]", token)[0]:
            texts.append(token)
        elif texts:
            texts[-1] += ("," if ":" in texts[-1].rpartition(PLUS)[2] else ":") + token
        else:
            raise PolicyError(f"{token.strip()!r} comes before any policy. Write name:option=value,name,...")
    policies: dict[Method, None] = {}
    for item in texts:
        policy = parse(item, family)
        if policy in policies:
            raise PolicyError(f"The policy {text(policy)!r} is listed twice. List it once.")
        policies[policy] = None
    return list(policies)


def text(policy: Method) -> str:
    """The text that :func:`parse` turns back into this policy: its name and the options that differ from the default.

    Raises:
        PolicyError: the policy's class is not in the catalog.
    """
    known = {cls for base in FAMILIES.values() for cls, _ in discover.own(base)}
    others = {type(part) for part in policy.chain} - known
    if others and (lacking := others - {info.cls for info in methods().values()}):
        raise PolicyError(
            f"{lacking.pop().__name__} is not in the catalog. Put it in a file of its family's folder policies, or "
            f"declare an entry point in one of the groups {', '.join(f'tenuto.{family}' for family in FAMILIES)}."
        )
    return str(policy)
