"""What a test can know of a model beside its invariants: how many parameters it has, and its conditionals once more,
as plain Python loops straight from its equations. A model without an entry here is tested all the same.

``logit(model, z, t)`` is the logit of step t (from 0) given ``z[:t]``, a list of bits. Nothing here is fast.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import cos, erf, exp, sin, sqrt, tanh
from typing import Any

from torch import nn

from chainrule.density import AutoregressiveDensity
from chainrule.models.transformer import Transformer
from chainrule.nn.attention import Block
from chainrule.nn.causal_linear import CausalLinear
from chainrule.orders import GRID_ORDERS

Vector = list[float]


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


def affine(layer: nn.Module, x: Sequence[float]) -> list[float]:
    out = [dot(row, x) for row in layer.weight.tolist()]
    return out if layer.bias is None else added(out, layer.bias.tolist())


def normalized(layer: nn.Module, x: list[float]) -> list[float]:
    mean = sum(x) / len(x)
    scale = (sum((v - mean) ** 2 for v in x) / len(x) + layer.eps) ** -0.5
    return [(v - mean) * scale * w + b for v, w, b in zip(x, layer.weight.tolist(), layer.bias.tolist(), strict=True)]


def gelu(a: float) -> float:
    return a * (1 + erf(a / sqrt(2))) / 2


def pixelcnn(model: AutoregressiveDensity, z: list[int], t: int) -> float:
    """Both streams, position by position; then the entry of the patch's table that its bits so far name."""
    (rows, columns), m = model.cells, model.patch**2
    where = model.where().tolist()

    def conv(layer: nn.Module, x: Callable[[int, int], list[float]], row: int, column: int) -> list[float]:
        """The window ends at (row, column), and goes half its width to the right of it where it sees rows above."""
        left, top = layer.padding[2], layer.padding[4] if len(layer.padding) > 4 else 0
        total = [0.0] * len(layer.weight)
        for dy, dx in itertools.product(range(layer.rows), range(layer.columns)):
            y, i = row + dy - top, column + dx - left
            if 0 <= y < rows and 0 <= i < columns:
                for unit, weights in enumerate(layer.weight[:, :, dy, dx].tolist()):
                    total[unit] += sum(w * v for w, v in zip(weights, x(y, i), strict=True))
        return total

    def g(a: list[float]) -> list[float]:
        half = len(a) // 2
        return (
            [tanh(p) * sigma(q) for p, q in zip(a[:half], a[half:], strict=True)]
            if model.blocks[0].gates
            else [*map(gelu, a)]
        )

    def bits(y: int, x: int) -> list[float]:
        return z[(y * columns + x) * m :][:m]

    @cache
    def v(level: int, y: int, x: int) -> list[float]:
        if not level:
            return added(conv(model.above, bits, y, x), where[y][x])
        k = model.blocks[level - 1]
        seen = conv(k.K_v, lambda y, x: normalized(k.norm_v, v(level - 1, y, x)), y, x)
        return added(v(level - 1, y, x), affine(k.A_v, g(seen)))

    @cache
    def h(level: int, y: int, x: int) -> list[float]:
        if not level:
            return added(conv(model.left, bits, y, x), v(0, y, x))
        k = model.blocks[level - 1]
        seen = conv(k.K_h, lambda y, x: normalized(k.norm_h, above_h(level - 1, y, x)), y, x)
        return added(above_h(level - 1, y, x), affine(k.A_h, g(added(seen, affine(k.L, v(level, y, x))))))

    @cache
    def above_h(level: int, y: int, x: int) -> list[float]:
        """What the next block takes for h: behind the one that attention follows, with what that adds."""
        if model.attention is None or level - 1 != model.middle:
            return h(level, y, x)
        so_far = [h(level, *divmod(place, columns)) for place in range(y * columns + x + 1)]
        return attended(model.attention, so_far, columns)[-1]

    patch, i = divmod(t, m)
    norm, first, _, last = model.table
    y, x = divmod(patch, columns)
    table = affine(last, [*map(gelu, affine(first, normalized(norm, above_h(len(model.blocks), y, x))))])
    context = int("".join(map(str, z[patch * m : t])) or "0", 2)
    return model.b[model.order].tolist()[t] + table[2**i - 1 + context]


def added(a: list[float], b: list[float]) -> list[float]:
    return [p + q for p, q in zip(a, b, strict=True)]


