"""Each model's conditionals once more, as plain Python loops straight from its equations.

``logit(model, z, t)`` is the logit of step t (from 0) given ``z[:t]``, a list of bits. Nothing here is fast.
"""

from __future__ import annotations

from math import exp

from chainrule.density import AutoregressiveDensity


def sigma(a: float) -> float:
    return 1 / (1 + exp(-a))


def tabular(model: AutoregressiveDensity, z: list[int], t: int) -> float:
    """Step t has 2ᵗ entries, numbered by x_1 … x_{t−1} as a binary number, behind those of the steps before."""
    tables_before = sum(2**s for s in range(t))
    context = int("".join(map(str, z[:t])) or "0", 2)
    return model.theta.tolist()[tables_before + context]


def fvsbn(model: AutoregressiveDensity, z: list[int], t: int) -> float:
    """α₀⁽ᵗ⁾ + Σ_{j<t} α_j⁽ᵗ⁾ x_j; row t of the packed triangle ends with α₀."""
    alpha = model.alpha.tolist()
    row = t * (t + 1) // 2
    return alpha[row + t] + sum(alpha[row + j] * z[j] for j in range(t))


def mlp(model: AutoregressiveDensity, z: list[int], t: int) -> float:
    """α·σ(A x + c) + b with the pixel's own A; A is kept in a dense and a triangular part."""
    k = next(k for k, (start, stop) in enumerate(model.blocks) if start <= t < stop)
    start, i = model.blocks[k][0], t - model.blocks[k][0]
    alpha, c, logit = model.alpha[t].tolist(), model.c[t].tolist(), model.b.tolist()[t]
    past = model.past[k - 1][i].tolist() if k else []
    within = model.within[k].tolist()[i * (i - 1) // 2 :] if i else []
    for unit in range(len(c)):
        a = c[unit]
        for j in range(start):
            a += past[unit][j] * z[j]
        for j in range(i):
            a += within[j][unit] * z[start + j]
        logit += alpha[unit] * sigma(a)
    return logit


def nade(model: AutoregressiveDensity, z: list[int], t: int) -> float:
    """b_t + V_t · σ(c + Σ_{j<t} W_j x_j)."""
    W, V, c, b = model.W.tolist(), model.V.tolist(), model.c.tolist(), model.b.tolist()
    h = [sigma(c[i] + sum(W[j][i] * z[j] for j in range(t))) for i in range(len(c))]
    return b[t] + sum(V[t][i] * h[i] for i in range(len(c)))
