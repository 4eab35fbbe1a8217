"""`hankelred fit`: from a frequency response in a file to a model in a file."""

from __future__ import annotations

from pathlib import Path

import click

from .._util.reading import checked_suffix
from ..errors import FileFormatError, HankelredError, count
from ..files import write_model
from ..identification.frequency_fit.response_data import read_response
from ..models.linear_model import timestep
from .console import check_picture, check_target, print_json, report_written, save_picture
from .options import force_option, json_option
from .streams import MODEL_OUT, TABLE_IN, format_option


@click.command(short_help="A model from the frequency response in RESPONSE.")
@click.argument("response", type=TABLE_IN)
@format_option
@click.option("--order", type=int, help="Number of states (default: chosen at held-out frequencies).")
@click.option("--inputs", type=int, default=1, show_default=True, help="Number of inputs of a table.")
@click.option("--hertz", is_flag=True, help="The frequencies of a table are in Hz.")
@click.option("--dt", type=float, help="Sampling time in seconds (default: continuous time).")
@click.option(
    "--unstable", is_flag=True, help="Allow poles in the right half plane, or outside the unit circle."
)
@click.option("--out", type=MODEL_OUT, help="Write the model (.mat, .npz, .json).")
@click.option(
    "--plot", type=click.Path(path_type=Path), help="Write gains of the data and the model as a picture."
)
@force_option
@json_option
def fit(
    response: Path,
    order: int | None,
    inputs: int,
    hertz: bool,
    dt: float | None,
    unstable: bool,
    out: Path | None,
    plot: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Fit a model to the frequency response in RESPONSE.

    RESPONSE is a table of text or CSV with one frequency (rad/s) per line, then real and imaginary part of
    every entry, those of the first output and its inputs first; or an .npz or .mat file with response
    (outputs, inputs, N) and omega (N); or a Touchstone file (.s2p), for which scikit-rf has to be installed.

    \b
    Example:
      hankelred fit response.csv --order 4 --out fitted.json --plot fitted.png
      hankelred fit response.npz
    """
    from ..identification.frequency_fit.frequency_fit import fit_frequency_response

    check_picture(plot)
    if out is not None:
        checked_suffix(out)
    check_target(out, response, force)
    check_target(plot, response, force)
    if dt is not None and not dt > 0:
        raise HankelredError(f"--dt must be a positive number of seconds, got {dt:g}")
    if inputs < 1:
        raise FileFormatError(f"--inputs must be at least 1, got {inputs}")
    values, omega = read_response(response, inputs=inputs, in_hertz=hertz)
    model = fit_frequency_response(values, order, omega=omega, dt=dt or 0, stable=not unstable)
    if as_json:
        print_json(
            {
                "frequencies": omega.size,
                "inputs": model.model.n_inputs,
                "outputs": model.model.n_outputs,
                "dt": model.model.dt,
                "order": model.order,
                "relative_error": model.residual,
                "fit": model.fit,
                "hankel_singular_values": model.hankel_singular_values,
                "noise_floor": model.noise_floor,
            }
        )
    else:
        time = "continuous" if dt is None else timestep(dt)
        click.echo(
            f"{omega.size} frequencies, {count(model.model.n_inputs, 'input')}, "
            f"{count(model.model.n_outputs, 'output')} -> order {model.order}, {time}"
        )
        click.echo(f"relative error: {model.residual:.3g}")
        for i, value in enumerate(model.fit):
            click.echo(f"fit of output {i}: {value:.6f}")
    if out is not None:
        write_model(model.model, out)
        report_written(out, quiet=as_json)
    if plot is not None:
        save_picture(plot, lambda ax: model.plot(ax=ax), quiet=as_json)
