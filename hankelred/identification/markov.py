"""`markov_parameters`: an impulse response by least squares from a record, with standard errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .._util.arrays import Array
from .._util.checks import as_integer, real_number, require_option
from ..errors import HankelredError
from ..models.linear_model import Timebase
from .records import RecordedData, as_recorded_data, refuse_constant_channels
from .toeplitz_lstsq import ConvolutionMatrix, solve_least_squares


@dataclass(frozen=True, eq=False, repr=False)
class MarkovParameters:
    """An estimated impulse response.

    Attributes
    ----------
    markov : ndarray, shape (n, p, m)
        Entry 0 is D, entry k is C A^(k-1) B; outputs per unit of input.
    standard_error : ndarray, shape (n, p, m)
        Standard error of every entry, from the residual, for white noise. With ``ridge`` it is that of the
        regularized solution as a Bayesian posterior mean. It is inf where there are no more equations than
        parameters.
    dt : True or float
        Sampling time in seconds.
    residual : ndarray, shape (p,)
        Root mean square of the residual, per output.
    input_labels, output_labels : tuple of str, or None
        Names of the channels, if the record has names.
    """

    markov: Array
    standard_error: Array
    dt: Timebase
    residual: Array
    input_labels: tuple[str, ...] | None = None
    output_labels: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        n, p, m = self.markov.shape
        return (
            f"<MarkovParameters: {n} of {p} output(s) by {m} input(s), dt = {self.dt}: largest "
            f"{np.abs(self.markov).max(initial=0.0):.3g}, largest standard error "
            f"{self.standard_error.max(initial=0.0):.2g}>"
        )


def markov_parameters(
    u: Any,
    y: Any = None,
    n: int | None = None,
    *,
    dt: Timebase = True,
    past: Literal["rest", "unknown"] = "rest",
    ridge: float = 0.0,
) -> MarkovParameters:
    """Estimate the first n Markov parameters (the impulse response) from recorded data.

    Least squares for ``y[t] = sum_k h[k] u[t - k]``, exact at the edges of the record: the convolution is
    not circular. Products are computed by FFT and the normal equations are solved by preconditioned
    conjugate gradients, so that a hundred thousand samples and thousands of parameters take seconds.

    Parameters
    ----------
    u : array_like, shape (m, T) or (T,), or list of them, or control.TimeResponseData
        Inputs, time last. A list of arrays is several records.
    y : array_like, shape (p, T) or (T,), or list of them
        Outputs; left out with ``TimeResponseData``. Remove offsets first: they are not estimated here.
    n : int
        Number of parameters, entry 0 being the direct term. The part of the response after n samples
        becomes part of the residual.
    dt : True or float
        Sampling time in seconds; it is only passed on to the result.
    past : {"rest", "unknown"}
        "rest": input and state are zero before the record (as in ``control.markov``); a constant input is
        then a step. "unknown": the first n - 1 outputs of every record, which depend on inputs before it, are
        not used.
    ridge : float
        Weight of ``|h|^2`` relative to the squared residual, as a share of the mean square of the input
        times its length. It bounds the parameters where the input excites little, but introduces a bias.

    Returns
    -------
    MarkovParameters

    Raises
    ------
    HankelredError
        The records do not fit together or contain NaN, an input has no identifiable effect (it is zero, or
        constant with an unknown past), there are too few samples, or the input does not excite n lags.
    ConvergenceError
        The iteration stagnated far from the solution.

    Notes
    -----
    Source: Ljung, System Identification (1999), section 7.3; standard errors are those of linear
    regression, their diagonal computed from the displacement structure of the normal matrix where it is too
    large to invert.

    Examples
    --------
    >>> import numpy as np, hankelred
    >>> u = np.random.default_rng(0).standard_normal(200)
    >>> y = 0.5 * np.concatenate([[0], u[:-1]]) + 0.25 * np.concatenate([[0, 0], u[:-2]])
    >>> estimate = hankelred.markov_parameters(u, y, 4, dt=0.1)
    >>> np.round(estimate.markov[:, 0, 0], 12) + 0.0
    array([0.  , 0.5 , 0.25, 0.  ])
    """
    data = as_recorded_data(u, y, dt)
    require_option(past, ("rest", "unknown"), "past", HankelredError)
    refuse_constant_channels(data, outputs=False, from_rest=past == "rest")
    real_number(ridge, lambda r: 0 <= r < np.inf, "ridge must be a finite number >= 0", HankelredError)
    n = _checked_length(n, data, past == "rest", ridge > 0)
    joined = np.concatenate(data.inputs, axis=1)
    # Inputs in different units would make the normal matrix look singular.
    scale = np.sqrt(np.mean(np.abs(joined) ** 2, axis=1))
    matrix = ConvolutionMatrix([x / scale[:, None] for x in data.inputs], n, past == "rest")
    outputs = [x[:, matrix.first :] for x in data.outputs]
    h, variance_factors, errors = solve_least_squares(matrix, outputs, ridge)
    m, p = data.n_inputs, data.n_outputs
    equations = sum(e.shape[1] for e in errors)
    squares = sum(np.sum(np.abs(e) ** 2, axis=1) for e in errors)
    # The effective number of parameters, which a ridge makes smaller than n m.
    total = float(sum(np.sum(np.abs(x) ** 2) for x in matrix.us))
    n_parameters = n * m - ridge * total / m * float(variance_factors.sum()) if ridge else n * m
    degrees_of_freedom = equations - n_parameters
    variance = squares / degrees_of_freedom if degrees_of_freedom > 0.5 else np.full(p, np.inf)
    error = np.sqrt(np.maximum(variance_factors, 0)[:, None] * variance)
    return MarkovParameters(
        h.reshape(n, m, p).transpose(0, 2, 1) / scale,
        error.reshape(n, m, p).transpose(0, 2, 1) / scale,
        data.dt,
        np.sqrt(squares / equations),
        data.input_labels,
        data.output_labels,
    )


def _checked_length(n: Any, data: RecordedData, starts_at_rest: bool, regularized: bool) -> int:
    number = as_integer(n)
    if number is None:
        raise HankelredError(f"n must be a whole number of Markov parameters, got {n!r}")
    shortest = min(x.shape[1] for x in data.inputs)
    if not 1 <= number <= shortest:
        raise HankelredError(
            f"n must be from 1 to the {shortest} samples of the (shortest) record, got {number}"
        )
    equations = data.n_samples - (0 if starts_at_rest else (number - 1) * len(data.inputs))
    if equations < number * data.n_inputs and not regularized:
        raise HankelredError(
            f"{number} Markov parameters of {data.n_inputs} input(s) are {number * data.n_inputs} unknowns, "
            f"the record gives {equations} usable samples; use fewer parameters, or regularize with "
            "ridge=1e-6 or more"
        )
    return number
