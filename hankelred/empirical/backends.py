"""The backend of joblib in which experiments are run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ..errors import HankelredError

_NAMES = ("loky", "threading", "multiprocessing", "dask", "ray")


def check_backend(backend: Any) -> None:
    """Raise unless this is None, a name, the address of a Dask scheduler or a Dask client."""
    if backend is None or backend in _NAMES or _is_address(backend) or _is_client(backend):
        return
    raise HankelredError(
        f"backend must be one of {', '.join(_NAMES)}, the address of a Dask scheduler (as in "
        f"'tcp://host:8786') or a Dask client, got {backend!r}"
    )


def use_backend(backend: Any, n_jobs: int | None) -> AbstractContextManager[Any]:
    """Return the context in which joblib uses the backend, with all its workers unless n_jobs is given."""
    if backend is None:
        return nullcontext()
    import joblib

    if _is_client(backend):
        options = {"backend": "dask", "client": backend}
    elif _is_address(backend):
        options = {"backend": "dask", "scheduler_host": backend}
    else:
        options = {"backend": backend}
    try:
        if backend == "ray":
            from ray.util.joblib import register_ray

            register_ray()
        context: AbstractContextManager[Any] = joblib.parallel_config(
            n_jobs=-1 if n_jobs is None else n_jobs, **options
        )
    except ImportError as error:
        raise HankelredError(f"backend {backend!r} needs a package that is not installed: {error}") from error
    except (ValueError, OSError) as error:
        # of joblib without Dask or without a client, and of Dask where nothing answers at an address
        reason = " ".join(str(error).split())
        raise HankelredError(f"backend {backend!r} cannot be used: {reason}") from error
    return context


def _is_address(backend: Any) -> bool:
    return isinstance(backend, str) and "://" in backend


def _is_client(backend: Any) -> bool:
    return any(
        cls.__module__.startswith("distributed") and cls.__name__ == "Client" for cls in type(backend).__mro__
    )
