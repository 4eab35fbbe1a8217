"""Everything a user can name stands in `public_surface.txt`, so that it changes on purpose only.

After a change that is wanted, `python tests/project/test_public_surface.py` writes the file again, and the
difference is part of the change.
"""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import click
import peft

import hankelred
import hankelred.cli.main
import hankelred_llm
import hankelred_llm.cli.main

LISTING = Path(__file__).with_name("public_surface.txt")


def parameters(function):
    """Return the parameters of a callable with their defaults, without types."""
    plain = []
    for p in inspect.signature(function).parameters.values():
        default = p.default
        if default is not p.empty and not isinstance(default, (int, float, str, bool, type(None), tuple)):
            default = ...
        plain.append(p.replace(annotation=p.empty, default=default))
    return str(inspect.Signature(plain)).replace("Ellipsis", "...")


def members(name, value):
    """Yield what a class adds to its base: how it is made, fields, properties, methods."""
    if issubclass(value, Exception):
        yield f"{name}: {', '.join(base.__name__ for base in value.__bases__)}"
        return
    if issubclass(value, peft.PeftConfig):  # what peft adds differs from version to version
        own = [f for f in dataclasses.fields(value) if f.name in vars(value)["__annotations__"]]
        yield f"{name}({', '.join(f.name for f in own)})"
    else:
        yield f"{name}{parameters(value)}"
    fields = [f.name for f in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
    for member, thing in sorted(vars(value).items()):
        if member.startswith("_") or member in fields:
            continue
        if isinstance(thing, (classmethod, staticmethod)):
            yield f"{name}.{member}{parameters(getattr(value, member))}"
        elif inspect.isfunction(thing):
            yield f"{name}.{member}{parameters(thing)}"
        else:
            yield f"{name}.{member}"


def options(program, group):
    """Yield every subcommand with its arguments and options."""
    context = click.Context(group)
    for name in sorted(group.list_commands(context)):
        command = group.get_command(context, name)
        told = [p.opts[0] if isinstance(p, click.Option) else p.human_readable_name for p in command.params]
        yield f"$ {program} {name} {' '.join(told)}"


def surface():
    """Return the whole listing."""
    lines = []
    for package in (hankelred, hankelred_llm):
        for name in package.__all__:
            full, value = f"{package.__name__}.{name}", getattr(package, name)
            if inspect.isclass(value):
                lines += members(full, value)
            else:
                lines.append(f"{full}{parameters(value)}" if callable(value) else full)
    lines += options("hankelred", hankelred.cli.main.cli)
    lines += options("hankelred-llm", hankelred_llm.cli.main.cli)
    return "\n".join(lines) + "\n"


def test_surface_is_the_one_on_record():
    assert surface().splitlines() == LISTING.read_text("utf-8").splitlines(), (
        "the public surface has changed; if that is wanted: python tests/project/test_public_surface.py"
    )


if __name__ == "__main__":
    LISTING.write_text(surface(), "utf-8")
