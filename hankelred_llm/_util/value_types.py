"""Types of the values in settings and files, checked by pydantic; its first error becomes one line of ours.

Pydantic comes with the extra ``experiments``, and only this module imports it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from hankelred.errors import short_repr

from ..errors import ExperimentError

try:
    from pydantic import AfterValidator, BeforeValidator, Field, Strict
    from pydantic import TypeAdapter as TypeAdapter
    from pydantic import ValidationError as ValidationError
except ModuleNotFoundError as error:
    raise ExperimentError(
        f"train, evaluate and compare need {error.name}; run: pip install 'hankelred[experiments]'"
    ) from None

T = TypeVar("T")

#: The largest whole number of a setting: seeds of numpy end there, and nothing else has a use for more.
LARGEST = 2**32 - 1

#: Values of a mapping, lists within lists counted one by one, and how deep these may be.
_VALUES, _DEPTH = 10_000, 8


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _each_once(values: list[Any]) -> list[Any]:
    if not values or len(set(values)) < len(values):
        raise ValueError("give at least one, and each once")
    return values


def _text(value: Any) -> Any:
    return str(value) if type(value) is int else value


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value  # YAML takes 1e-3 for a text
    except ValueError:
        return value


def _by_name(value: Any) -> Any:
    return value if isinstance(value, dict) else {"default": value}


def _bounded(value: dict[str, Any]) -> dict[str, Any]:
    remaining = _VALUES
    lists: list[tuple[Any, int]] = [(value, 0)]
    while lists:  # entries that occur twice are counted twice: repr and copies write them out, too
        container, depth = lists.pop()
        remaining -= len(container)
        if remaining < 0 or depth > _DEPTH:
            raise ValueError(f"give at most {_VALUES} values in all, in at most {_DEPTH} lists within lists")
        entries = container.values() if isinstance(container, dict) else container
        lists += [(entry, depth + 1) for entry in entries if isinstance(entry, (dict, list, tuple, set))]
    return value


def _without_nul(value: str) -> str:
    if "\0" in value:  # no name of a file, task or method has one
        raise ValueError("give a text without NUL characters")
    return value


#: A text, or a number that YAML reads as one.
Text = Annotated[str, AfterValidator(_without_nul), BeforeValidator(_text)]
Flag = Annotated[bool, Strict()]
Precision = Literal["float32", "bfloat16"]
#: Whole numbers from 0 and from 1.
Index = Annotated[int, Strict(), Field(ge=0, le=LARGEST)]
Count = Annotated[int, Strict(), Field(ge=1, le=LARGEST)]
#: Finite numbers, from 0 and above 0.
Weight = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False), BeforeValidator(_number)]
Rate = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False), BeforeValidator(_number)]
#: A list, or a single value for a list of one; the second with at least one value, and each once.
ListOf = Annotated[list[T], BeforeValidator(_listed)]
SetOf = Annotated[list[T], BeforeValidator(_listed), AfterValidator(_each_once)]
#: Values by name, of a limited size.
Options = Annotated[dict[Text, Any], AfterValidator(_bounded)]
#: Lists of rates by name, or one list under the name "default".
RatesByName = Annotated[
    dict[Text, Annotated[list[Rate], Field(min_length=1), BeforeValidator(_listed)]],
    BeforeValidator(_by_name),
]

#: Of files that are written here: nothing is converted. NaN is the loss of a run that diverged.
FileText = Annotated[str, Strict()]
FileNumber = Annotated[float, Strict()]
FileCount = Annotated[int, Strict(), Field(ge=0, lt=2**63)]
NotEmpty = Annotated[T, Field(min_length=1)]


def problem(error: ValidationError, name: str = "") -> str:
    """Return the first error of pydantic: the place in the value of a name, what is there, what should be.

    Examples
    --------
    >>> from hankelred_llm._util.value_types import Count, ListOf, TypeAdapter, ValidationError, problem
    >>> try:
    ...     TypeAdapter(ListOf[Count]).validate_python([1, 0])
    ... except ValidationError as error:
    ...     problem(error, "lengths")
    'lengths[1] is 0; it should be greater than or equal to 1'
    """
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    place = [name, *first["loc"]] if name else list(first["loc"])
    absent = place.pop() if first["type"] == "missing" else None
    place = [key for key in place if key != "[key]"]  # what pydantic adds for the key of a dict
    where = f"{place[0]}{''.join(f'[{short_repr(key)}]' for key in place[1:])}" if place else "it"
    if absent is not None:
        return f"{where} has no {short_repr(absent)}"
    if not place:
        return str(message)
    message = message.replace(" after validation", "")
    _, should, rest = message.partition(" should ")  # of "Input should be ..."
    return f"{where} is {short_repr(first['input'])}; {f'it should {rest}' if should else message}"
