# ruff: noqa: ANN401, PLR0917
"""NADE on a CPU in float32: likelihood, gradients and sampling as compiled loops over *distinct* hidden states.

    a_t = c + Σ_{j<t} z_j W[j],   h_t = σ(a_t),   logit_t = b_t + V[t]·h_t

h changes only after a pixel that is on, so an image of K such pixels has K + 1 states, and each state serves a
*run* of steps. Images that have seen no such pixel yet all share σ(c). Per image that leaves (K + 1)·d sigmoids and n·d
multiply-adds for the logits, again as many sigmoids and twice the multiply-adds for the gradients. What is left is
to keep them fed:

* Logits are shared out by images. A few rows of V at a time are copied to where they stay in the first-level cache,
  and every image of a group uses them before the next few come.
* Gradients are shared out by hidden units, which know nothing of each other once the logits' gradients are
  there: LANES of them at a time, so that their share of W, V and both gradients stays in the second-level cache, and
  the rows of a few steps in the first. No two threads add into one number, so the sums have one order. Images are
  shared out as well only where there are fewer such blocks than threads.
* σ is a rational function of its clamped argument: no exponential, and the same few operations for every lane.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from chainrule.kernels.lanes import LANES, clamp, load, load_part, splat, store, store_part, take, total
from chainrule.kernels.threads import compiled, team, threads

STEPS = 8  # rows of V that the forward pass holds ready
TILE = 1792 // LANES  # steps whose rows of V, W and their gradients the backward pass holds ready
GROUP = 64  # images that share what is held ready
AHEAD = 4  # steps computed in one go; also, when drawing, in the hope that the next bits are off


def group_size(images: int) -> int:
    """Images of a task: few enough that every thread has one."""
    return min(GROUP, max(1, -(-images // torch.get_num_threads())))


# ---- σ ------------------------------------------------------------------------------------------------

# σ(x) − 1/2 = x · P(x²) / Q(x²) up to |x| = 16, where σ is 1e-7 from 0 or 1: the fit of least maximum error, 7e-8.
P0, P1, P2, P3 = map(np.float32, (2.4999984e-1, 8.0710416e-3, 4.5919561e-5, 4.4181359e-8))
Q1, Q2, Q3, Q4 = map(np.float32, (1.1561691e-1, 1.4852458e-3, 3.7036179e-6, 9.4683436e-10))
FLAT = np.float32(16)
HALF, ONE, ZERO = np.float32(0.5), np.float32(1), np.float32(0)


@compiled
def logistic(x: Any) -> Any:
    """σ within 3e-7 on |x| ≤ FLAT, for a number or for lanes."""
    y = x * x
    return HALF + x * (P0 + y * (P1 + y * (P2 + y * P3))) / (ONE + y * (Q1 + y * (Q2 + y * (Q3 + y * Q4))))


@compiled
def sigmoid(a: Any) -> Any:
    """σ of lanes, whatever is in them."""
    return logistic(clamp(a, FLAT))


# ---- logits -------------------------------------------------------------------------------------------


def forward(z: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Bits z (B, n), W and V (n, d), c (d,), b (n,) → (B, n) logits, and where the bits are on: see :func:`_scan`."""
    images, n = z.shape
    logits = W.new_empty(images, n)
    on = z.new_empty(images, n, dtype=torch.int16 if n <= np.iinfo(np.int16).max else torch.int32)
    at = z.new_empty(images, -(-n // TILE) + 1, dtype=torch.int32)
    given, made = (_bits(z), *_arrays(W, c[None], V, b)), (logits.numpy(), on.numpy(), at.numpy())
    size = group_size(images)
    threads.run(_logits, _logits_team, -(-images // size), _rows(size, W), size, *given, *made)
    return logits, (on, at)


def _bits(z: Tensor) -> Any:
    return z.detach().ne(0).contiguous().numpy()


def _arrays(*tensors: Tensor) -> list[Any]:
    return [x.detach().contiguous().numpy() for x in tensors]


def _rows(images: int, W: Tensor) -> int:
    """Scratch for STEPS rows of V, and a and h of a group's images and of the image with no pixel on."""
    return (STEPS + 2 * images + 2) * -(-W.shape[1] // LANES)


@team
def _logits_team(counter: Any, scratch: Any, *given: Any) -> None:
    for thread in numba.prange(len(scratch)):
        _logits(counter, scratch[thread], *given)


@compiled
def _logits(
    counter: Any, scratch: Any, size: int, z: Any, W: Any, c: Any, V: Any, b: Any, out: Any, on: Any, at: Any
) -> None:
    first = take(counter) * size
    while first < len(z):
        last = min(first + size, len(z))
        _logits_of_group(z, W, c, V, b, first, last, scratch, out)
        _scan(z[first:last], on[first:last], at[first:last])
        first = take(counter) * size


@compiled
def _logits_of_group(z: Any, W: Any, c: Any, V: Any, b: Any, first: int, last: int, scratch: Any, logits: Any) -> None:
    n, d = W.shape
    blocks = (d + LANES - 1) // LANES
    V8, a, h = _begin(c, scratch, last - first, blocks)
    fresh, waiting = np.ones(last - first, np.bool_), last - first  # no pixel on yet: all share h's first rows
    shared = np.empty((1, n), np.float32)
    for begin in range(0, n, STEPS):
        end = min(n, begin + STEPS)
        _hold(V, begin, end, V8, blocks)
        if waiting:
            _products(h, 0, V8, begin, b, begin, end, blocks, shared, 0)
        for g in range(last - first):
            i, start = first + g, begin
            while start < end:
                stop = start + 1
                while stop < end and not z[i, stop - 1]:
                    stop += 1  # steps start to stop − 1 see one hidden state
                if fresh[g]:
                    for t in range(start, stop):
                        logits[i, t] = shared[0, t]
                else:
                    _products(h, g + 1, V8, begin, b, start, stop, blocks, logits, i)
                if z[i, stop - 1]:
                    waiting -= fresh[g]
                    fresh[g] = False
                    _turn_on(a, h, g + 1, W, stop - 1, blocks)
                start = stop


@compiled
def _begin(c: Any, scratch: Any, images: int, blocks: int) -> Any:
    """Cuts scratch into room for rows of V, and a and h of one image more than there are, with no pixel on."""
    V8, rows = scratch[: STEPS * blocks], STEPS * blocks
    a, h = scratch[rows : rows + (images + 1) * blocks], scratch[rows + (images + 1) * blocks :]
    for q in range(blocks):
        x = load_part(c, 0, q * LANES)
        y = sigmoid(x)
        for image in range(images + 1):
            store(a, image * blocks + q, x)
            store(h, image * blocks + q, y)
    return V8, a, h


@compiled
def _hold(V: Any, begin: int, end: int, V8: Any, blocks: int) -> None:
    """Copies rows begin to end of V to aligned, padded rows that stay in the cache."""
    for t in range(begin, end):
        for q in range(blocks):
            store(V8, (t - begin) * blocks + q, load_part(V, t, q * LANES))


@compiled
def _products(
    h: Any, image: int, V8: Any, begin: int, b: Any, start: int, stop: int, blocks: int, out: Any, i: int
) -> None:
    """out[i, t] = b_t + V[t]·h for the steps that share h: four at a time, so that h is read once for them."""
    t = start
    while t + 4 <= stop:
        r = (t - begin) * blocks
        s0, s1, s2, s3 = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
        for q in range(blocks):
            x = load(h, image * blocks + q)
            s0 = s0 + x * load(V8, r + q)
            s1 = s1 + x * load(V8, r + blocks + q)
            s2 = s2 + x * load(V8, r + 2 * blocks + q)
            s3 = s3 + x * load(V8, r + 3 * blocks + q)
        out[i, t], out[i, t + 1] = b[t] + total(s0), b[t + 1] + total(s1)
        out[i, t + 2], out[i, t + 3] = b[t + 2] + total(s2), b[t + 3] + total(s3)
        t += 4
    while t < stop:
        s = splat(ZERO)
        for q in range(blocks):
            s = s + load(h, image * blocks + q) * load(V8, (t - begin) * blocks + q)
        out[i, t] = b[t] + total(s)
        t += 1


@compiled
def _turn_on(a: Any, h: Any, image: int, W: Any, t: int, blocks: int) -> None:
    """The state after pixel t, which is on."""
    for q in range(blocks):
        x = load(a, image * blocks + q) + load_part(W, t, q * LANES)
        store(a, image * blocks + q, x)
        store(h, image * blocks + q, sigmoid(x))


# ---- gradients ----------------------------------------------------------------------------------------


def backward(
    grad_logits: Tensor, z: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor, saved: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the logits (B, n) → those of W (n, d), c (d,), V (n, d) and b (n,)."""
    (images, n), d = z.shape, len(c)
    blocks = -(-d // LANES)
    # With fewer blocks of hidden units than threads, the images are shared out as well, into sums of their own.
    size = max(GROUP, -(-images // max(1, torch.get_num_threads() // blocks)))
    parts = max(1, -(-images // size))
    dW, dc, dV = (W.new_empty(parts, rows, d) for rows in (n, 1, n))
    arrays = *_arrays(*saved), *_arrays(grad_logits, W, c[None], V)
    sums = _arrays(dW.view(-1, d), dc.view(-1, d), dV.view(-1, d))

    rows = 4 * n + TILE + 1 + GROUP * (2 + -(-n // TILE))
    threads.run(_gradients, _gradients_team, parts * blocks, rows, size, parts, *arrays, *sums)
    dW, dc, dV = (x[0] if parts == 1 else x.sum(0) for x in (dW, dc, dV))
    return dW, dc[0], dV, grad_logits.sum(0)


@compiled
def _scan(z: Any, on: Any, at: Any) -> None:
    """Into on: the pixels of each image that are on, in order; into at: how many come before each tile."""
    images, n = z.shape
    for i in range(images):
        count, tile = 0, 0
        for t in range(n):
            if t == tile * TILE:
                at[i, tile] = count
                tile += 1
            if z[i, t]:
                on[i, count] = t
                count += 1
        at[i, tile] = count


@team
def _gradients_team(counter: Any, scratch: Any, *given: Any) -> None:
    for thread in numba.prange(len(scratch)):
        _gradients(counter, scratch[thread], *given)


@compiled
def _gradients(
    counter: Any, scratch: Any, size: int, parts: int, on: Any, at: Any, g: Any, W: Any, c: Any, V: Any,
    dW: Any, dc: Any, dV: Any,
) -> None:  # fmt: skip
    """Takes parts of the images with blocks of hidden units; the parts' sums are stacked in dW, dc and dV."""
    n, d = V.shape
    task = take(counter)
    while task < parts * ((d + LANES - 1) // LANES):
        part, unit = task % parts, task // parts * LANES
        first, last = part * size, min(len(g), (part + 1) * size)
        x = _gradients_of_units(on, at, g, W, c, V, first, last, unit, scratch)
        for t in range(n):
            store_part(dW, part * n + t, unit, load(scratch, 2 * n + t))
            store_part(dV, part * n + t, unit, load(scratch, 3 * n + t))
        store_part(dc, part, unit, x)
        task = take(counter)


@compiled
def _gradients_of_units(
    on: Any, at: Any, g: Any, W: Any, c: Any, V: Any, first: int, last: int, unit: int, scratch: Any
) -> Any:
    """Units unit to unit + LANES: W, V, dW and dV into the first 4n rows of scratch; returns dc."""
    n = len(V)
    W64, V64, dW64, dV64 = scratch[:n], scratch[n : 2 * n], scratch[2 * n : 3 * n], scratch[3 * n : 4 * n]
    for t in range(n):
        store(W64, t, load_part(W, t, unit))
        store(V64, t, load_part(V, t, unit))
        store(dW64, t, splat(ZERO))
        store(dV64, t, splat(ZERO))
    x, dx = load_part(c, 0, unit), splat(ZERO)
    for start in range(first, last, GROUP):
        stop = min(last, start + GROUP)
        dx = dx + _gradients_of_group(on, at, g, start, stop, x, W64, V64, dW64, dV64, scratch[4 * n :])
    return dx


@compiled
def _gradients_of_group(
    on: Any, at: Any, g: Any, first: int, last: int, c: Any, W: Any, V: Any, dW: Any, dV: Any, scratch: Any
) -> Any:
    """Adds to dW and dV (n, LANES) and returns dc; from the last tile to the first, each for all images.

    Going back, the sum over later states of ∂/∂a is the gradient of c, and of W[j] as it is when j turned on.
    """
    n, images, tiles = len(V), last - first, at.shape[1] - 1
    states, h, da = scratch[: TILE + 1], scratch[TILE + 1 :], scratch[TILE + 1 + GROUP :]
    a = scratch[TILE + 1 + 2 * GROUP :]  # the activation before each tile: recomputing it backwards would round
    for i in range(images):
        x = c
        for tile in range(tiles):
            store(a, tile * GROUP + i, x)
            for p in range(at[first + i, tile], at[first + i, tile + 1]):
                x = x + load(W, on[first + i, p])
        store(h, i, sigmoid(x))
        store(da, i, splat(ZERO))
    shared, dc = np.zeros((1, n), np.float32), splat(ZERO)
    for tile in range(tiles - 1, -1, -1):
        begin, end = tile * TILE, min(n, tile * TILE + TILE)
        for i in range(images):
            j, stop, x, y = first + i, end, load(da, i), load(h, i)  # y: the state that the tile ends with
            before, after = at[j, tile], at[j, tile + 1]
            if before < after:
                _states(on, j, before, after, W, load(a, tile * GROUP + i), states)
            for p in range(after - 1, before - 1, -1):
                t = on[j, p]
                x = x + _run(g, j, t + 1, stop, y, V, dV)
                store(dW, t, load(dW, t) + x)
                stop, y = t + 1, load(states, p - before)
            if before:
                x = x + _run(g, j, begin, stop, y, V, dV)
            else:  # no pixel on yet: one run for all such images together
                for t in range(begin, stop):
                    shared[0, t] += g[j, t]
            store(h, i, y)
            store(da, i, x)
        dc = dc + _run(shared, 0, begin, end, sigmoid(c), V, dV)
    for i in range(images):
        dc = dc + load(da, i)
    return dc


@compiled
def _states(on: Any, i: int, before: int, after: int, W: Any, a: Any, states: Any) -> None:
    """The hidden states of image i in a tile, all but its last."""
    store(states, 0, sigmoid(a))
    for p in range(before, after - 1):
        a = a + load(W, on[i, p])
        store(states, p - before + 1, sigmoid(a))


@compiled
def _run(g: Any, i: int, start: int, stop: int, h: Any, V: Any, dV: Any) -> Any:
    """The steps of one state: adds g_t h to dV[t] and returns ∂/∂a = h(1 − h) Σ g_t V[t], in one pass."""
    dh = splat(ZERO)
    for t in range(start, stop):
        s = splat(g[i, t])
        dh = dh + s * load(V, t)
        store(dV, t, load(dV, t) + s * h)
    return dh * h * (ONE - h)


# ---- sampling -----------------------------------------------------------------------------------------


def draw(u: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor) -> Tensor:
    """Uniforms u (B, n) → bits (B, n): the whole walk, u_t < σ(logit_t)."""
    bits = W.new_empty(u.shape)
    out, given = bits.numpy(), _arrays(u, W, c[None], V, b)
    size = group_size(len(u))
    threads.run(_draw, _draw_team, -(-len(u) // size), _rows(size, W), size, *given, out)
    return bits


@compiled
def sigmoid_of_one(a: Any) -> Any:
    """σ of a number, whatever it is; of NaN it is NaN."""
    a = FLAT if a > FLAT else a
    return logistic(-FLAT if a < -FLAT else a)


@compiled
def drawn(u: Any, p: Any) -> Any:
    """u < p as 1 or 0, or NaN where p is; a u outside [0, 1) decides alone, whatever the number p is."""
    return ONE if u < p else ZERO * p


@team
def _draw_team(counter: Any, scratch: Any, *given: Any) -> None:
    for thread in numba.prange(len(scratch)):
        _draw(counter, scratch[thread], *given)


@compiled
def _draw(counter: Any, scratch: Any, size: int, u: Any, W: Any, c: Any, V: Any, b: Any, bits: Any) -> None:
    first = take(counter) * size
    while first < len(u):
        _draw_group(u, W, c, V, b, first, min(first + size, len(u)), scratch, bits)
        first = take(counter) * size


@compiled
def _draw_group(u: Any, W: Any, c: Any, V: Any, b: Any, first: int, last: int, scratch: Any, bits: Any) -> None:
    n, d = W.shape
    blocks = (d + LANES - 1) // LANES
    V8, a, h = _begin(c, scratch, last - first, blocks)
    fresh, waiting = np.ones(last - first, np.bool_), last - first
    ahead = np.full(last - first, AHEAD)  # a pixel after one that is on is likely on, too
    shared, logits = np.empty((1, n), np.float32), np.empty((1, n), np.float32)
    for begin in range(0, n, STEPS):
        end = min(n, begin + STEPS)
        _hold(V, begin, end, V8, blocks)
        if waiting:
            _products(h, 0, V8, begin, b, begin, end, blocks, shared, 0)
        for g in range(last - first):
            t = begin
            while t < end:
                stop = end if fresh[g] else min(end, t + ahead[g])
                if not fresh[g]:
                    _products(h, g + 1, V8, begin, b, t, stop, blocks, logits, 0)
                t, on = _bits_until_on(shared if fresh[g] else logits, u, first + g, t, stop, bits)
                ahead[g] = 1 if on else AHEAD
                if on:
                    waiting -= fresh[g]
                    fresh[g] = False
                    _turn_on(a, h, g + 1, W, t - 1, blocks)


@compiled
def _bits_until_on(logits: Any, u: Any, i: int, start: int, stop: int, bits: Any) -> Any:
    """Draws the bits of image i up to the first that is on; returns the step after it and whether there is one."""
    for t in range(start, stop):
        bits[i, t] = drawn(u[i, t], sigmoid_of_one(logits[0, t]))
        if bits[i, t] == ONE:
            return t + 1, True
    return stop, False
