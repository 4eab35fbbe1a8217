"""The impulse response of a record: Markov parameters by least squares, with their standard errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .._util.arrays import Array
from .._util.checks import as_integer, real_number
from ..errors import HankelredError
from ..models.linear_model import Timebase
from .records import Experiments, as_experiments, refuse_constant_channels
from .toeplitz_lstsq import ConvolutionMatrix, solve_least_squares


@dataclass(frozen=True, eq=False, repr=False)
class MarkovParameters:
    """An estimated impulse response.

    Attributes
    ----------
    markov : ndarray, shape (n, p, m)
        Entry 0 is D, entry k is C A^(k-1) B; outputs per unit of input.
    standard_error : ndarray, shape (n, p, m)
        Of every entry, from the residual, for noise that is white. With ``ridge`` it is that of the
        regularised solution seen as a Bayesian mean, inf where there is no sample to spare.
    dt : True or float
        Sampling time in seconds.
    residual : ndarray, shape (p,)
        Root mean square of what the parameters leave unexplained, per output.
    input_labels, output_labels : tuple of str, or None
        Names of the channels, where the record had any.
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
    not taken as circular. Every product is an FFT, the normal equations are solved by preconditioned
    conjugate gradients, so that a hundred thousand samples and thousands of parameters take seconds.

    Parameters
    ----------
    u : array_like, shape (m, T) or (T,), or list of them, or control.TimeResponseData
        Inputs, time last. A list of arrays is several experiments.
    y : array_like, shape (p, T) or (T,), or list of them
        Outputs; left out with ``TimeResponseData``. Remove offsets first: they are not estimated here.
    n : int
        Number of parameters, entry 0 being the direct term. What the response does after n samples goes
        into the residual.
    dt : True or float
        Sampling time in seconds; only handed on.
    past : {"rest", "unknown"}
        "rest": input and state are zero before the record (as in ``control.markov``); a constant input is
        then a step. "unknown": the first n - 1 samples of every record, which its past reaches, serve as
        input only.
    ridge : float
        Weight of ``|h|^2`` beside the squared residual, as a share of the mean square of the input times its
        length. It bounds the parameters where the input excites little, at the price of a bias.

    Returns
    -------
    MarkovParameters

    Raises
    ------
    HankelredError
        Records that do not fit together, NaN, an input without an effect to see (zero, or, with an unknown
        past, constant), too few samples, or an input that does not excite n lags.
    ConvergenceError
        The iteration stagnated far from the solution.

    Notes
    -----
    Source: Ljung, System Identification (1999), section 7.3; standard errors are those of linear
    regression, their diagonal found from the displacement structure of the normal matrix where it is too
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
    data = as_experiments(u, y, dt)
    if past not in ("rest", "unknown"):
        raise HankelredError(f"past must be 'rest' or 'unknown', got {past!r}")
    refuse_constant_channels(data, outputs=False, from_rest=past == "rest")
    real_number(ridge, lambda r: 0 <= r < np.inf, "ridge must be a finite number >= 0", HankelredError)
    n = _checked_length(n, data, past == "rest", ridge > 0)
    joined = np.concatenate(data.inputs, axis=1)
    # Inputs in different units would make the normal matrix look singular.
    scale = np.sqrt(np.mean(np.abs(joined) ** 2, axis=1))
    matrix = ConvolutionMatrix([x / scale[:, None] for x in data.inputs], n, past == "rest")
    outputs = [x[:, matrix.first :] for x in data.outputs]
    h, spread, errors = solve_least_squares(matrix, outputs, ridge)
    m, p = data.n_inputs, data.n_outputs
    equations = sum(e.shape[1] for e in errors)
    squares = sum(np.sum(np.abs(e) ** 2, axis=1) for e in errors)
    # A ridge ties the parameters down: only so many are free to follow the noise.
    total = float(sum(np.sum(np.abs(x) ** 2) for x in matrix.us))
    used = n * m - ridge * total / m * float(spread.sum()) if ridge else n * m
    free = equations - used
    variance = squares / free if free > 0.5 else np.full(p, np.inf)
    error = np.sqrt(np.maximum(spread, 0)[:, None] * variance)
    return MarkovParameters(
        h.reshape(n, m, p).transpose(0, 2, 1) / scale,
        error.reshape(n, m, p).transpose(0, 2, 1) / scale,
        data.dt,
        np.sqrt(squares / equations),
        data.input_labels,
        data.output_labels,
    )


def _checked_length(n: Any, data: Experiments, at_rest: bool, regularised: bool) -> int:
    number = as_integer(n)
    if number is None:
        raise HankelredError(f"n must be a whole number of Markov parameters, got {n!r}")
    shortest = min(x.shape[1] for x in data.inputs)
    if not 1 <= number <= shortest:
        raise HankelredError(
            f"n must be from 1 to the {shortest} samples of the (shortest) record, got {number}"
        )
    equations = data.n_samples - (0 if at_rest else (number - 1) * len(data.inputs))
    if equations < number * data.n_inputs and not regularised:
        raise HankelredError(
            f"{number} Markov parameters of {data.n_inputs} input(s) are {number * data.n_inputs} unknowns, "
            f"the record gives {equations} usable samples; ask for fewer, or regularise with "
            "ridge=1e-6 or more"
        )
    return number
