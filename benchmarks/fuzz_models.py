"""Random hard models against multiprecision arithmetic: what is right, refused, or wrong without a word.

    python benchmarks/fuzz_models.py [--cases 5000] [--out fuzz-models.jsonl]

Every case is a family and a seed (`_fuzz_families`). Hankel singular values, norms, reductions at several
orders by both methods with their bounds and errors, the default reduction, the balanced realization and the
modal form are computed as a user would, and compared with 600-bit arithmetic (`tests/helpers/exact.py`).

What counts as what. A number is right where it is off by no more than is promised: 1e-8 of a singular value
or ten noise floors, 1e-8 of an H2 norm, 2e-6 of an H-infinity norm, 10 % of an error or the noise floor, 1e-6
of the largest response in a modal form or a transfer function. Where it is further off, the data of the case
are perturbed by a few units of rounding (4 eps of each matrix, or of each coefficient), and the exact answers
of the perturbed models say how far rounding the data alone moves it: up to ten times that is "conditioning",
beyond it "wrong". The bound of a state space is a promise about the matrices that are handed out and has no
such excuse: an exact error above error_bound + noise_floor is "bound short", or "wrong" where not even the
conditioning explains it. For a transfer function, zeros and poles, or a descriptor model the bound is
promised of the state space it was converted to, and converting rounds the data: up to ten times what that
moves (or, for polynomials with poles on the boundary, 1e-4 of the largest response outside the stability
region) is "conditioning", beyond it "wrong". A value above ten noise floors that is mostly rounding, and more
than the data explain, is "bound short" too. "refused" is an error of hankelred's, or a warning of a loss that
is there; a warning of anybody else's, or of a loss that is not there, is "leaked". A case counts as its worst
outcome.

Prediction, written before the first thousand cases, on the code of version 0.1.0: wrong in multiple poles and
delays (modal form), far gains, near the boundary (bound of residualization); foreign exceptions in undamped
transfer functions and equal oscillators; bounds short nearly everywhere at full order, where they are zero.
Measured, 1007 cases on that code: as predicted, but far gains wrong once only (the H2 error), and beyond the
prediction 12 of 53 zeros-poles-gain models came back with zeros that are not there, and an undamped pair in a
transfer function of gain 1e7 was taken for stable. 694 cases have a short bound, 45 something wrong.

With --out the results are kept as JSON lines, and a later run resumes from them.
"""

from __future__ import annotations

import argparse
import json
import math
import signal as posix_signal
import sys
import traceback
import warnings
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import control
import scipy.signal as signal
from _fuzz_families import FAMILIES, Case, make
from helpers import exact as _exact
from helpers.exact import Exact, Rational

import hankelred
from hankelred import HankelredError, ReductionWarning

#: From the mildest to the worst; from "bound short" on it is a fault.
OUTCOMES = (
    "right",
    "conditioning",
    "refused",
    "bound short",
    "leaked warning",
    "foreign exception",
    "wrong",
)
FAULTS = OUTCOMES[3:]
TIME_LIMIT = 120.0
#: How many times what a perturbation of the data does is still conditioning.
CONDITIONING = 10.0


