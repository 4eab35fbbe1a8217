"""What is fed into an experiment, and how its response becomes an impulse response again.

Every excitation here is undone exactly for a linear system, so that all of them give the same Gramian.
In two steps: first the *pulse response* p, the answer to one input sample of height 1, by inverting
the excitation (differencing for a step, division of spectra for everything broadband); then, in
continuous time, the true impulse response from p, given how the simulator holds its input between
samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .._util.arrays import Array
from ..errors import HankelredError
from .quadrature import derivative

Seed: TypeAlias = int | np.random.Generator

EXCITATIONS = ("impulse", "step", "prbs", "chirp", "multisine", "white_noise")

#: A record whose spectrum has a bin this far below its largest loses too many digits in the division.
_SPECTRUM_FLOOR = 1e-9


@dataclass(frozen=True)
class Excitation:
    """Waveforms, one for each input, and the inverse of what they do.

    ``shape`` says how the response is inverted: "pulse", "step", "periodic" (only the last
    ``period`` samples, when the start has died out) or "record" (the whole run, which ends at rest).
    """

    name: str
    shape: str
    #: (m, run) samples to feed, for a scale of 1
    waveforms: Array
    #: number of pulse-response samples wanted
    samples: int
    #: sample at which a pulse is fed, and its height
    onset: int = 0
    height: float = 1.0
    period: int = 0
    #: "zoh" or "foh", what the pulse response is the response to
    hold: str = "zoh"

    @property
    def run(self) -> int:
        """Number of samples an experiment takes."""
        return int(self.waveforms.shape[1])

    def pulse_response(self, states: Array, channel: int) -> Array:
        """Return p (n, samples) from the deviation (n, run) that waveform ``channel`` caused."""
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
        """How much the inversion amplifies a relative error of the states, about."""
        if self.shape in ("pulse", "step"):
            return 1.0
        used = self.waveforms[:, -self.period :] if self.shape == "periodic" else self.waveforms
        spectrum = np.abs(np.fft.fft(used))
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

    ``samples`` is the number of pulse-response samples wanted, the memory of the system; ``step``
    the sampling time (only the height of a continuous-time impulse, of unit area, depends on it).
    """
    if not isinstance(excitation, str):
        return _from_record(excitation, n_inputs, samples, hold)
    name = excitation.lower().replace("-", "_").replace(" ", "_")
    if name == "impulse":
        # A first-order hold makes half a hat of a pulse at sample 0; from sample 1 on it is a whole one.
        onset = int(hold == "foh")
        height = 1.0 if discrete else 1.0 / step
        waveform = np.zeros(samples + onset)
        waveform[onset] = height
        return Excitation(name, "pulse", _for_all(waveform, n_inputs), samples, onset, height, hold=hold)
    if name == "step":
        # Both holds reproduce a step that starts at sample 0 exactly.
        return Excitation(name, "step", _for_all(np.ones(samples), n_inputs), samples, hold="zoh")
    periods = {"prbs": _prbs, "chirp": _chirp, "multisine": _multisine, "white_noise": _white_noise}
    if name not in periods:
        raise HankelredError(
            f"unknown excitation {excitation!r}; use one of {', '.join(EXCITATIONS)}, or pass a record "
            "(samples,) or (inputs, samples) of your own"
        )
    # One period at least as long as the memory, after a lead-in that lets the start die out: the
    # recorded period is then the circular convolution of input and pulse response.
    one = periods[name](samples, _generator(seed))
    lead_in = np.tile(one, -(-samples // one.size))[-samples:]
    waveform = np.concatenate([lead_in, one])
    return Excitation(name, "periodic", _for_all(waveform, n_inputs), samples, period=one.size, hold=hold)


def _generator(seed: Seed) -> np.random.Generator:
    try:
        return np.random.default_rng(seed)
    except (TypeError, ValueError):
        raise HankelredError(f"seed must be a whole number >= 0 or a numpy Generator, got {seed!r}") from None


def _for_all(waveform: Array, n_inputs: int) -> Array:
    return np.broadcast_to(waveform, (n_inputs, waveform.size))


def _from_record(record: npt.ArrayLike, n_inputs: int, samples: int, hold: str) -> Excitation:
    try:
        given = np.asarray(record, dtype=float)
    except (TypeError, ValueError):
        raise HankelredError(
            f"an excitation is a name ({', '.join(EXCITATIONS)}) or a real array of samples, got {record!r}"
        ) from None
    if given.ndim == 1:
        given = np.broadcast_to(given, (n_inputs, given.size))
    if given.ndim != 2 or given.shape[0] != n_inputs or given.shape[1] == 0:
        raise HankelredError(
            f"a record of {n_inputs} inputs has shape (samples,), fed to each, or ({n_inputs}, samples), "
            f"with at least one sample; got {np.shape(record)}"
        )
    if not np.all(np.isfinite(given)):
        channel, sample = np.argwhere(~np.isfinite(given))[0]
        raise HankelredError(
            f"the record's sample {sample} of input {channel + 1} is {given[channel, sample]}; "
            "cut or repair the record first"
        )
    # A sample of rest in front, for the hold to start from, and the memory's length of rest behind:
    # then the run holds the whole response, and the division below is that of whole spectra.
    waveforms = np.pad(given, ((0, 0), (1, samples)))
    for channel, waveform in enumerate(waveforms):
        spectrum = np.abs(np.fft.rfft(waveform))
        weakest = int(spectrum.argmin())
        if spectrum[weakest] <= _SPECTRUM_FLOOR * spectrum.max():
            raise HankelredError(
                f"the record of input {channel + 1} does not excite the system at "
                f"{weakest / waveform.size:.4g} cycles per sample (spectrum {spectrum[weakest]:.1e} against "
                f"{spectrum.max():.1e} at its peak), so the response there cannot be known; use a record "
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
    state[0] = 1  # the all-zero register never leaves itself
    levels: Array = 2.0 * max_len_seq(bits, state=state)[0] - 1.0
    # +-1 sums to +-1, which leaves the mean hardly excited; this offset gives it the power of all
    # other harmonics, and the sequence stays at two levels.
    size = levels.size
    offset: float = (np.sqrt(size + 1) * np.sign(levels.sum()) - levels.sum()) / size
    shifted: Array = levels + offset
    return shifted


def impulse_response(pulse: Array, *, hold: str, step: float, discrete: bool, stride: int = 1) -> Array:
    """Turn pulse responses (..., samples) into impulse responses.

    In discrete time entry k is A^k B, one sample fewer than the pulse response. In continuous time
    it is e^{A k step} B: sums over the pulse response are samples of the exact step response
    (zero-order hold) or ramp response (first-order hold), smooth from t = 0 on, and their first or
    second derivative is the impulse response. Sum and difference together are a short filter, so
    they do not amplify errors as a derivative of data would. With ``stride`` the derivative sees only
    every ``stride``-th sample, which tells how good it is.
    """
    if discrete:
        return pulse[..., 1:]
    sums = np.cumsum(pulse, axis=-1)
    if hold == "zoh":
        return derivative(sums[..., ::stride], step * stride, 1)
    ramp = np.zeros_like(sums)
    ramp[..., 1:] = np.cumsum(sums, axis=-1)[..., :-1] * step
    return derivative(ramp[..., ::stride], step * stride, 2)
