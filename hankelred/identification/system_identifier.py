"""`SystemIdentifier`: identification with the interface of a scikit-learn estimator."""

from __future__ import annotations

import inspect
from typing import Any, Literal

import numpy as np

from .._util.arrays import Array
from ..errors import HankelredError
from ..models.linear_model import Timebase
from ..simulation.batch_recurrence import simulate_states
from .identify import IdentifiedModel, identify
from .linear_fit import FittedModel, fit_initial_states
from .output_error import spectral_radius
from .tables import Table, from_table
from .unstable_process import check_simulation


class SystemIdentifier:
    """Estimator that identifies a linear model, as :func:`identify` does, with samples first.

    Samples are rows here, as everywhere in scikit-learn, and they are one record in the order of time: they
    must not be shuffled or resampled, and only splits into contiguous pieces such as ``TimeSeriesSplit``
    make sense. scikit-learn itself is needed only by its own tools, such as ``clone`` and pipelines. Tables
    keep their names, and their times are no input, as in :func:`identify`.

    Parameters
    ----------
    order : int, optional
        Number of states; chosen from the data if None.
    dt : True or float
        Sampling time in seconds; that of the tables if they have times.
    offsets, stable : bool
        As in :func:`identify`.
    missing : {"refuse", "bridge"}
        As in :func:`identify`.

    Attributes
    ----------
    model_ : IdentifiedModel
    n_features_in_ : int
        Number of inputs.
    n_outputs_ : int

    Examples
    --------
    >>> import numpy as np, hankelred
    >>> X = np.random.default_rng(0).standard_normal((300, 1))
    >>> y = np.convolve(X[:, 0], 0.8 ** np.arange(80))[:300]
    >>> estimator = hankelred.SystemIdentifier(order=1).fit(X[:200], y[:200])
    >>> bool(estimator.score(X[200:], y[200:]) > 0.999)
    True
    """

    def __init__(
        self,
        order: int | None = None,
        *,
        dt: Timebase = True,
        offsets: bool = True,
        stable: bool = True,
        missing: Literal["refuse", "bridge"] = "refuse",
    ) -> None:
        self.order = order
        self.dt = dt
        self.offsets = offsets
        self.stable = stable
        self.missing = missing

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name.

        Parameters
        ----------
        deep : bool
            Without effect: no parameter is an estimator.
        """
        return {name: getattr(self, name) for name in _PARAMETERS}

    def set_params(self, **params: Any) -> SystemIdentifier:
        """Set parameters by name.

        Raises
        ------
        HankelredError
            There is no parameter of this name.
        """
        for name, value in params.items():
            if name not in _PARAMETERS:
                raise HankelredError(f"there is no parameter {name!r}; there are {', '.join(_PARAMETERS)}")
            setattr(self, name, value)
        return self

    def fit(self, X: Any, y: Any) -> SystemIdentifier:
        """Identify the model.

        Parameters
        ----------
        X : array_like, shape (samples, inputs) or (samples,)
        y : array_like, shape (samples, outputs) or (samples,)

        Raises
        ------
        HankelredError
            As :func:`identify` does.
        """
        if y is None:
            raise HankelredError("identification requires y to be passed, but the target y is None")
        inputs, outputs = _samples_first(X, "X"), _samples_first(y, "y")
        if inputs.shape[0] != outputs.shape[0]:
            raise HankelredError(
                f"X has {inputs.shape[0]} samples and y has {outputs.shape[0]}; rows are samples, of both"
            )
        # tables keep their names and times
        self.model_: IdentifiedModel = identify(
            inputs.T if _as_table(X, "X") is None else X,
            outputs.T if _as_table(y, "y") is None else y,
            self.order,
            dt=self.dt,
            offsets=self.offsets,
            stable=self.stable,
            missing=self.missing,
            progress=False,
        )
        self.n_features_in_, self.n_outputs_ = inputs.shape[1], outputs.shape[1]
        self._is_flat = np.asarray(y).ndim == 1
        return self

    def predict(self, X: Any) -> Array:
        """Simulate the outputs from the equilibrium that belongs to the first sample of the inputs.

        Parameters
        ----------
        X : array_like, shape (samples, inputs)

        Returns
        -------
        ndarray, shape (samples, outputs), or (samples,) if y was 1-D

        Raises
        ------
        HankelredError
            The process is unstable in open loop: its outputs cannot be predicted from the inputs alone; or
            the outputs of an unstable model are too large for double precision.

        Warns
        -----
        ReductionWarning
            The model has a pole outside the unit circle, as in :meth:`IdentifiedModel.compare`.
        """
        model, inputs = self._fitted(X)
        A, B, C, D = model.model.as_tuple()
        if model._selected.innovations is not None:
            raise HankelredError(
                f"the process is unstable in open loop (a pole of modulus {spectral_radius(A):.5f}), so its "
                "outputs cannot be predicted from the inputs alone; predict one sample ahead, with the "
                "measured outputs, by model_.compare(u, y).output"
            )
        u = inputs.T - model.input_offset[:, None]
        # an integrator has no equilibrium: least squares gives the state that changes least
        start = np.linalg.lstsq(np.eye(A.shape[0]) - A, B @ u[:, 0], rcond=1e-8)[0]
        with np.errstate(over="ignore", invalid="ignore"):
            y = C @ simulate_states(A, B, u, start) + D @ u + model.output_offset[:, None]
        check_simulation(A, y, stacklevel=2)
        return y[0] if self._is_flat else y.T

    def score(self, X: Any, y: Any) -> float:
        """Return the coefficient of determination of the simulated outputs, averaged over them.

        As in :meth:`IdentifiedModel.compare`, the initial state is fitted to the outputs, since a record does
        not begin in an equilibrium. It is 1 minus the square of 1 minus the fit there, and, of a process that
        is unstable in open loop, that of the one-step prediction.

        Parameters
        ----------
        X : array_like, shape (samples, inputs)
        y : array_like, shape (samples, outputs) or (samples,)

        Raises
        ------
        HankelredError
            The shapes do not fit, or the outputs of an unstable model are too large for double precision.

        Warns
        -----
        ReductionWarning
            The model has a pole outside the unit circle, as in :meth:`IdentifiedModel.compare`.
        """
        model, inputs = self._fitted(X)
        outputs = _samples_first(y, "y")
        if outputs.shape != (inputs.shape[0], self.n_outputs_):
            raise HankelredError(
                f"y has shape {outputs.shape}, expected {(inputs.shape[0], self.n_outputs_)}"
            )
        if model._selected.innovations is not None:
            return float(np.mean(1 - (1 - model.compare(inputs.T, outputs.T).fit) ** 2))
        A, B, C, D = model.model.as_tuple()
        u, target = inputs.T - model.input_offset[:, None], outputs.T - model.output_offset[:, None]
        size = np.linalg.norm(target - target.mean(axis=1, keepdims=True), axis=1, keepdims=True)
        size[size == 0] = 1.0
        no_state, no_offset = np.zeros(A.shape[0]), np.zeros(size.size)
        scaled = FittedModel(A, B, C / size, D / size, (no_state,), no_offset)
        _, errors = fit_initial_states(scaled, [u], [target / size])
        check_simulation(A, errors[0], stacklevel=2)
        with np.errstate(over="ignore"):
            return float(np.mean(1 - np.sum(errors[0] ** 2, axis=1)))

    def _fitted(self, X: Any) -> tuple[IdentifiedModel, Array]:
        if not self.__sklearn_is_fitted__():
            raise _not_fitted()("this SystemIdentifier is not fitted yet; call fit(X, y) first")
        inputs = _samples_first(X, "X")
        if inputs.shape[1] != self.n_features_in_:
            raise HankelredError(
                f"X has {inputs.shape[1]} features, but SystemIdentifier is expecting "
                f"{self.n_features_in_} features as input"
            )
        return self.model_, inputs

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_")

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, RegressorTags, Tags, TargetTags

        return Tags(
            estimator_type="regressor",
            target_tags=TargetTags(required=True, multi_output=True, single_output=True),
            regressor_tags=RegressorTags(poor_score=True),
            input_tags=InputTags(allow_nan=False),
            non_deterministic=False,
        )

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self)).parameters
        changed = [f"{k}={v!r}" for k, v in self.get_params().items() if v != defaults[k].default]
        return f"SystemIdentifier({', '.join(changed)})"


_PARAMETERS = tuple(inspect.signature(SystemIdentifier).parameters)


def _not_fitted() -> type[Exception]:
    """Return the exception that scikit-learn expects, if it is installed."""
    try:
        from sklearn.exceptions import NotFittedError
    except ImportError:
        return HankelredError
    return type("NotFittedError", (HankelredError, NotFittedError), {})


def _as_table(x: Any, name: str) -> Table | None:
    """Return a table with samples in rows; None for anything else."""
    shape: tuple[int, ...] = getattr(x, "shape", ())
    return from_table(x, name) if len(shape) == 1 or (len(shape) == 2 and shape[0] >= shape[1]) else None


def _samples_first(x: Any, name: str) -> Array:
    """Return samples in rows, without a column of times."""
    if hasattr(x, "toarray"):
        raise HankelredError(f"{name} is sparse; sparse data was passed, but a dense record is required")
    table = _as_table(x, name)
    try:
        values = np.asarray(x if table is None else table.values.T)
        if not np.iscomplexobj(values):
            values = values.astype(float)
    except (TypeError, ValueError) as error:
        raise HankelredError(f"{name} is no numeric array: {error}") from None
    # check_estimator of scikit-learn looks for the words of these messages
    if np.iscomplexobj(values):
        raise HankelredError(f"Complex data not supported: {name} is complex")
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim == 2 and values.shape[1] == 0:
        raise HankelredError(
            f"{name} has 0 feature(s) (shape={values.shape}) while a minimum of 1 is required, as columns"
        )
    if values.ndim != 2 or 0 in values.shape:
        raise HankelredError(f"{name} must be (samples, channels) or 1-D, got shape {values.shape}")
    return values