def pixelcnn_parameters(n: int, gates: bool, channels: int = 4, attention: int = 0) -> int:
    """c channels, 2 blocks, a first layer that sees 1×3 pixels above and one to the left, windows of 2×3 and 1×2."""
    c, wide = channels, 2 * channels if gates else channels
    first = c * (1 * 3 + 1) + c * n
    block = 4 * c + c * wide * (2 * 3 + 2) + (c + 1) * wide + 2 * (c + 1) * c
    attended = 12 * c**2 + 10 * c if attention else 0
    return first + 2 * block + attended + (2 * c + (c + 1) * c) + (c + 1) + n


def deep_nade(model: AutoregressiveDensity, z: list[int], t: int) -> float:
    """b + Σ_{j<t} (W_j x_j + U_j) of the pixels before t, hidden layers, V of the pixel of t."""
    order, h = model.order.tolist(), model.b.tolist()
    for bit, pixel in zip(z[:t], order, strict=False):
        W, U = model.W[pixel].tolist(), model.U[pixel].tolist()
        h = [h[i] + W[i] * bit + U[i] for i in range(len(h))]
    h = [max(0.0, a) for a in h]
    for layer in model.layers:
        h = [max(0.0, a) for a in affine(layer, h)]
    V = model.V[order[t]].tolist()
    return model.c.tolist()[order[t]] + sum(V[i] * h[i] for i in range(len(h)))


def deep_nade_parameters(n: int, hidden: list[int]) -> int:
    inner = sum(below * above + above for below, above in pairwise(hidden))
    return 2 * n * hidden[0] + hidden[0] + inner + n * hidden[-1] + n


def made(model: AutoregressiveDensity, z: list[int], t: int) -> float:
    """Layer by layer: each unit sees those below whose degree is at most its own; the weights belong to pixels."""
    order, n = model.order.tolist(), model.dim
    x = [0.0] * n  # by pixel, as the weights are: the first order is the one they are stored in
    degree = [0] * n
    for step, bit in enumerate(z):
        x[order[step]] = bit
    for step, pixel in enumerate(order):
        degree[pixel] = step + 1
    stored = model.own_order.tolist()
    h, below = [x[pixel] for pixel in stored], [degree[pixel] for pixel in stored]
    for layer in model.layers[:-1]:
        W, b = layer.weight.tolist(), layer.bias.tolist()
        own = [max(1, round(1 + (n - 2) * k / (len(b) - 1))) if len(b) > 1 else 1 for k in range(len(b))]
        h = [max(0.0, b[k] + sum(W[i][k] * h[i] for i in range(len(h)) if below[i] <= own[k])) for k in range(len(b))]
        below = own
    place, last = stored.index(order[t]), model.layers[-1]
    V, c = last.weight.tolist(), last.bias.tolist()
    logit = c[place] + sum(V[i][place] * h[i] for i in range(len(h)) if below[i] <= t)
    if model.direct:
        A = model.direct.weight.tolist()
        logit += sum(A[stored.index(order[s])][place] * z[s] for s in range(t))
    return logit


def made_sizes(n: int, hidden: list[int], direct: bool) -> tuple[int, int]:
    """Parameters stored, and masked."""
    degrees = [list(range(1, n + 1))]
    degrees += [[max(1, round(1 + (n - 2) * k / (d - 1))) if d > 1 else 1 for k in range(d)] for d in hidden]
    degrees += [list(range(n))]
    pairs = [*pairwise(degrees), *([(degrees[0], degrees[-1])] if direct else [])]
    masked = sum(below > above for belows, aboves in pairs for below in belows for above in aboves)
    return sum(len(a) * len(b) for a, b in pairs) + sum(hidden) + n, masked


def transformer(model: Transformer, z: list[int], t: int) -> float:
    """b_t + T(x_k), where the bits of patch k so far say; the vectors x are those of the patches up to k."""
    (k, i), (_, columns) = divmod(t, model.patch**2), model.cells
    x = [entering(model, z, j) for j in range(k + 1)]
    for block in model.blocks:
        x = attended(block, x, columns)
    entry = 2**i - 1 + int("".join(map(str, z[t - i : t])) or "0", 2)
    return affine(model.T, normalized(model.norm, x[k]))[entry] + model.b.tolist()[model.order.tolist()[t]]


def attended(block: Block, x: list[Vector], columns: int) -> list[Vector]:
    """The vectors x of all steps so far, after one layer of attention and one of the network."""
    a = attention(block, [normalized(block.norm_1, x_j) for x_j in x], columns)
    x = [added(x_j, a_j) for x_j, a_j in zip(x, a, strict=True)]
    h = [[gelu(u) for u in affine(block.up, normalized(block.norm_2, x_j))] for x_j in x]
    return [added(x_j, affine(block.down, h_j)) for x_j, h_j in zip(x, h, strict=True)]


