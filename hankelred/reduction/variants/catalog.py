"""All reduction methods by name, with their arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...errors import ModelError, name_list, short_repr
from ...gramians.factorize import factorize
from ...models.linear_model import LinearModel
from ..balancing import balance
from ..methods import BalancedSource, Residualization, Truncation
from .coprime import Coprime
from .hankel_norm import HankelNorm
from .modal_truncation import Modal
from .passive import BoundedReal, PositiveReal
from .restricted import frequency_limited, frequency_weighted, time_limited
from .stochastic import Stochastic


@dataclass(frozen=True)
class Method:
    """The function that creates the source of a method, all its arguments, and the required ones."""

    make: Callable[..., BalancedSource]
    options: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    #: why an improper model is refused; empty where the polynomial part is kept beside the reduced finite one
    needs_proper: str = ""


def _balanced(source_type: type[BalancedSource]) -> Method:
    """Return the entry of a method that requires only the balanced model."""

    def make(model: LinearModel, stability_tol: float) -> BalancedSource:
        reciprocal = source_type.reciprocal and not model.is_discrete
        return source_type(model, balance(factorize(model, stability_tol), reciprocal=reciprocal))

    return Method(make)


#: The methods by their names as arguments of `reduce` and on the command line.
REDUCTION_METHODS: dict[str, Method] = {
    "truncation": _balanced(Truncation),
    "residualization": _balanced(Residualization),
    "frequency_limited": Method(frequency_limited, ("band",), ("band",)),
    "time_limited": Method(time_limited, ("horizon",), ("horizon",)),
    "frequency_weighted": Method(frequency_weighted, ("input_weight", "output_weight", "weighting")),
    "stochastic": Method(
        Stochastic,
        ("regularization",),
        needs_proper=(
            "method='stochastic' bounds the relative error, which is meaningless for a gain that grows "
            "without limit"
        ),
    ),
    "hankel_norm": Method(HankelNorm),
    "coprime": Method(Coprime, needs_proper="method='coprime' requires a proper model"),
    "modal": Method(Modal),
    "positive_real": Method(
        PositiveReal, needs_proper="method='positive_real' keeps the passivity of proper models only"
    ),
    "bounded_real": Method(BoundedReal, needs_proper="no gain bounds it, as method='bounded_real' needs"),
}

#: Alternative names, used by other packages.
ALIASES = {"matchdc": "residualization"}


def checked_method(method: Any, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the name of a method and the arguments that were passed for it.

    Raises
    ------
    ModelError
        The method is unknown, an argument belongs to another method, or a required argument is missing.
    """
    name = ALIASES.get(method, method) if isinstance(method, str) else method
    if not isinstance(name, str) or name not in REDUCTION_METHODS:
        raise ModelError(
            f"method must be one of {', '.join([*REDUCTION_METHODS, *ALIASES])}, got {short_repr(method)}"
        )
    passed = {key: value for key, value in options.items() if value is not None}
    entry = REDUCTION_METHODS[name]
    for key in passed:
        if key not in entry.options:
            methods = [other for other, candidate in REDUCTION_METHODS.items() if key in candidate.options]
            raise ModelError(
                f"{key}= belongs to method={name_list(map(repr, methods))}, got method={method!r}"
            )
    missing = [key for key in entry.required if key not in passed]
    if missing:
        raise ModelError(f"method={name!r} needs {missing[0]}=")
    return name, passed
