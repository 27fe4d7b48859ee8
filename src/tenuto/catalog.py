"""Finds methods by name: the files in a family's ``policies/`` and the entry points of its group ``tenuto.<family>``.

A policy is written as text, on the command line and in a Run: ``name`` or ``name:option=value,option=value``. A
diffusion method that wraps another follows it after a plus, ``every_n:n=3+adacorrection:gain=0.8``. Methods of the KV
family may be combined in the same way, ``adakv+kivi:bits=4``: a later one fills the blocks the earlier leave open.
Names are unique over all families.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, fields
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any, Literal, get_type_hints, overload

import tenuto.diffusion.policies
import tenuto.kv.policies
from tenuto.diffusion.policy import FeaturePolicy, WrappingPolicy
from tenuto.errors import PolicyError, closest
from tenuto.kv.policy import Combined, KVMethod
from tenuto.options import KINDS, read_options, write_options

__all__ = [
    "Family",
    "MethodInfo",
    "Option",
    "Policy",
    "bibtex",
    "calibration",
    "describe",
    "method",
    "methods",
    "parse",
    "parse_list",
    "text",
]

Family = Literal["diffusion", "kv"]
Policy = FeaturePolicy | KVMethod

_FAMILIES: dict[Family, tuple[ModuleType, type]] = {
    "diffusion": (tenuto.diffusion.policies, FeaturePolicy),
    "kv": (tenuto.kv.policies, KVMethod),
}
INNER, PLUS = "inner", "+"


@dataclass(frozen=True, slots=True)
class Option:
    """One number of a policy: its name, type and default (None if it must be given)."""

    name: str
    type: type
    default: Any
    required: bool


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """A method that was found: its name in text, its family, and the class that makes policies."""

    name: str
    family: Family
    cls: type[Policy]

    @property
    def summary(self) -> str:
        """The first paragraph of the docstring of the method's file, on one line."""
        module = inspect.getmodule(self.cls)
        return " ".join(inspect.cleandoc((module and module.__doc__) or "").split("\n\n")[0].split())

    @property
    def wraps(self) -> bool:
        """Whether the method goes around another one."""
        return issubclass(self.cls, WrappingPolicy)

    def options(self) -> dict[str, Option]:
        """What the policy takes, by name, in the order of its definition.

        Raises:
            PolicyError: an option is of a type that text cannot express.
        """
        hints = get_type_hints(self.cls)
        found = {}
        for item in fields(self.cls):  # type: ignore[arg-type]
            if self.wraps and item.name == INNER:
                continue
            if hints[item.name] not in KINDS:
                raise PolicyError(f"{self.name}: option {item.name!r} must be int, float, bool or str in its class.")
            default = None if item.default is MISSING else item.default
            found[item.name] = Option(item.name, hints[item.name], default, item.default is MISSING)
        return found


def methods(family: Family | None = None) -> dict[str, MethodInfo]:
    """Every method that is installed, by name, sorted; of one family if it is given.

    Raises:
        PolicyError: two methods share a name, or a file or an entry point does not give exactly one policy class.
    """
    found: dict[str, MethodInfo] = {}
    origins: dict[str, str] = {}
    for kind in _FAMILIES:
        for name, cls, origin in (*_from_files(kind), *_from_entry_points(kind)):
            if name in found:
                raise PolicyError(
                    f"Two methods are called {name!r}: {origins[name]} and {origin}. Rename or remove one."
                )
            found[name], origins[name] = MethodInfo(name, kind, cls), origin
    return {name: info for name, info in sorted(found.items()) if family in (None, info.family)}


def _from_files(family: Family) -> Iterator[tuple[str, type[Policy], str]]:
    policies, base = _FAMILIES[family]
    for module in pkgutil.iter_modules(policies.__path__):
        path = f"{policies.__name__}.{module.name}"
        yield module.name, _only_policy(importlib.import_module(path), base), path


def _only_policy(module: ModuleType, base: type) -> type[Policy]:
    here = [cls for cls in vars(module).values() if _is_policy(cls, base) and cls.__module__ == module.__name__]
    if len(here) != 1:
        names = ", ".join(cls.__name__ for cls in here) or "none"
        raise PolicyError(f"{module.__name__} must define exactly one policy class, found: {names}.")
    found: type[Policy] = here[0]
    return found


def _is_policy(value: object, base: type) -> bool:
    return inspect.isclass(value) and issubclass(value, base) and not inspect.isabstract(value)


def _from_entry_points(family: Family) -> Iterator[tuple[str, type[Policy], str]]:
    _, base = _FAMILIES[family]
    for point in entry_points(group=f"tenuto.{family}"):
        origin = f"the entry point {point.value}"
        try:
            cls = point.load()
        except (ImportError, AttributeError) as error:
            raise PolicyError(
                f"Method {point.name!r}: {origin} cannot be loaded ({error}). Uninstall or fix it."
            ) from error
        if not _is_policy(cls, base):
            raise PolicyError(f"Method {point.name!r}: {origin} is not a {base.__name__} class. Uninstall or fix it.")
        yield point.name, cls, origin


