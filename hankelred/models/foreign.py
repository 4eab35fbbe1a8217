"""Matrices of the models of other packages, and of dicts, without importing the packages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ModelError, short_repr

#: Names under which packages keep the time between samples.
_STEPS = ("dt", "sampling_time", "ts", "Ts", "SamplingPeriod")
#: Packages whose models have no sampling time, because all of them are discrete.
_DISCRETE_PACKAGES = ("nfoursid",)


def foreign_matrices(sys: Any, dt: Any) -> tuple[tuple[Any, ...], Any] | None:
    """Return A, B, C, D, with an E also E, and the timebase of a model of another package; None for others.

    Accepted are dicts with these keys, objects with ``to_abcde_matrices()`` and a sampling time (pyMOR), and
    objects with these attributes in upper or lower case and a sampling time (SIPPY, nfoursid).

    Raises
    ------
    ModelError
        A dict without A, B or C, or an object without a sampling time.
    """
    if isinstance(sys, Mapping):
        return _of_dict(sys, dt)
    if callable(getattr(sys, "to_abcde_matrices", None)):
        A, B, C, D, E = sys.to_abcde_matrices()
        return (A, B, C, 0 if D is None else D, *(() if E is None else (E,))), _step_of(sys)
    for names in ("ABCDE", "abcde"):
        matrices = [getattr(sys, name, None) for name in names]
        if all(map(_is_matrix, matrices[:3])):
            *matrices, E = matrices
            if matrices[3] is None:
                matrices[3] = 0
            return (*matrices, *(() if E is None else (E,))), _step_of(sys)
    return None


def _of_dict(sys: Mapping[str, Any], dt: Any) -> tuple[tuple[Any, ...], Any]:
    missing = [key for key in "ABC" if key not in sys]
    if missing:
        raise ModelError(
            f"the dict has no {', '.join(missing)}; a model is a dict with A, B, C and optionally D, E and "
            f"dt, and this one has {short_repr(sorted(map(str, sys)))}"
        )
    E = sys.get("E")
    return (*(sys[key] for key in "ABC"), sys.get("D", 0), *(() if E is None else (E,))), sys.get("dt", dt)


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
        f"{type(sys).__module__}.{type(sys).__name__} has matrices but no sampling time "
        f"({', '.join(_STEPS)}), so that it may be continuous or discrete: pass (A, B, C, D), with dt= if it "
        "is discrete"
    )
