"""`hankelred-llm reduce`."""

from __future__ import annotations

from pathlib import Path

import click

from .data_options import data_options


@click.command(short_help="An adapter with fewer states.")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("--order", type=int, help="States of every layer.")
@click.option("--tol", type=float, help="The least states whose error bound is at most this, layer by layer.")
@click.option("--budget", type=int, help="So many states over all layers.")
@data_options
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="In place of --data: the file that hankelred-llm spectra ADAPTER --save wrote.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the reduced adapter.")
@click.option("--overwrite", is_flag=True, help="Replace an adapter that is there already.")
def reduce(
    adapter: Path,
    order: int | None,
    tol: float | None,
    budget: int | None,
    base: str | None,
    gguf_file: str | None,
    revision: str | None,
    data: Path | None,
    length: int,
    batches: int,
    batch_size: int,
    dtype: str,
    device: str | None,
    calibration: Path | None,
    out: Path,
    overwrite: bool,
) -> None:
    """Reduce the HRM adapter in the folder ADAPTER, and write the smaller one and reduction.json into --out.

    With a text, or a calibration, each layer gets the candidate with the smallest error on held-out rows, and
    the loss on these rows is printed before and after. Without, the states with the smallest Hankel singular
    values are removed. The reduced adapter is loaded, trained and used like any other.

    \b
    Example:
      hankelred-llm reduce training/adapter --order 8 --data corpus.txt --out smaller
      hankelred-llm reduce training/adapter --budget 12 --calibration calibration.safetensors --out smaller
    """
    rules = {"--order": order, "--tol": tol, "--budget": budget}
    rules_passed = [name for name, value in rules.items() if value is not None]
    if len(rules_passed) != 1:
        raise click.UsageError(
            f"give one of --order, --tol and --budget, got {' and '.join(rules_passed) or 'none'}"
        )
    if data is not None and calibration is not None:
        raise click.UsageError("--data and --calibration are two sources of the same; give one of them")
    from .. import Calibration, CalibrationError, calibrate
    from .. import reduce as reduce_in_place
    from .open_model import adapter_config, check_place, open_named, write_adapter

    adapter_config(adapter)
    check_place(out, overwrite=overwrite)
    if calibration is not None and not calibration.is_file():
        raise CalibrationError(
            f"there is no calibration {calibration}; make it with hankelred-llm spectra {adapter} --data "
            f"TEXT --save {calibration}"
        )
    loaded = open_named(
        str(adapter), base=base, gguf_file=gguf_file, revision=revision, dtype=dtype, device=device
    )
    statistics: Calibration | None = None
    try:
        if data is not None:
            rows = loaded.batches(data, length=length, batches=batches, batch_size=batch_size)
            statistics = calibrate(loaded.model, rows)
        elif calibration is not None:
            statistics = Calibration.load(calibration)
        report = reduce_in_place(loaded.model, order=order, tol=tol, budget=budget, calibration=statistics)
    except KeyboardInterrupt:
        raise click.Abort(
            "interrupted, and nothing was written; to be able to resume with a long text, read it by "
            "hankelred-llm spectra --save, and give the file with --calibration"
        ) from None
    write_adapter(loaded.model, out, {"reduction.json": report.to_json()})
    click.echo(str(report))
    click.echo(f"wrote {out}")


COMMAND = reduce
