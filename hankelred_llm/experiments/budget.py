"""The same number of trainable parameters for every method: ranks from a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import nn

from ..adapter.architectures import find_decoder
from ..errors import ExperimentError
from .methods import Method, Part, add_adapters, linear_layers, parse_method, trainable

#: Two methods are equal when their numbers of parameters differ by at most this share.
TOLERANCE = 0.02


def parameters_of(text: str, skeleton: Callable[[], nn.Module]) -> int:
    """Return the number of parameters that a budget means: a number, or that of a method with its r.

    Parameters
    ----------
    text : str
        As ``"4200"`` or ``"lora-qv r=16"``.
    skeleton : callable
        Gives a fresh model on the meta device.

    Raises
    ------
    ExperimentError
        It is neither.
    """
    if text.replace("_", "").isdigit():
        return int(text)
    try:
        method = parse_method(text)
    except ExperimentError as error:
        raise ExperimentError(
            f"budget {text!r} is neither a number of parameters nor a method with its r, as 'lora-qv r=16': "
            f"{error}"
        ) from None
    if any("r" not in part.options for part in method.parts[:1]) or len(method.parts) > 1:
        raise ExperimentError(
            f"budget {text!r} says no number of parameters; give a number, or one method with its r, as in "
            "'lora-qv r=16'"
        )
    return fixed(method, skeleton).parameters


def fixed(method: Method, skeleton: Callable[[], nn.Module]) -> Method:
    """Return a method whose r is among its options, with its number of parameters."""
    r = method.parts[0].options.get("r")
    if isinstance(r, bool) or not isinstance(r, int) or r < 1 or len(method.parts) > 1:
        raise ExperimentError(f"method {method.name!r} needs r=..., a whole number of at least 1")
    parts = (replace(method.parts[0], r=r),)
    return replace(method, parts=parts, parameters=_count(parts, skeleton))


def fit(method: Method, budget: int, skeleton: Callable[[], nn.Module]) -> Method:
    """Return a method with ranks that come to a budget within 2 %.

    The rank is the largest whole one within the budget; then single blocks or linear layers get one more, the
    most expensive first, as long as the count comes nearer to the budget.

    Parameters
    ----------
    method : Method
    budget : int
        Number of trainable parameters.
    skeleton : callable
        Gives a fresh model on the meta device.

    Raises
    ------
    ExperimentError
        r was given by hand, or the budget cannot be met; the message has the numbers.
    """
    if any("r" in part.options for part in method.parts):
        raise ExperimentError(f"method {method.name!r}: r follows from the budget here; leave it out")
    fitted: list[Part] = []
    remaining = float(budget)
    # the last part gets what remains, so that together they come as close to the budget as one part
    for part in reversed(method.parts) if len(method.parts) > 1 else method.parts:
        share = remaining if len(fitted) == len(method.parts) - 1 else budget * (1 - method.share)
        fitted.insert(0, _fit_part(method, part, share, skeleton))
        remaining -= _count((fitted[0],), skeleton)
    parts = tuple(fitted)
    count = _count(parts, skeleton)
    if abs(count - budget) > TOLERANCE * budget:
        raise ExperimentError(
            f"method {method.name!r} comes no nearer to a budget of {budget:,} trainable parameters than "
            f"{count:,}, {count / budget - 1:+.1%}; {TOLERANCE:.0%} are allowed; give a budget of {count:,}"
        )
    return replace(method, parts=parts, parameters=count)


def check_equal(methods: Iterable[Method]) -> None:
    """Refuse methods of which one is above the budget and one below, and that are too far apart.

    Raises
    ------
    ExperimentError
        Naming the two, with the numbers.
    """
    ordered = sorted(methods, key=lambda m: m.parameters)
    least, most = ordered[0], ordered[-1]
    if most.parameters > (1 + TOLERANCE) * least.parameters:
        raise ExperimentError(
            f"method {most.name!r} comes to {most.parameters:,} trainable parameters and "
            f"{least.name!r} to {least.parameters:,}, "
            f"{most.parameters / least.parameters - 1:.1%} apart; {TOLERANCE:.0%} are allowed; give a larger "
            "budget"
        )


def _fit_part(method: Method, part: Part, budget: float, skeleton: Callable[[], nn.Module]) -> Part:
    at_rank_one, at_rank_two = (_count((replace(part, r=r),), skeleton) for r in (1, 2))
    per_rank = at_rank_two - at_rank_one
    exact = (budget - at_rank_one) / per_rank + 1
    r = math.floor(exact)
    if r < 1:
        raise ExperimentError(
            f"method {method.name!r} has {at_rank_one:,} trainable parameters at rank 1, and the budget for "
            f"it is {budget:,.0f}; give a larger budget"
        )
    remaining = budget - at_rank_one - (r - 1) * per_rank
    costs, larger = _costs(part, skeleton(), per_rank), []
    for name, cost in sorted(costs.items(), key=lambda item: -item[1]):
        # also a little above the budget, where that is nearer to it
        if cost < 2 * remaining:
            larger.append(name)
            remaining -= cost
    return replace(part, r=r, larger=tuple(larger)) if len(larger) < len(costs) else replace(part, r=r + 1)


def _costs(part: Part, model: nn.Module, per_rank: int) -> dict[str, int]:
    """Return the number of parameters of one more rank, by linear layer or by block."""
    if part.kind != "hrm":
        return linear_layers(model, part.where)
    decoder = find_decoder(model)
    block = decoder.block_name(str(part.options.get("site", "mlp")))
    names = [f"{decoder.name}.{i}.{block}" for i in range(len(decoder.layers))]
    # all blocks have the same maps: input, output, static readouts, and one number of the pole
    return dict.fromkeys(names, per_rank // len(names))


def _count(parts: tuple[Part, ...], skeleton: Callable[[], nn.Module]) -> int:
    with torch.device("meta"):
        return trainable(add_adapters(skeleton(), parts))
