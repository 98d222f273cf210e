"""What a test can know of a model beside its invariants: how many parameters it has, and its conditionals once more,
as plain Python loops straight from its equations. A model without an entry here is tested all the same.

``logit(model, z, t)`` is the logit of step t (from 0) given ``z[:t]``, a list of bits. Nothing here is fast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

from chainrule.density import AutoregressiveDensity
from chainrule.nn.causal_linear import CausalLinear


@dataclass(frozen=True)
class Reference:
    logit: Callable[[AutoregressiveDensity, list[int], int], float]
    parameters: Callable[..., int]  # of n pixels and the arguments below
    arguments: Sequence[dict[str, Any]] = ({},)
    unseen: Callable[..., int] = lambda n, **arguments: 0  # parameters that the likelihood does not depend on


def sigma(a: float) -> float:
    return 1 / (1 + exp(-a))


def causal(layer: CausalLinear, t: int, j: int) -> list[float]:
    """The weights of step t on pixel j < t, found where the layer keeps them."""
    k = next(k for k, (start, stop) in enumerate(layer.blocks) if start <= t < stop)
    start, i = layer.blocks[k][0], t - layer.blocks[k][0]
    if j < start:
        return layer.past[k - 1][i, :, j].tolist()
    return layer.triangle(k)[i * (i - 1) // 2 + j - start].tolist()


def tabular(model: AutoregressiveDensity, z: list[int], t: int) -> float:
    """Step t has 2ᵗ entries, numbered by x_1 … x_{t−1} as a binary number, behind those of the steps before."""
    tables_before = sum(2**s for s in range(t))
    context = int("".join(map(str, z[:t])) or "0", 2)
    return model.theta.tolist()[tables_before + context]


def fvsbn(model: AutoregressiveDensity, z: list[int], t: int) -> float:
    """α₀⁽ᵗ⁾ + Σ_{j<t} α_j⁽ᵗ⁾ x_j."""
    return model.alpha0.tolist()[t] + sum(causal(model.alpha, t, j)[0] * z[j] for j in range(t))


def mlp(model: AutoregressiveDensity, z: list[int], t: int) -> float:
    """α⁽ᵗ⁾·σ(A_t x + c_t) + b_t, with the pixel's own A, c and α."""
    alpha, c, logit = model.alpha[t].tolist(), model.c[t].tolist(), model.b.tolist()[t]
    for unit in range(len(c)):
        logit += alpha[unit] * sigma(c[unit] + sum(causal(model.A, t, j)[unit] * z[j] for j in range(t)))
    return logit


def nade(model: AutoregressiveDensity, z: list[int], t: int) -> float:
    """b_t + V_t · σ(c + Σ_{j<t} W_j x_j)."""
    W, V, c, b = model.W.tolist(), model.V.tolist(), model.c.tolist(), model.b.tolist()
    h = [sigma(c[i] + sum(W[j][i] * z[j] for j in range(t))) for i in range(len(c))]
    return b[t] + sum(V[t][i] * h[i] for i in range(len(c)))


WIDTHS = [{"hidden": d} for d in (1, 3, 8)]

REFERENCES = {
    "tabular": Reference(tabular, lambda n: 2**n - 1),
    "fvsbn": Reference(fvsbn, lambda n: n * (n + 1) // 2),
    "mlp": Reference(mlp, lambda n, hidden: hidden * n * (n - 1) // 2 + n * (2 * hidden + 1), WIDTHS),
    "nade": Reference(nade, lambda n, hidden: 2 * n * hidden + hidden + n, WIDTHS, lambda n, hidden: hidden),
}
