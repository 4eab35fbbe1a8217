"""The chunked scan, block by block; what is done with the chunks of a block is in `_products` or `_sweeps`.

Nothing here knows of autograd; `_scan.py` makes differentiable operators of it. Chunks of a block run side by
side, each from zero; the states they end with are joined in float64, and what enters a chunk is added to it.
Products do that on a CPU without masks, sweeps everywhere else.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hankelred_llm.ops import chunk_elementwise as _sweeps
from hankelred_llm.ops import chunk_matmul as _products
from hankelred_llm.ops.chunk_matmul import Products
from hankelred_llm.ops.decay_matrices import CHUNK
from hankelred_llm.ops.eigenvalues import Masks, Modes, to_columns, to_modes


def scan(
    modes: Modes, u: Tensor, out: Tensor, state: Tensor | None, masks: Masks, *, reverse: bool = False
) -> Iterator[tuple[int, int]]:
    """Run ``s_t = a s_(t-1) + u_t`` block by block; each yield says which samples of `out` have become valid.

    Parameters
    ----------
    modes : Modes
    u : Tensor, (batch, columns, time)
        Any strides, any float type.
    out : Tensor, (batch, columns, time)
        Is written; its type is the one computed in.
    state : Tensor, (batch, columns), or None
        The state before the first sample; in reverse, what is added to the last sample. Zero when None.
    masks : Masks
        Of every step ``a s_(t-1)``. Forward, `u` is not read where `keep` is False.
    reverse : bool
        From the last sample to the first: ``s_t = a s_(t+1) + u_t``, the step's masks being those at t.
    """
    batch, columns, time = u.shape
    start_state = u.new_zeros(batch, columns) if state is None or reverse else state
    carry = to_modes(start_state, modes.pairs)
    for start, stop, products in _blocks(modes, u, out.dtype, masks, reverse):
        x, s = u[..., start:stop], out[..., start:stop]
        if reverse and state is not None and stop == time:
            x = x.to(out.dtype, copy=True)
            x[..., -1] += state
        if products is None:
            keep, reset = (m if m is None else m[:, start:stop] for m in (masks.keep, masks.reset))
            carry = _sweeps.scan_block(modes, x, s, carry, keep, reset, reverse)
        else:
            after = products.scan_block(x, s, carry)
            if not all(mode.isfinite().all() for mode in after):
                after = _mended(modes, products, x, s, carry)
            carry = after
        yield start, stop


def _blocks(
    modes: Modes, u: Tensor, dtype: torch.dtype, masks: Masks, reverse: bool
) -> list[tuple[int, int, Products | None]]:
    """Return which samples make a block, in the scan's direction, and the products that serve for it."""
    time = u.shape[-1]
    blocks: list[tuple[int, int, Products | None]]
    if masks.keep is not None or masks.reset is not None or not _products.allowed(u, dtype):
        blocks = [(*block, None) for block in _cut(time, _sweeps.block_length(u))]
    else:
        rest, block = time % CHUNK, _products.block_length(u)
        products = Products.of(modes, CHUNK, min(block, time) // CHUNK, dtype, reverse)
        blocks = [(*samples, products) for samples in _cut(time - rest, block)]
        if rest:  # a chunk that is shorter
            blocks.append((time - rest, time, Products.of(modes, rest, 1, dtype, reverse)))
    return blocks[::-1] if reverse else blocks


def _cut(time: int, length: int) -> list[tuple[int, int]]:
    return [(start, min(start + length, time)) for start in range(0, time, length)]


def _mended(modes: Modes, products: Products, u: Tensor, out: Tensor, carry: list[Tensor]) -> list[Tensor]:
    """Do `Products.scan_block` where something is not finite: by products before it, by sweeps after."""
    swept = torch.empty_like(out)
    after_sweeps = _sweeps.scan_block(modes, u, swept, carry, None, None, products.reverse)
    after, right, whole = products.scan_block_up_to(u, out, carry)
    torch.where(right, out, swept, out=out)
    p = modes.pairs
    of_modes = [whole[:, :p], whole[:, 2 * p :]] if p else [whole]
    return [torch.where(w, a, b) for w, a, b in zip(of_modes, after, after_sweeps, strict=False)]


def one_step_back(modes: Modes, h: Tensor, masks: Masks) -> Tensor:
    """Return the gradient to the initial state, float64 (batch, columns), from the first sample's adjoint."""
    factors = [power.conj() for power in modes.powers(torch.ones(1, device=h.device, dtype=torch.float64))]
    moved = [f.squeeze(1) * m for f, m in zip(factors, to_modes(h, modes.pairs), strict=True)]
    back = torch.cat(to_columns(moved), 1)
    if masks.keep is not None:
        back = torch.where(masks.keep[:, :1], back, h.double())
    return back if masks.reset is None else torch.where(masks.reset[:, :1], 0.0, back)
