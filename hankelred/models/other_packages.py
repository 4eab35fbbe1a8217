"""Matrices of the models of other packages, and of dicts, without importing the packages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ModelError, short_repr

#: Names under which packages keep the time between samples.
_STEPS = ("dt", "sampling_time", "ts", "Ts", "SamplingPeriod")
#: Packages whose models have no sampling time, because all of them are discrete.
_DISCRETE_PACKAGES = ("nfoursid",)


def matrices_of(sys: Any, dt: Any) -> tuple[tuple[Any, ...], Any] | None:
    """Return A, B, C, D, with an E also E, and the timebase of a model of another package; None for others.

    Accepted are dicts with these keys, objects with ``to_abcde_matrices()`` and a sampling time (pyMOR), and
    objects with these attributes, in upper or lower case, and a sampling time (SIPPY, nfoursid).

    Raises
    ------
    ModelError
        A dict without A, B or C, or with unclear keys; an object without a sampling time.
    """
    if isinstance(sys, Mapping):
        return _of_dict(sys, dt)
    if isinstance(sys, type):
        return None
    convert = getattr(sys, "to_abcde_matrices", None)
    if callable(convert):
        matrices = convert()
        if not isinstance(matrices, tuple | list) or len(matrices) != 5:
            raise ModelError(
                f"to_abcde_matrices() of {_name(sys)} must return (A, B, C, D, E), got {short_repr(matrices)}"
            )
        return _as_tuple(*matrices), _step_of(sys)
    for names in ("ABCDE", "abcde"):
        matrices = [getattr(sys, name, None) for name in names]
        if all(map(_is_matrix, matrices[:3])):
            return _as_tuple(*matrices), _step_of(sys)
    return None


def _as_tuple(A: Any, B: Any, C: Any, D: Any, E: Any) -> tuple[Any, ...]:
    return (A, B, C, 0 if D is None else D, *(() if E is None else (E,)))


def _of_dict(sys: Mapping[Any, Any], dt: Any) -> tuple[tuple[Any, ...], Any]:
    values: dict[str, Any] = {}
    for name in ("A", "B", "C", "D", "E", "dt"):
        # an unused "e" or "Ts" would be a wrong model in silence
        known = {step.lower() for step in _STEPS} if name == "dt" else {name.lower()}
        matches = [key for key in sys if isinstance(key, str) and key.lower() in known]
        if len(matches) > 1:
            raise ModelError(f"the dict has {' and '.join(map(repr, matches))}: which one is {name}?")
        if matches:
            values[name] = sys[matches[0]]
    missing = [name for name in "ABC" if name not in values]
    if missing:
        raise ModelError(
            f"the dict has no {', '.join(missing)}; a model is a dict with A, B, C and optionally D, E and "
            f"dt, and this one has {short_repr(sorted(map(str, sys)))}"
        )
    matrices = _as_tuple(*(values.get(name) for name in "ABCDE"))
    return matrices, values.get("dt", dt)


def _is_matrix(M: Any) -> bool:
    """Tell whether this is an array, a sparse matrix or nested lists."""
    return hasattr(M, "shape") or (isinstance(M, list | tuple) and len(M) > 0)


def _step_of(sys: Any) -> Any:
    for name in _STEPS:
        step = getattr(sys, name, None)
        if step is not None:
            return step
    if type(sys).__module__.split(".")[0] in _DISCRETE_PACKAGES:
        return True
    raise ModelError(
        f"{_name(sys)} has matrices but no sampling time ({', '.join(_STEPS)}), so that it may be continuous "
        "or discrete: pass (A, B, C, D), with dt= if it is discrete"
    )


def _name(sys: Any) -> str:
    return f"{type(sys).__module__}.{type(sys).__name__}"