def method(name: str, family: Family | None = None) -> MethodInfo:
    """One method by name.

    Raises:
        PolicyError: there is none of that name (in that family, if one is given).
    """
    known = methods(family)
    if name not in known:
        raise PolicyError(f"Unknown policy {name!r}.{closest(name, known)}")
    return known[name]


def calibration(info: MethodInfo) -> str:
    """Whether the method needs a profile: "yes", "no", or "optional" (it has an option ``fit``)."""
    if not info.cls.calibrated:
        return "no"
    return "optional" if "fit" in info.options() else "yes"


def describe(info: MethodInfo) -> dict[str, Any]:
    """A method as JSON-ready values."""
    options = {o.name: {"type": o.type.__name__, "default": o.default} for o in info.options().values()}
    return {
        "name": info.name,
        "family": info.family,
        "class": info.cls.__name__,
        "summary": info.summary,
        "calibrated": info.cls.calibrated,
        "exact": info.cls.exact,
        "options": options,
        "sweep": list(info.cls.sweep),
        "paper": asdict(info.cls.paper),
    }


def bibtex(info: MethodInfo) -> str:
    """The BibTeX entry of a method's paper."""
    paper = info.cls.paper
    authors = [author.strip() for author in paper.authors.split(",")]
    return (
        f"@misc{{{info.name}{paper.year},\n  title = {{{{{paper.title}}}}},\n"
        f"  author = {{{' and '.join(authors)}}},\n  year = {{{paper.year}}},\n  url = {{{paper.url}}}\n}}"
    )


@overload
def parse(given: str, family: Literal["diffusion"]) -> FeaturePolicy: ...
@overload
def parse(given: str, family: Literal["kv"]) -> KVMethod: ...
@overload
def parse(given: str, family: None = None) -> Any: ...
def parse(given: str, family: Family | None = None) -> Any:
    """The policy that a text such as ``first_block:threshold=0.1``, ``every_n+adacorrection`` or ``adakv+kivi`` names.

    Raises:
        PolicyError: an unknown name or option, a value of the wrong type, or a plus where it does not belong.
        InputError: a value that the policy refuses.
    """
    first, *others = re.split(r"\+(?!\d)", given)
    policy = _parse_one(first, family, None)
    if isinstance(policy, KVMethod) and others:
        rest = [_parse_one(part, family, None) for part in others]
        if not all(isinstance(part, KVMethod) for part in rest):
            raise PolicyError(f"{given!r}: a method of the KV family can be combined with others of it only.")
        return Combined((policy, *rest))
    for part in others:
        policy = _parse_one(part, family, policy)
    return policy


def _parse_one(given: str, family: Family | None, inner: FeaturePolicy | None) -> Any:
    name, colon, rest = (part.strip() for part in given.partition(":"))
    found = method(name, family)
    if found.wraps and inner is None:
        raise PolicyError(f"{name} goes around another policy: write it after one, for example every_n:n=3+{name}.")
    if inner is not None and not found.wraps:
        around = ", ".join(info.name for info in methods("diffusion").values() if info.wraps) or "none"
        raise PolicyError(f"{name} cannot follow a plus: it wraps no other policy. Those that do: {around}.")
    options = found.options()
    values: dict[str, Any] = {INNER: inner} if found.wraps else {}
    kinds = {key: option.type for key, option in options.items()}
    values |= read_options(name, rest, kinds) if colon else {}
    if missing := [option.name for option in options.values() if option.required and option.name not in values]:
        raise PolicyError(f"{name} needs {', '.join(missing)}: write {name}:{missing[0]}=VALUE.")
    return found.cls(**values)


@overload
def parse_list(given: str, family: Literal["diffusion"]) -> list[FeaturePolicy]: ...
@overload
def parse_list(given: str, family: Literal["kv"]) -> list[KVMethod]: ...
@overload
def parse_list(given: str, family: None = None) -> list[Any]: ...
def parse_list(given: str, family: Family | None = None) -> Any:
    """Policies from a text such as ``first_block:threshold=0.1,fastcache:alpha=0.05,rtol=0.1,every_n``.

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
    found: dict[Policy, None] = {}
    for item in texts:
        policy = parse(item, family)
        if policy in found:
            raise PolicyError(f"The policy {text(policy)!r} is listed twice. List it once.")
        found[policy] = None
    return list(found)


def text(policy: Policy) -> str:
    """The text that :func:`parse` turns back into this policy: its name and the options that differ from the default.

    Raises:
        PolicyError: the policy's class is not in the catalog.
    """
    if isinstance(policy, Combined):
        return "+".join(text(part) for part in policy.parts)
    name = next((info.name for info in methods().values() if info.cls is type(policy)), None)
    if name is None:
        raise PolicyError(
            f"{type(policy).__name__} is not in the catalog. Put it in a file of its family's folder policies, "
            "or declare an entry point in the group tenuto.diffusion or tenuto.kv."
        )
    inner = text(policy.inner) + PLUS if isinstance(policy, WrappingPolicy) else ""
    return inner + write_options(name, policy, without=INNER if inner else "")
