"""The measured error of a reduction in a region: in a band, on a horizon, or with weights."""

from __future__ import annotations

import math

import numpy as np

from .._util.arrays import Array, Quadruple
from ..gramians.limited import Bands, band_nodes, horizon_factor, whole_axis
from ..models.frequency_response import FrequencyResponse
from .norms import (
    compress_inputs_and_outputs,
    equilibrated,
    hinf_norm,
    negated,
    no_direct_term,
    parallel,
    refined_gains,
)
from .region import Region


def region_norm(system: Quadruple, region: Region, kind: str, *, discrete: bool) -> tuple[float, float]:
    """Return the norm of a system in a region, and the angular frequency of the largest gain (or NaN).

    ``kind`` is "hinf", the largest gain, or "h2", the square root of the energy of the impulse response up to
    the horizon or of its spectrum in the bands. There must be no poles in the bands.
    """
    system = weighted(system, region)
    if 0 in system[3].shape:
        return 0.0, 0.0 if kind == "hinf" else math.nan
    if kind == "hinf":
        return hinf_norm(
            *compress_inputs_and_outputs(*equilibrated(*system)), discrete=discrete, within=region.bands
        )
    if region.horizon is not None:
        return _impulse_energy_root(system, region.horizon, discrete=discrete), math.nan
    return _band_energy_root(
        system, region.bands or whole_axis(discrete=discrete), discrete=discrete
    ), math.nan


def region_error(
    full: tuple[Array, Array, Array], reduced: Quadruple, region: Region, kind: str, *, discrete: bool
) -> tuple[float, float]:
    """Return the norm of full minus reduced in a region, and the frequency of its largest gain.

    The D of `reduced` is its difference from the D of the full model. The returned gain is evaluated with
    additional digits, to make up for the cancellation in the difference.
    """
    difference = parallel([(*full, no_direct_term(reduced[3].shape)), negated(reduced)])
    value, at = region_norm(difference, region, kind, discrete=discrete)
    if kind != "hinf" or region.weighted or not math.isfinite(value) or 0 in difference[3].shape:
        return value, at
    edges = [edge for band in region.bands or [] for edge in band]
    candidates = np.array([at, *edges])
    gains, _ = refined_gains(full, reduced, candidates, discrete=discrete)
    if not np.all(np.isfinite(gains)):
        return value, at
    best = int(np.argmax(gains))
    return float(gains[best]), float(candidates[best])


def weighted(system: Quadruple, region: Region) -> Quadruple:
    """Return the system multiplied by the weights of a region."""
    if region.input_weight is not None:
        system = series(region.input_weight, system)
    if region.output_weight is not None:
        system = series(system, region.output_weight)
    return system


def series(first: Quadruple, second: Quadruple) -> Quadruple:
    """Return the series connection: the output of the first system is the input of the second."""
    A1, B1, C1, D1 = first
    A2, B2, C2, D2 = second
    n, k = A1.shape[0], A2.shape[0]
    A = np.zeros((n + k, n + k), np.result_type(A1, A2, B2, C1))
    A[:n, :n], A[n:, :n], A[n:, n:] = A1, B2 @ C1, A2
    return A, np.concatenate([B1, B2 @ D1]), np.concatenate([D2 @ C1, C2], axis=1), D2 @ D1


def _impulse_energy_root(system: Quadruple, horizon: float, *, discrete: bool) -> float:
    A, B, C, D = equilibrated(*system)
    if not discrete and np.any(D != 0):
        return math.inf
    image = C @ horizon_factor(A, B, horizon, discrete=discrete)
    return math.hypot(float(np.linalg.norm(image)), float(np.linalg.norm(D)))


def _band_energy_root(system: Quadruple, bands: Bands, *, discrete: bool) -> float:
    A, B, C, D = equilibrated(*system)
    if np.any(D != 0) and any(math.isinf(high) for _, high in bands):
        return math.inf
    poles = np.linalg.eigvals(A)
    frequencies, weights = band_nodes(poles, bands, discrete=discrete)
    if any(np.iscomplexobj(M) for M in (A, B, C, D)):
        frequencies = np.concatenate([frequencies, -frequencies])
        weights = np.concatenate([weights, weights]) / 2
    response = FrequencyResponse(A, B, C, D, discrete=discrete)(frequencies)
    return math.sqrt(float(weights @ np.sum(np.abs(response) ** 2, axis=(1, 2))) / math.pi)
