"""One process of several, where a run is spread over devices by accelerate."""

from __future__ import annotations

import torch
from accelerate import PartialState


def this_process() -> PartialState:
    """Return which process this is, of how many.

    Examples
    --------
    >>> from hankelred_llm.experiments.processes import this_process
    >>> this_process().is_main_process
    True
    """
    # said outright: without a GPU accelerate would take every process for the only one
    return PartialState(cpu=not torch.cuda.is_available())
