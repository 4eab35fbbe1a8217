"""Excitation signals, and the deconvolution that recovers the impulse response from the response to them.

For a linear system the deconvolution is exact, so that every excitation gives the same Gramian. It has
two steps: first the *pulse response* p, the response to one input sample of height 1, by inverting
the excitation (differencing for a step, division of spectra for every broadband signal); then, in
continuous time, the true impulse response from p, given how the simulator holds its input between
samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .._util.arrays import Array
from .._util.checks import first_index
from ..errors import HankelredError
from .quadrature import derivative

Seed: TypeAlias = int | np.random.Generator

EXCITATIONS = ("impulse", "step", "prbs", "chirp", "multisine", "white_noise")

#: A record whose spectrum has a bin this far below its largest loses too many digits in the division.
_SPECTRUM_FLOOR = 1e-9


@dataclass(frozen=True)
class Excitation:
    """Waveforms, one for each input, and how the response to them is deconvolved.

    ``shape`` selects the deconvolution: "pulse", "step", "periodic" (of the last ``period`` samples,
    when the initial transient has died out) or "record" (of the whole run, which ends at rest).
    """

    name: str
    shape: str
    #: (m, run_length) input samples, for a scale of 1
    waveforms: Array
    #: length of the pulse response
    samples: int
    #: sample at which the pulse is applied, and its height
    onset: int = 0
    height: float = 1.0
    period: int = 0
    #: "zoh" or "foh": how the pulse of the pulse response is held between samples
    hold: str = "zoh"

    @property
    def run_length(self) -> int:
        """Number of samples of one experiment."""
        return int(self.waveforms.shape[1])

    def pulse_response(self, states: Array, channel: int) -> Array:
        """Return p (n, samples) from the deviation (n, run_length) caused by waveform ``channel``."""
        if self.shape == "pulse":
            return states[:, self.onset : self.onset + self.samples] / self.height
        if self.shape == "step":
            return np.diff(states[:, : self.samples], axis=1, prepend=0.0)
        waveform = self.waveforms[channel]
        if self.shape == "periodic":
            waveform, states = waveform[-self.period :], states[:, -self.period :]
        quotient: Array = np.fft.ifft(np.fft.fft(states) / np.fft.fft(waveform))[:, : self.samples]
        return quotient if np.iscomplexobj(states) else quotient.real

    @property
    def amplification(self) -> float:
        """Approximate factor by which the deconvolution amplifies a relative error of the states."""
        if self.shape in ("pulse", "step"):
            return 1.0
        waveforms = self.waveforms[:, -self.period :] if self.shape == "periodic" else self.waveforms
        spectrum = np.abs(np.fft.fft(waveforms))
        rms = np.sqrt(np.mean(spectrum**2, axis=1, keepdims=True))
        return float(np.sqrt(np.mean((rms / spectrum) ** 2, axis=1)).max())


def make_excitation(
    excitation: str | npt.ArrayLike,
    *,
    n_inputs: int,
    samples: int,
    step: float,
    hold: str,
    discrete: bool,
    seed: Seed,
) -> Excitation:
    """Build the experiments' inputs.

    ``samples`` is the length of the pulse response, which is the memory of the system; ``step`` is the
    sampling time (only the height of a continuous-time impulse, of unit area, depends on it).
    """
    if not isinstance(excitation, str):
        return _from_record(excitation, n_inputs, samples, hold)
    name = excitation.lower().replace("-", "_").replace(" ", "_")
    if name == "impulse":
        # Under a first-order hold a pulse at sample 0 is half a triangle; from sample 1 on it is a whole one.
        onset = int(hold == "foh")
        height = 1.0 if discrete else 1.0 / step
        waveform = np.zeros(samples + onset)
        waveform[onset] = height
        return Excitation(
            name, "pulse", _repeat_for_inputs(waveform, n_inputs), samples, onset, height, hold=hold
        )
    if name == "step":
        # Both holds reproduce a step that starts at sample 0 exactly.
        return Excitation(name, "step", _repeat_for_inputs(np.ones(samples), n_inputs), samples, hold="zoh")
    periods = {"prbs": _prbs, "chirp": _chirp, "multisine": _multisine, "white_noise": _white_noise}
    if name not in periods:
        raise HankelredError(
            f"unknown excitation {excitation!r}; use one of {', '.join(EXCITATIONS)}, or pass a record "
            "of shape (samples,) or (inputs, samples)"
        )
    # One period at least as long as the memory, after a lead-in in which the initial transient dies out:
    # the recorded period is then the circular convolution of input and pulse response.
    period = periods[name](samples, _generator(seed))
    lead_in = np.tile(period, -(-samples // period.size))[-samples:]
    waveform = np.concatenate([lead_in, period])
    return Excitation(
        name, "periodic", _repeat_for_inputs(waveform, n_inputs), samples, period=period.size, hold=hold
    )


def _generator(seed: Seed) -> np.random.Generator:
    try:
        return np.random.default_rng(seed)
    except (TypeError, ValueError):
        raise HankelredError(f"seed must be a whole number >= 0 or a numpy Generator, got {seed!r}") from None


def _repeat_for_inputs(waveform: Array, n_inputs: int) -> Array:
    return np.broadcast_to(waveform, (n_inputs, waveform.size))


def _from_record(record: npt.ArrayLike, n_inputs: int, samples: int, hold: str) -> Excitation:
    try:
        signals = np.asarray(record, dtype=float)
    except (TypeError, ValueError):
        raise HankelredError(
            f"an excitation is a name ({', '.join(EXCITATIONS)}) or a real array of samples, got {record!r}"
        ) from None
    if signals.ndim == 1:
        signals = np.broadcast_to(signals, (n_inputs, signals.size))
    if signals.ndim != 2 or signals.shape[0] != n_inputs or signals.shape[1] == 0:
        raise HankelredError(
            f"a record of {n_inputs} inputs has shape (samples,), applied to each input, or "
            f"({n_inputs}, samples), with at least one sample; got {np.shape(record)}"
        )
    at = first_index(~np.isfinite(signals))
    if at is not None:
        raise HankelredError(
            f"the record's sample {at[1]} of input {at[0] + 1} is {signals[at]}; cut or repair the record "
            "first"
        )
    # A zero sample in front, from which the hold starts, and as many zeros behind as the memory is long:
    # the run then contains the whole response, and the deconvolution is a division of its spectra.
    waveforms = np.pad(signals, ((0, 0), (1, samples)))
    for channel, waveform in enumerate(waveforms):
        spectrum = np.abs(np.fft.rfft(waveform))
        weakest = int(spectrum.argmin())
        if spectrum[weakest] <= _SPECTRUM_FLOOR * spectrum.max():
            raise HankelredError(
                f"the record of input {channel + 1} does not excite the system at "
                f"{weakest / waveform.size:.4g} cycles per sample (spectrum {spectrum[weakest]:.1e} against "
                f"{spectrum.max():.1e} at its peak), so the response there is unknown; use a record "
                "with content at all frequencies up to half a cycle per sample"
            )
    return Excitation("record", "record", waveforms, samples, hold=hold)


def _flat(n: int, phases: Array) -> Array:
    # a real period of n samples with all harmonics, the mean included, equally strong; rms 1
    spectrum = np.exp(1j * phases)
    spectrum[0] = 1.0
    if n % 2 == 0:
        spectrum[-1] = 1.0
    waveform: Array = np.fft.irfft(spectrum, n) * np.sqrt(n)
    return waveform


def _multisine(n: int, rng: np.random.Generator) -> Array:
    return _flat(n, rng.uniform(0, 2 * np.pi, n // 2 + 1))


def _chirp(n: int, rng: np.random.Generator) -> Array:
    # Schroeder's phases: group delay proportional to frequency, a sweep with a flat spectrum
    k = np.arange(n // 2 + 1)
    return _flat(n, -np.pi * k * k / max(n // 2, 1))


def _white_noise(n: int, rng: np.random.Generator) -> Array:
    return rng.standard_normal(n)


def _prbs(n: int, rng: np.random.Generator) -> Array:
    from scipy.signal import max_len_seq

    bits = max(2, int(n).bit_length())
    state = rng.integers(0, 2, bits)
    state[0] = 1  # an all-zero shift register stays all zero
    levels: Array = 2.0 * max_len_seq(bits, state=state)[0] - 1.0
    # The levels +-1 sum to +-1, so the mean is hardly excited; this offset gives it the power of every
    # other harmonic, and the sequence still has two levels.
    size = levels.size
    offset: float = (np.sqrt(size + 1) * np.sign(levels.sum()) - levels.sum()) / size
    shifted: Array = levels + offset
    return shifted


def impulse_from_pulse_response(
    pulse: Array, *, hold: str, step: float, discrete: bool, stride: int = 1
) -> Array:
    """Return the impulse responses that belong to pulse responses (..., samples).

    In discrete time entry k is A^k B, one sample fewer than the pulse response. In continuous time
    entry k is e^{A k step} B: cumulative sums of the pulse response are samples of the exact step response
    (zero-order hold) or ramp response (first-order hold), smooth from t = 0 on, and their first or
    second derivative is the impulse response. Sum and difference together are a short filter, so
    they do not amplify errors as a derivative of data would. With ``stride`` the derivative uses only
    every ``stride``-th sample, which gives an estimate of its error.
    """
    if discrete:
        return pulse[..., 1:]
    sums = np.cumsum(pulse, axis=-1)
    if hold == "zoh":
        return derivative(sums[..., ::stride], step * stride, 1)
    ramp = np.zeros_like(sums)
    ramp[..., 1:] = np.cumsum(sums, axis=-1)[..., :-1] * step
    return derivative(ramp[..., ::stride], step * stride, 2)