def entering(model: Transformer, z: list[int], j: int) -> Vector:
    """E_j + U · the bits of the last patches and of those in a window above; outside of the image they are 0."""
    p, (_, columns), (above, wide) = model.patch, model.cells, model.first
    row, column = divmod(j, columns)
    seen = [j - back if j >= back else None for back in range(1, (wide + 1) // 2 + 1)]
    for r in range(row - 1, row - above - 1, -1):
        for c in range(column - wide // 2, column - wide // 2 + wide):
            seen.append(r * columns + c if r >= 0 and 0 <= c < columns else None)
    bits = [bit for s in seen for bit in ([0] * p**2 if s is None else z[s * p**2 : (s + 1) * p**2])]
    y, x = divmod(model.order.tolist()[j * p**2], model.shape[1])
    place = model.places.tolist()[y // p * (model.shape[1] // p) + x // p]
    if model.told is not None:
        place = added(place, model.told.tolist()[GRID_ORDERS.index(model.grid_order)])
    return added(place, affine(model.U, bits))


def attention(block: Block, x: list[Vector], columns: int) -> list[Vector]:
    """Head by head: step j takes the mean of the values up to j, weighted by exp(q·k / √w)."""
    d, w = len(x[0]), len(x[0]) // block.heads
    qkv = [affine(block.qkv, x_j) for x_j in x]
    out = []
    for j in range(len(x)):
        means = []
        for first in range(0, d, w):
            q = turned(qkv[j][first : first + w], j, columns)
            keys = [turned(qkv[s][d + first : d + first + w], s, columns) for s in range(j + 1)]
            weights = [exp(dot(q, key) / w**0.5) for key in keys]
            for unit in range(2 * d + first, 2 * d + first + w):
                means.append(dot(weights, [qkv[s][unit] for s in range(j + 1)]) / sum(weights))
        out.append(affine(block.out, means))
    return out


def turned(a: Vector, step: int, columns: int) -> Vector:
    """Each pair of units (u, u + w/2) turned: the first half of the pairs by the row, the others by the column."""
    half, quarter = len(a) // 2, len(a) // 4
    angles = [place * 0.01 ** (u / quarter) for place in divmod(step, columns) for u in range(quarter)]
    return [a[u] * cos(v) - a[u + half] * sin(v) for u, v in enumerate(angles)] + [
        a[u] * sin(v) + a[u + half] * cos(v) for u, v in enumerate(angles)
    ]


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(u * v for u, v in zip(a, b, strict=True))


def transformer_parameters(n: int, width: int, layers: int, first: list[int], **of_no_account: int) -> int:
    """With patches of one pixel."""
    d, seen = width, first[0] * first[1] + (first[1] + 1) // 2
    return layers * (12 * d**2 + 10 * d) + d * (n + seen + 2) + d + 1 + n


WIDTHS = [{"hidden": d} for d in (1, 3, 8)]

REFERENCES = {
    "tabular": Reference(tabular, lambda n: 2**n - 1),
    "fvsbn": Reference(fvsbn, lambda n: n * (n + 1) // 2),
    "deep_nade": Reference(
        deep_nade,
        deep_nade_parameters,
        [{"hidden": [3]}, {"hidden": [5, 2, 4]}],
        lambda n, hidden: 2 * hidden[0],
    ),
    "made": Reference(
        made,
        lambda n, **arguments: made_sizes(n, **arguments)[0],
        [{"hidden": [5], "direct": True}, {"hidden": [7, 3, 20], "direct": False}],
        lambda n, **arguments: made_sizes(n, **arguments)[1],
    ),
    "mlp": Reference(mlp, lambda n, hidden: hidden * n * (n - 1) // 2 + n * (2 * hidden + 1), WIDTHS),
    "pixelcnn": Reference(
        pixelcnn,
        pixelcnn_parameters,
        [{"gates": False}, {"gates": True}, {"gates": False, "channels": 8, "attention": 2}],
    ),
    "nade": Reference(nade, lambda n, hidden: 2 * n * hidden + hidden + n, WIDTHS, lambda n, hidden: hidden),
    "transformer": Reference(
        transformer,
        transformer_parameters,
        [{"width": d, "heads": d // 4, "layers": d // 8, "first": [d // 8, d // 4]} for d in (8, 12, 24)],
    ),
}
