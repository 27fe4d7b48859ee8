"""What every method of every family is: a frozen dataclass of numbers with a name, a paper and a text.

A family's contract (``policy.py``) derives its base class from :class:`Method` and adds what its engine asks for. The
text of a method is its name and the options that differ from their defaults, ``name:option=value``; where methods
compose, the texts of several are joined by a plus, and :meth:`Method.plus` of the family says what that means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Self, get_type_hints

from tenuto.errors import PolicyError
from tenuto.options import KINDS, write_options
from tenuto.paper import Claim, Paper

__all__ = ["Method", "Option"]


@dataclass(frozen=True, slots=True)
class Option:
    """One number of a policy.

    Attributes:
        name: of the field.
        type: int, float, bool or str.
        default: None if it must be given.
        required: whether it must be given.
    """

    name: str
    type: type
    default: Any
    required: bool


class Method:
    """A published method, or a baseline to measure it by: a frozen, slotted, keyword-only dataclass of numbers.

    Class attributes:
        name: in text; the name of the method's file unless it is given.
        aliases: what older texts call it, to the text it has now.
        paper: where it comes from, None for a baseline that nobody published.
        claims: the headline numbers of its authors; none of a baseline.
        baseline: whether it is what methods are measured by, and no method of its own.
        exact: whether the output equals the uncached one.
        calibrated: whether it cannot run without a profile.
        sweep: its texts from mild to strong, for curves and demonstrations.
        trials: small texts that the laws of its family try; without any, the last of ``sweep``, or its defaults.
        linked: the field that holds another method, which is no option; "" for none.
        follows: whether its text may follow a plus.
    """

    __slots__ = ()
    name: ClassVar[str] = ""
    aliases: ClassVar[Mapping[str, str]] = {}
    paper: ClassVar[Paper | None] = None
    claims: ClassVar[tuple[Claim, ...]] = ()
    baseline: ClassVar[bool] = False
    exact: ClassVar[bool] = False
    calibrated: ClassVar[bool] = False
    sweep: ClassVar[tuple[str, ...]] = ()
    trials: ClassVar[tuple[str, ...]] = ()
    linked: ClassVar[str] = ""
    follows: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        if "name" not in vars(cls):
            cls.name = cls.__module__.rpartition(".")[2]

    @classmethod
    def options(cls) -> dict[str, Option]:
        """What the policy takes, by name, in the order of its definition.

        Raises:
            PolicyError: an option is of a type that text cannot express.
        """
        hints, options = get_type_hints(cls), dict[str, Option]()
        for item in fields(cls):  # type: ignore[arg-type]
            if item.name == cls.linked:
                continue
            if hints[item.name] not in KINDS:
                raise PolicyError(f"{cls.name}: option {item.name!r} must be int, float, bool or str in its class.")
            default = None if item.default is MISSING else item.default
            options[item.name] = Option(item.name, hints[item.name], default, item.default is MISSING)
        return options

    @classmethod
    def after(cls, before: Method | None, values: Mapping[str, Any]) -> Method:
        """The policy of this class with these options, put after the one that stands before it in a text.

        Args:
            before: None where it stands first.

        Raises:
            PolicyError: the two do not go together. InputError or PolicyError: a value that is not allowed.
        """
        own = cls.of(values)
        return own if before is None else before.plus(own)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The policy with these values by field."""
        return cls(**values)

    def plus(self, then: Method) -> Method:
        """What ``self+then`` means.

        Raises:
            PolicyError: the two do not go together.
        """
        raise PolicyError(f"{then.name} cannot follow {self.name}: {self.name} takes no other method.")

    @property
    def chain(self) -> tuple[Method, ...]:
        """The methods whose texts, joined by a plus, are this one's."""
        return (self,)

    def __str__(self) -> str:
        return "+".join(write_options(part.name, part, without=part.linked) for part in self.chain)
