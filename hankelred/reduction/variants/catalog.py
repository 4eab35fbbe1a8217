"""Every method of reduction by name, and the arguments that belong to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...errors import ModelError, listed, shown
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
    """How a method makes its source, the arguments it takes, and those it cannot do without."""

    make: Callable[..., BalancedSource]
    options: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()


def _truncation(model: LinearModel, stability_tol: float) -> BalancedSource:
    return Truncation(model, balance(factorize(model, stability_tol)))


def _residualization(model: LinearModel, stability_tol: float) -> BalancedSource:
    factored = factorize(model, stability_tol)
    return Residualization(model, balance(factored, reciprocal=not model.is_discrete))


METHODS: dict[str, Method] = {
    "truncation": Method(_truncation),
    "residualization": Method(_residualization),
    "frequency_limited": Method(frequency_limited, ("band",), ("band",)),
    "time_limited": Method(time_limited, ("horizon",), ("horizon",)),
    "frequency_weighted": Method(frequency_weighted, ("input_weight", "output_weight", "weighting")),
    "stochastic": Method(Stochastic, ("regularization",)),
    "hankel_norm": Method(HankelNorm),
    "coprime": Method(Coprime),
    "modal": Method(Modal),
    "positive_real": Method(PositiveReal),
    "bounded_real": Method(BoundedReal),
}

#: Other names, as other packages have them.
ALIASES = {"matchdc": "residualization"}


def checked_method(method: Any, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the name of a method and those of its arguments that were given.

    Raises
    ------
    ModelError
        An unknown method, an argument of another method, or one that is missing.
    """
    name = ALIASES.get(method, method) if isinstance(method, str) else method
    if not isinstance(name, str) or name not in METHODS:
        raise ModelError(f"method must be one of {', '.join([*METHODS, *ALIASES])}, got {shown(method)}")
    given = {key: value for key, value in options.items() if value is not None}
    own = METHODS[name]
    for key in given:
        if key not in own.options:
            serves = [other for other, entry in METHODS.items() if key in entry.options]
            raise ModelError(f"{key}= belongs to method={listed(map(repr, serves))}, got method={method!r}")
    missing = [key for key in own.needed if key not in given]
    if missing:
        raise ModelError(f"method={name!r} needs {missing[0]}=")
    return name, given
