"""Truth tables of m bits: a number for every context of every bit, 2^m − 1 in all."""

from __future__ import annotations

import torch
from torch import Tensor


def contexts(bits: Tensor) -> Tensor:
    """Where each bit's context stands in its table: (…, m) bits → (…, m) indices below 2^m − 1.

    Bit t has 2ᵗ entries, behind those of the bits before it, numbered by the earlier bits as a binary number.
    """
    m = bits.shape[-1]
    t = torch.arange(m, device=bits.device)
    number = bits.long() << (m - 1 - t)
    earlier = (number.cumsum(-1) - number) >> (m - t)
    return earlier + (1 << t) - 1


def look_up(table: Tensor, bits: Tensor) -> Tensor:
    """The entries that bits meet in tables of their own: (…, 2^m − 1) and (…, m) → (…, m)."""
    return table.gather(-1, contexts(bits))