class Judge:
    """Makes calls for one case and keeps what came of them: (outcome, check, detail)."""

    def __init__(self):
        self.outcomes: list[tuple[str, str, str]] = []

    def note(self, outcome: str, check: str, detail: str = "") -> None:
        """Keep an outcome."""
        self.outcomes.append((outcome, check, detail))

    def call(self, check, function):
        """Return the result (None where there is none) and the losses that hankelred warns of."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                result = function()
            except HankelredError as error:
                self.note("refused", check, f"{type(error).__name__}: {error}")
                return None, []
            except TimeoutError:
                raise
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)
                ours = [f for f in where if Path(f.filename).is_relative_to(PACKAGE)]
                at = f"{Path(ours[-1].filename).name}, {ours[-1].name}" if ours else "?"
                self.note("foreign exception", check, f"{type(error).__name__} in {at}: {error}")
                return None, []
        for w in caught:
            if not issubclass(w.category, ReductionWarning):
                at = Path(w.filename).name
                self.note("leaked warning", check, f"{w.category.__name__} in {at}: {w.message}")
        return result, [str(w.message) for w in caught if "differs from the state space" in str(w.message)]

    def compare(self, check, computed, exact, allowed, movement, detail=""):
        """Compare numbers: within what is allowed, else within the conditioning, else wrong."""
        computed, exact, allowed = np.broadcast_arrays(
            *(np.asarray(x, float) for x in (computed, exact, allowed))
        )
        if np.any(np.isnan(computed)):
            self.note("wrong", check, f"NaN {detail}")
            return
        with np.errstate(invalid="ignore"):
            off = np.where(computed == exact, 0.0, np.abs(computed - exact))
        if np.all(off <= allowed):
            self.note("right", check)
            return
        reach = allowed + CONDITIONING * movement()
        with np.errstate(invalid="ignore"):
            times = np.where(off <= reach, 0.0, off / np.maximum(reach, 1e-300))
        k = int(np.argmax(times))
        text = f"{computed.flat[k]:.6g} where {exact.flat[k]:.6g} is exact, {times.flat[k]:.2g} times allowed"
        self.note("conditioning" if np.all(off <= reach) else "wrong", check, f"{text} {detail}".strip())


PACKAGE = Path(hankelred.__file__).parent


# what a case and a result are exactly ------------------------------------------------


def exact_of(model, *, discrete):
    """Return the exact rational matrix of a model that was handed out, and its poles."""
    if isinstance(model, tuple):
        system = Exact.of(model, discrete=discrete)
        return system.rational, system.poles
    if isinstance(model, control.TransferFunction):
        entries = [[(i, j) for j in range(model.ninputs)] for i in range(model.noutputs)]
        num, den = ([[c[at] for at in row] for row in entries] for c in (model.num_array, model.den_array))
        rational = Rational.of(num, den)
    elif isinstance(model, signal.TransferFunction):
        rational = Rational.of([[model.num]], [[model.den]])
    else:
        roots = [
            _exact.acb_poly.from_roots([_exact.number(z) for z in v]) for v in (model.zeros, model.poles)
        ]
        rational = Rational([[roots[0] * _exact.number(model.gain)]], [[roots[1]]])
    return rational, rational.realization(discrete=discrete).poles


class Truth:
    """The exact answers to a case. Everything is measured in the units of the well-scaled model."""

    def __init__(self, case: Case):
        self.case, self.exact, self.discrete = case, case.exact, case.discrete
        distance = _exact.boundary_distance(self.exact.poles, discrete=self.discrete)
        size = largest = max((float(abs(z).mid()) for z in self.exact.poles), default=1.0)
        if not case.coefficients and len(case.data) == 4:
            # in good units of the states the size of A is between these two
            A = case.data[0]
            largest = max(size, math.sqrt(np.linalg.norm(A, 1) * np.linalg.norm(A, np.inf)))
        if self.discrete:
            size, largest = max(size, 1.0), max(largest, 1.0)
        #: poles that are marginal or unstable: no further inside than 1e-13 of the size of A
        self.kept = int(np.count_nonzero(distance <= 1e-13 * size))
        #: whether a pole is so near that it may count as either
        self.undecided = bool(np.any((distance > 1e-14 * size) & (distance < 1e-11 * largest)))
        self.stable = self.exact.split(self.kept)[0]
        self.rational = self.exact.rational
        self.real = case.coefficients or not any(np.iscomplexobj(M) for M in case.data)

    @property
    def on_boundary(self) -> bool:
        """Whether the response is to be looked at outside the stability region only."""
        return self.kept > 0 or self.undecided

    def scaled(self, rational):
        """Return a rational matrix in the units of the well-scaled model."""
        factor = 1 / _exact.number(self.case.gain)
        return Rational([[a * factor for a in row] for row in rational.num], rational.den)

    def points(self):
        """Return exact points on every time scale: on the boundary, or outside where poles are on it."""
        z = np.array([complex(p) for p in self.exact.poles])
        size = np.abs(z[z != 0]) if np.any(z != 0) else np.ones(1)
        if not self.on_boundary:
            grid = (
                np.linspace(0, 3.1, 12) if self.discrete else np.geomspace(size.min() / 3, size.max() * 3, 12)
            )
            resonances = np.angle(z) if self.discrete else z.imag
            w = np.concatenate([[0.0], grid, resonances])
            return [_exact.on_boundary(float(x), discrete=self.discrete) for x in w]
        if self.discrete:
            s = np.outer([1.1, 1.6], np.exp(1j * np.linspace(0.1, 3.0, 7))).ravel()
        else:
            s = np.outer(np.geomspace(size.min() / 3, size.max() * 3, 12), np.exp([0.3j, 1.1j])).ravel()
        return [_exact.number(x) for x in s if np.all(np.abs(x - z) > 0.05 * np.abs(x))]

    # how far rounding the data moves the answers ------------------------------------------------

    def movement(self, quantity):
        """Return a function that measures how far a quantity of the stable part moves."""

        def measure():
            here = quantity(self.stable)
            try:
                moved = [quantity(other.split(self.kept)[0]) - here for other in self.case.neighbours]
            except (ArithmeticError, ZeroDivisionError):
                return math.inf  # a neighbour is on the other side of the boundary
            return np.max(np.abs(moved), axis=0)

        return measure

    def response_movement(self, points):
        """Return a function that measures how far the response moves, at each of some points."""

        def measure():
            moved = [
                [_exact.gain(self.rational, other.rational, s) for s in points]
                for other in self.case.neighbours
            ]
            return np.max(moved, axis=0)

        return measure

    def most_movement(self, *points):
        """Return a function that measures how far the response moves at most, at these points and others."""
        return lambda: float(np.max(self.response_movement([*points, *self.points()])()))


# the checks ------------------------------------------------


def check(case: Case) -> list[tuple[str, str, str]]:
    """Return (outcome, check, detail) of every check of one case."""
    judge, truth = Judge(), Truth(case)
    default, losses = judge.call("reduce", lambda: hankelred.reduce(case.model, dt=case.dt))
    rounding = _check_values(judge, truth, default)
    if not truth.undecided:
        _check_norms(judge, truth)
    if default is not None:
        if not truth.on_boundary:
            _check_stability(judge, truth, default)
        _check_bound(judge, truth, "default reduction", default, losses)
        for method in ("truncation", "residualization"):
            _check_orders(judge, truth, default, method)
    _check_balanced(judge, truth, rounding)
    _check_modal(judge, truth)
    return judge.outcomes


def _check_values(judge, truth, reduction):
    """Compare the singular values and the number of kept poles; return what rounding may do to a value."""
    case, name = truth.case, "hankel singular values"
    exact = truth.stable.hankel_singular_values
    floor = reduction.noise_floor / case.gain if reduction is not None else 0.0
    rounding = min(10 * floor, 1e-8 * exact.max(initial=0.0))
    values, _ = judge.call(name, lambda: hankelred.hankel_singular_values(case.model, dt=case.dt))
    if values is None or truth.undecided:
        return rounding
    infinite = int(np.isinf(values).sum())
    # realizations of a transfer matrix differ in how often they have a pole
    if infinite != truth.kept if not case.coefficients else (infinite > 0) != (truth.kept > 0):
        judge.note("wrong", "kept poles", f"{infinite} where {truth.kept} are unstable or marginal")
        return rounding
    finite = values[infinite:] / case.gain
    k = max(finite.size, exact.size)
    finite, exact = np.pad(finite, (0, k - finite.size)), np.pad(exact, (0, k - exact.size))
    # rounding has not the structure of a model: each value may move as far as the one that moves most
    movement = truth.movement(lambda e: e.hankel_singular_values)
    judge.compare(name, finite, exact, 1e-8 * exact + rounding, lambda: np.max(movement()))
    noise = (finite > 10 * floor) & (exact < 0.5 * finite)
    if np.any(noise):
        explained = finite - exact <= CONDITIONING * np.max(movement())
        i = int(np.argmax(noise & ~explained)) if np.any(noise & ~explained) else int(np.argmax(noise))
        detail = f"value {i} is {finite[i]:.3g}, exactly {exact[i]:.3g}, and the floor {floor:.3g}"
        judge.note("conditioning" if explained[i] else "bound short", "noise floor", detail)
    return rounding


def _check_norms(judge, truth):
    case = truth.case
    for kind in ("h2", "hinf"):
        name = f"norm {kind}"
        value, _ = judge.call(name, lambda kind=kind: hankelred.norm(case.model, kind, dt=case.dt))
        if value is None:
            continue
        value /= case.gain
        if truth.kept:
            judge.compare(name, value, math.inf, 0, lambda: 0.0)
        elif kind == "h2":
            exact = truth.exact.h2
            judge.compare(name, value, exact, 1e-8 * exact, truth.movement(lambda e: e.h2))
        else:
            poles = truth.exact.poles
            exact, w = _exact.peak(truth.rational, None, poles, discrete=truth.discrete, real=truth.real)
            if value > exact > 0 and truth.exact.exceeds(value * (1 - 1e-6)):
                exact = value  # a peak that is there and that the grid missed
            at = _exact.on_boundary(w, discrete=truth.discrete)
            judge.compare(name, value, exact, 2e-6 * exact, truth.response_movement([at]))


def _check_stability(judge, truth, reduction):
    _, poles = exact_of(reduction.system, discrete=truth.discrete)
    distance = _exact.boundary_distance(poles, discrete=truth.discrete)
    if distance.size and distance.min() <= 0:
        at = complex(poles[int(np.argmin(distance))])
        judge.note(
            "wrong", "default reduction", f"order {reduction.order} of a stable model has a pole at {at:.6g}"
        )


def _check_orders(judge, truth, default, method):
    case, least = truth.case, default.unstable_order
    base, losses = judge.call(
        f"reduce by {method}", lambda: hankelred.reduce(case.model, least, method=method, dt=case.dt)
    )
    if base is None:
        return
    rank = base.numerical_rank
    for order in sorted({min(least + 1, rank), (least + rank) // 2, max(least, rank - 1)}):
        reduction, losses = judge.call(f"reduce by {method}", lambda order=order: base.at(order))
        if reduction is not None:
            worst = _check_bound(judge, truth, method, reduction, losses)
            if worst is not None:
                _check_errors(judge, truth, method, reduction, *worst)


def _difference(truth, reduction):
    """Return the largest exact gain of full minus reduced, and the point where it is."""
    rational, poles = exact_of(reduction.system, discrete=truth.discrete)
    error, w = _exact.peak(
        truth.rational,
        truth.scaled(rational),
        [*truth.exact.poles, *poles],
        discrete=truth.discrete,
        real=truth.real,
    )
    return error, _exact.on_boundary(w, discrete=truth.discrete)


def _check_bound(judge, truth, name, reduction, losses):
    """Hold the exact error of what was handed out against the bound; return it and where it is, if stable."""
    name, gain, order = f"bound, {name}", truth.case.gain, reduction.order
    if losses:
        _check_loss(judge, truth, name, reduction.system, losses)
        return None
    bound, floor = reduction.error_bound / gain, reduction.noise_floor / gain
    if truth.on_boundary:
        # the kept poles are in both models; outside the stability region the bound holds as on its boundary
        points = truth.points()
        rational = truth.scaled(exact_of(reduction.system, discrete=truth.discrete)[0])
        error = np.array([_exact.gain(truth.rational, rational, s) for s in points])
        size = np.array([_exact.gain(truth.rational, None, s) for s in points])
        above = np.maximum(error - bound - floor, 0.0)
        # polynomials may lose 1e-6 of the response at its peaks, which are higher than at these points
        allowed = np.maximum(1e-9 * size, 1e-4 * size.max() if truth.case.coefficients else 0.0)
        judge.compare(name, above, 0.0, allowed, truth.response_movement(points), f"(order {order})")
        return None
    error, at = _difference(truth, reduction)
    if error <= (bound + floor) * (1 + 1e-6):
        judge.note("right", name)
        return error, at
    moved = truth.most_movement(at)()
    reach = CONDITIONING * moved
    excuse = "conditioning" if truth.case.converted else "bound short"
    judge.note(
        excuse if error <= bound + floor + reach else "wrong",
        name,
        f"exact error {error:.8g} over bound {bound:.8g} and floor {floor:.2g} (order {order}; rounding the "
        f"data moves the response by {moved:.2g})",
    )
    return error, at


def _check_loss(judge, truth, name, model, losses):
    """Tell a warning of a loss in polynomials that is there from one that is not."""
    points, rational = truth.points(), truth.scaled(exact_of(model, discrete=truth.discrete)[0])
    error = max((_exact.gain(truth.rational, rational, s) for s in points), default=math.inf)
    size = max((_exact.gain(truth.rational, None, s) for s in points), default=0.0)
    outcome = "refused" if error > 1e-7 * size else "leaked warning"
    judge.note(outcome, name, f"warned: {losses[0]}")


def _check_errors(judge, truth, method, reduction, error, at):
    """Compare `error()` with the exact error: the largest gain, and the energy for truncation."""
    gain, where = truth.case.gain, f"(order {reduction.order})"
    name = f"error, {method}"
    value, _ = judge.call(name, reduction.error)
    system = reduction.system if isinstance(reduction.system, tuple) else None
    if system is not None:
        A, B, C, D = (_exact.matrix(M) for M in system)
        factor = 1 / _exact.number(gain)
        difference = truth.exact.minus(Exact(A, B * factor, C, D * factor, truth.discrete))
    if value == math.inf == reduction.error_bound:
        # a warning says so: the poles as double precision knows them may be outside the stability region
        judge.note("refused", name, f"a pole of the reduced model may be unstable {where}")
        return
    if value is not None:
        value /= gain
        allowed = max(0.1 * error, reduction.noise_floor / gain)
        if value > error + allowed and system is not None and difference.exceeds(0.9 * value):
            error = value  # a peak that is there and that the grid missed
        judge.compare(name, value, error, allowed, truth.most_movement(at), where)
    if system is None or method != "truncation":
        return
    name = "error h2, truncation"
    value, _ = judge.call(name, lambda: reduction.error("h2"))
    if value is not None:

        def movement():
            return max(truth.exact.minus(other).h2 for other in truth.case.neighbours)

        exact = difference.h2
        judge.compare(name, value / gain, exact, 0.1 * exact, movement, where)


def _check_response(judge, truth, name, rational, allowed):
    """Compare a response with the exact one: off by a share of its largest gain and a constant at most."""
    points, rational = truth.points(), truth.scaled(rational)
    if points:
        share, constant = allowed
        error = [_exact.gain(truth.rational, rational, s) for s in points]
        size = max(_exact.gain(truth.rational, None, s) for s in points)
        judge.compare(name, error, 0.0, share * size + constant, truth.response_movement(points))


def _check_balanced(judge, truth, rounding):
    case, name = truth.case, "balanced realization"
    balanced, losses = judge.call(name, lambda: hankelred.balanced_realization(case.model, dt=case.dt))
    if balanced is None:
        return
    if losses:
        _check_loss(judge, truth, name, balanced, losses)
        return
    # states at the noise floor are left out, and each is twice in the response
    allowed = (1e-6, 2 * truth.exact.n * rounding)
    _check_response(judge, truth, name, exact_of(balanced, discrete=truth.discrete)[0], allowed)


def _check_modal(judge, truth):
    case, name = truth.case, "modal form"
    modal, _ = judge.call(name, lambda: hankelred.modal_form(case.model, dt=case.dt))
    if modal is not None:
        system = np.diag(modal.poles), modal.B, modal.C, modal.D
        _check_response(judge, truth, name, exact_of(system, discrete=truth.discrete)[0], (1e-6, 0.0))
    elif judge.outcomes[-1][0] == "refused" and not case.coefficients and len(case.data) == 4:
        condition = np.linalg.cond(np.linalg.eig(case.data[0])[1])
        if condition < 1e6:
            judge.note(
                "refused", f"{name}, needlessly", f"eigenvectors: condition {condition:.0f} in good units"
            )


# runs ------------------------------------------------


def run(family: str, seed: int) -> dict:
    """Check one case within a time limit; return its record."""

    def stop(*_):
        raise TimeoutError

    before = posix_signal.signal(posix_signal.SIGALRM, stop)
    posix_signal.setitimer(posix_signal.ITIMER_REAL, TIME_LIMIT)
    try:
        outcomes = check(make(family, seed))
    except TimeoutError:
        outcomes = [("foreign exception", "time", f"not done after {TIME_LIMIT:.0f} s")]
    finally:
        posix_signal.setitimer(posix_signal.ITIMER_REAL, 0)
        posix_signal.signal(posix_signal.SIGALRM, before)
    return {
        "family": family,
        "seed": seed,
        "outcome": max((outcome for outcome, _, _ in outcomes), key=OUTCOMES.index),
        "checks": len(outcomes),
        "notes": [note for note in outcomes if note[0] != "right"],
    }


def report(records: list[dict]) -> None:
    """Print how many cases of each family ended how, and the distinct failures."""
    counts: dict[str, Counter] = defaultdict(Counter)
    refused: Counter = Counter()
    faults: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for record in records:
        counts[record["family"]][record["outcome"]] += 1
        counts["all"][record["outcome"]] += 1
        for outcome, name, detail in record["notes"]:
            kind = detail.split(":")[0]
            if outcome == "refused":
                refused[name, kind] += 1
            elif outcome in FAULTS:
                kind = kind if outcome in ("leaked warning", "foreign exception") else ""
                faults[outcome, name, kind].append(f"{record['family']} {record['seed']}: {detail}")
    print(f"{'family':28s}{'cases':>6s}" + "".join(f"{outcome:>19s}" for outcome in OUTCOMES))
    for family in [*FAMILIES, "all"]:
        if counts[family]:
            row = "".join(f"{counts[family][outcome]:19d}" for outcome in OUTCOMES)
            print(f"{family:28s}{sum(counts[family].values()):6d}{row}")
    print(f"{sum(record['checks'] for record in records)} checks\n")
    for (name, kind), count in refused.most_common():
        print(f"refused: {name} ({kind}), {count} times")
    for (outcome, name, kind), details in sorted(faults.items()):
        print(f"\n{outcome}: {name}{f' ({kind})' if kind else ''}, {len(details)} times")
        for detail in details[:3]:
            print(f"    {detail}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=5000, help="in turn from every family")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--family", choices=FAMILIES, help="this family alone")
    parser.add_argument("--out", type=Path, help="keep the results here, and go on from them")
    arguments = parser.parse_args()
    families = [arguments.family] if arguments.family else list(FAMILIES)
    records = []
    if arguments.out and arguments.out.exists():
        records = [json.loads(line) for line in arguments.out.read_text("utf-8").splitlines()]
    done = {(record["family"], record["seed"]) for record in records}
    for k in range(arguments.cases):
        family, seed = families[k % len(families)], arguments.first + k // len(families)
        if (family, seed) in done:
            continue
        records.append(run(family, seed))
        if arguments.out:
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(records[-1]) + "\n")
        if sys.stderr.isatty():
            print(f"\r{k + 1} of {arguments.cases}", end="", file=sys.stderr)
    report(records)


if __name__ == "__main__":
    main()
