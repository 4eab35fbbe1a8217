"""The command line: `hankelred hsv`, `reduce`, `compare`, and the commands of the other files."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import numpy as np

from .. import __version__
from .._util.reading import checked_suffix
from ..errors import count
from ..files import read_model, write_model
from ..gramians.stability import suspected_timebase
from ..models.linear_model import LinearModel, Timebase
from ..reduction.balancing import spectrum_of
from ..reduction.order import error_bounds
from ..reduction.reduce import Reduction
from ..reduction.variants.catalog import REDUCTION_METHODS
from .console import (
    check_page,
    check_picture,
    check_target,
    describe,
    print_json,
    print_table,
    report_written,
    run,
    save_picture,
    sizes_of,
)
from .convert import convert
from .fit import fit
from .identify import identify
from .norm import norm
from .options import force_option, json_option, model_options, region_options
from .simulate import simulate
from .streams import MODEL_OUT

#: More states than this, and `compare` says first that it will take long.
MANY_STATES = 500


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="hankelred")
def cli() -> None:
    """Hankel singular values and certified model reduction.

    MODEL is a .mat, .npz or .json file with A, B, C and optionally D, E, dt, or with M, D, K, B, C; or one of
    the Matrix Market files NAME.A, NAME.B, and so on. DATA is a table of samples. Of each, and of --out,
    "-" is standard input or output.

    \b
    Example:
      hankelred hsv model.mat
    """


@cli.command(short_help="Hankel singular values of MODEL, and error bounds.")
@model_options
@click.option(
    "--plot", type=click.Path(path_type=Path), help="Write the spectrum as a picture (.png, .pdf, .svg)."
)
@click.option("--all", "show_all", is_flag=True, help="Print every value, not only the first 20.")
@json_option
@force_option
def hsv(
    model: Path,
    dt: Timebase,
    stability_tol: float,
    plot: Path | None,
    show_all: bool,
    as_json: bool,
    force: bool,
) -> None:
    """Print the Hankel singular values of MODEL with the error bound of each order.

    \b
    Example:
      hankelred hsv model.mat --plot spectrum.png
    """
    from ..gramians.stability import checked_tol

    check_picture(plot)
    check_target(plot, model, force)
    system = read_model(model, dt)
    spectrum = spectrum_of(system, checked_tol(stability_tol))
    if as_json:
        print_json(
            {
                **sizes_of(system),
                "hankel_singular_values": spectrum.values,
                "error_bounds": error_bounds(spectrum.values),
                "noise_floor": spectrum.noise_floor,
                "solver": spectrum.solver,
                "residual": spectrum.residual,
            }
        )
    else:
        print_spectrum(system, spectrum.values, spectrum.noise_floor, None if show_all else 20)
        click.echo(f"solver: {spectrum.solver}, residual {spectrum.residual:.1e}")
    if isinstance(system, LinearModel) and np.isinf(spectrum.values).sum() == system.n_states:
        poles = np.linalg.eigvals(system.A)
        advice = suspected_timebase(poles, discrete=system.is_discrete).removeprefix("; ")
        if advice:
            click.echo(f"warning: {advice} (--dt)", err=True)
    if plot is not None:
        from ..reduction.plots import plot_hankel_singular_values

        save_picture(plot, lambda ax: plot_hankel_singular_values(spectrum, ax=ax), quiet=as_json)


@cli.command(short_help="A smaller MODEL, with error bound and true error.")
@model_options
@click.option("--order", type=int, help="Number of states to keep.")
@click.option("--tol", type=float, help="Smallest order with an error bound of at most this.")
@click.option("--rtol", type=float, help="The same, relative to the largest singular value.")
@click.option("--energy", type=float, help="Smallest order with this share of the singular values.")
@click.option(
    "--method",
    type=click.Choice([name for name in REDUCTION_METHODS if name != "frequency_weighted"]),
    default="truncation",
    show_default=True,
    help="frequency_limited needs --band, time_limited --horizon.",
)
@region_options
@click.option("--out", type=MODEL_OUT, help="Write the reduced model (.mat, .npz, .json).")
@click.option(
    "--plot", type=click.Path(path_type=Path), help="Write full, reduced, error and bound as a picture."
)
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    help="Write a page for the browser (.html) with a slider for the order.",
)
@json_option
@force_option
def reduce(
    model: Path,
    dt: Timebase,
    stability_tol: float,
    order: int | None,
    tol: float | None,
    rtol: float | None,
    energy: float | None,
    method: Any,
    band: tuple[tuple[float, float], ...],
    horizon: float | None,
    regularization: float | None,
    out: Path | None,
    plot: Path | None,
    report: Path | None,
    as_json: bool,
    force: bool,
) -> None:
    """Reduce MODEL and report the bound and the true error.

    \b
    Example:
      hankelred reduce model.mat --order 10 --out reduced.mat --plot reduced.png
      hankelred reduce model.json --tol 1e-3 --out reduced.json
      hankelred reduce model.mat --rtol 1e-2 --report report.html
      hankelred reduce model.mat --order 10 --method frequency_limited --band 5 6
    """
    from ..reduction.reduce import reduce as reduce_model

    check_picture(plot)
    check_page(report)
    if out is not None:
        checked_suffix(out)
    check_target(out, model, force)
    check_target(plot, model, force)
    check_target(report, model, force)
    system = read_model(model, dt)
    reduction = reduce_model(
        system,
        order,
        tol=tol,
        rtol=rtol,
        energy=energy,
        method=method,
        band=list(band) or None,
        horizon=horizon,
        regularization=regularization,
        stability_tol=stability_tol,
    )
    band_error = reduction.error(band=list(band)) if band else None
    horizon_error = None if horizon is None else reduction.error(horizon=horizon)
    if as_json:
        regional = {"error_in_band": band_error, "error_until_horizon": horizon_error}
        measured = {name: error for name, error in regional.items() if error is not None}
        print_json({**_fields(system, reduction), **measured})
    else:
        print_reduction(system, reduction)
        if band_error is not None:
            click.echo(f"true error in the band: {band_error:.6e}")
        if horizon_error is not None:
            click.echo(f"true error until the horizon (L2): {horizon_error:.6e}")
        if (order, tol, rtol, energy) == (None, None, None, None):
            click.echo(
                "every value above the noise floor is kept; use --order, --tol, --rtol or --energy to keep "
                "fewer"
            )
    if out is not None:
        write_model(reduction.model, out)
        report_written(out, quiet=as_json)
    if plot is not None:
        from ..reduction.plots import plot_reduction

        save_picture(plot, lambda ax: plot_reduction(reduction, ax=ax), quiet=as_json)
    if report is not None:
        reduction.report(report)
        report_written(report, quiet=as_json)


@cli.command(short_help="Every method on MODEL: error, bound, time.")
@model_options
@click.option("--order", type=int, required=True, help="Number of states to keep.")
@region_options
@click.option("--plot", type=click.Path(path_type=Path), help="Write the errors of all methods as a picture.")
@json_option
@force_option
def compare(
    model: Path,
    dt: Timebase,
    stability_tol: float,
    order: int,
    band: tuple[tuple[float, float], ...],
    horizon: float | None,
    regularization: float | None,
    plot: Path | None,
    as_json: bool,
    force: bool,
) -> None:
    """Reduce MODEL by every method, and print their errors, the smallest first.

    \b
    Example:
      hankelred compare model.mat --order 10 --band 5 6 --plot methods.png
    """
    from ..reduction.compare import MethodResult, compare_methods

    check_picture(plot)
    check_target(plot, model, force)
    system = read_model(model, dt)
    if sizes_of(system)["states"] > MANY_STATES:
        click.echo(
            f"{describe(system)}: every method computes with dense matrices of this size, in a time that "
            "grows with its third power (minutes to hours); to compare faster, first reduce the model to a "
            "few hundred states",
            err=True,
        )
    comparison = compare_methods(
        system,
        order,
        band=list(band) or None,
        horizon=horizon,
        regularization=regularization,
        stability_tol=stability_tol,
    )
    if as_json:
        names = [entry.name for entry in fields(MethodResult) if entry.name != "reduction"]
        rows = [{name: getattr(row, name) for name in names} for row in comparison.rows]
        print_json({**sizes_of(system), "methods": rows})
    else:
        click.echo(describe(system))
        click.echo(str(comparison))
    if plot is not None:
        save_picture(plot, lambda ax: comparison.plot(ax=ax), quiet=as_json)


for command in (convert, fit, identify, norm, simulate):
    cli.add_command(command)


def print_spectrum(system: Any, values: Any, floor: float, limit: int | None) -> None:
    """Print the singular values as a table."""
    from rich.table import Table

    bounds = error_bounds(values)
    click.echo(describe(system))
    table = Table()
    for heading in ("k", "sigma_k", "bound of order k"):
        table.add_column(heading, justify="right", no_wrap=True)
    shown = values if limit is None else values[:limit]
    for k, value in enumerate(shown, start=1):
        text = "unstable or marginal" if value == float("inf") else f"{value:.6e}"
        table.add_row(str(k), text, f"{bounds[k]:.6e}", style="dim" if value <= floor else None)
    print_table(table)
    if len(shown) < len(values):
        click.echo(f"... {len(values) - len(shown)} more; --all prints them")
    click.echo(f"noise floor: {floor:.1e} ({int((values > floor).sum())} of {len(values)} values above it)")


def _fields(system: Any, reduction: Reduction) -> dict[str, Any]:
    """Return what is printed of a reduction, for JSON."""
    certificate = reduction.certificate
    return {
        **sizes_of(system),
        "order": reduction.order,
        "method": reduction.method,
        "error_bound": reduction.error_bound,
        "error": reduction.error("hinf"),
        "error_uncertainty": reduction.error_uncertainty,
        "hankel_singular_values": reduction.hankel_singular_values,
        "noise_floor": reduction.noise_floor,
        "unstable_order": reduction.unstable_order,
        "certificate": {"kind": certificate.kind, "value": certificate.value},
        "solver": reduction.solver,
        "residual": reduction.residual,
    }


def print_reduction(system: Any, reduction: Reduction) -> None:
    """Print the orders, the error bound and the true error of a reduction."""
    bound, error = reduction.error_bound, reduction.error("hinf")
    click.echo(f"{describe(system)} -> order {reduction.order} by {reduction.method}")
    click.echo(f"error bound (H-infinity): {bound:.6e}")
    click.echo(f"true error  (H-infinity): {error:.6e}")
    if isinstance(reduction.model, LinearModel) and reduction.model.infinite is not None:
        degree = len(reduction.improper)
        kind = f"improper of degree {degree}, kept exactly" if degree else "proper"
        n = reduction.model.n_all_states
        click.echo(
            f"singular E: {count(reduction.finite_order, 'finite pole')} of {count(n, 'state')}, {kind} (gap "
            f"{reduction.infinite_gap:.1e})"
        )
    if reduction.unstable_order:
        click.echo(f"unstable or marginal states kept exactly: {reduction.unstable_order}")
    click.echo(f"solver: {reduction.solver}, residual {reduction.residual:.1e}")
    if reduction.certificate.factorizations:
        known = reduction.certificate
        click.echo(
            f"certificate: {known.kind}, singular values to {known.value:.1e}, "
            f"{known.factorizations} sparse factorizations"
        )
        click.echo(f"uncertainty of the error: {reduction.error_uncertainty:.1e}")


def main() -> None:
    """Run the command line; an error is reported in one line, with exit status 2."""
    run(cli, "hankelred")
