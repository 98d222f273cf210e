"""NADE's conditionals and their gradients on a GPU, in Triton: fused, float32, no (B, n, d) tensor in memory.

    a_t = c + Σ_{j<t} z_j W[j],   h_t = σ(a_t),   logit_t = b_t + V[t]·h_t      (Larochelle & Murray 2011)

With g the gradient of the logits, δ_t = g_t V[t] h_t (1 − h_t) is the gradient of a_t, and

    db = Σ_b g,   dV[t] = Σ_b g_t h_t,   dc = Σ_b Σ_t δ_t,   dW[j] = Σ_b z_j Σ_{t>j} δ_t.

**Chunks.** The chain is sequential, so it is cut into chunks of STEPS pixels. Forward: the sums Σ z_j W[j] of
all chunks at once, a running sum over them, and then every chunk walks its own steps from the activation
it starts with. Backward: one walk computes h again, from the same starting activations, and yields dV and
the sum of δ over the chunk; a running sum from the end gives R, the sum over the chunk and all later ones; and with
j in chunk k, Σ_{t>j} δ_t = R_k − P_j, where P_j = Σ δ_t over the chunk's steps up to j: −Σ_b z_j P_j comes
from the walk, Σ_b z_j R_k is a product. So each hidden state is computed once forward and once backward.

**Programs.** A walking program is one warp that holds a few images × some hidden units in registers: sums over
hidden units are shuffles, sums over images stay within a thread, nothing waits at a barrier. Where none
of its images has the pixel on, it keeps its h: one branch for the warp.

**Exact.** All products are float32 (no TF32, whatever torch is set to). No atomics: partial sums have places of
their own and are added in a fixed order, so the same input gives the same bits.

**Memory** beyond arguments and results, in floats: B·⌈n/32⌉·d starting activations, kept for the backward pass,
which needs as much again for R; ⌈d/256⌉·B·n partial logits; 2·S·n·d partial gradients of V and W, S ≤ 8.

**Cost**, with p = B·n·d and f the fraction of steps at which any of a program's images has the pixel on:

    pass       fused multiply-adds    exponentials + reciprocals    bytes to and from memory
    forward    (2 + f) p              2 f p                         p/2 + 8nd + 12Bn
    backward   (4 + 4f) p             2 f p                         5p/8 + (12 + 16 S) nd + 12Bn

Bytes count each float once for each kernel that reads or writes it (p/8 bytes for one pass over the chunks'
vectors), and take V and W to be read from the caches by all programs after the first. Against an H100 SXM, assumed
to do 3.35 TB/s, 33 T multiply-adds/s and 4 T exponentials or reciprocals/s (132 SMs × 128 and × 16 a clock): for
B = 100, n = 784, d = 500 (p = 39 M), f = 1, forward takes at least 20 µs and backward 20 µs, bound by the
exponentials; bytes alone would take 7 and 24 µs if none of them stayed in the 50 MB of L2, where all of them fit.
At f = 1/4 the exponentials shrink to 5 µs, and the launches of the six kernels weigh as much. These are counts:
the kernels have been checked in Triton's interpreter and compiled, and never been timed on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

STEPS = 32  # pixels in a chunk
FORWARD_TILE = (4, 256)  # images × hidden units of a walking program, one warp
BACKWARD_TILE = (8, 128)
PRODUCT_TILE = (32, 64)
SPLITS = 8  # places for partial gradients: each costs 2·n·d floats


def forward(z: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """z (B, n) bits, W and V (n, d), c (d,), b (n,) → (B, n) logits, and what :func:`backward` needs."""
    z, W, c, V, b = _prepared(z, W, c, V, b)
    (batch, n), d = z.shape, len(c)
    chunks = triton.cdiv(n, STEPS)
    rows, cols = _tile(FORWARD_TILE, d)
    starts = z.new_empty(batch, chunks, d)
    parts = z.new_empty(triton.cdiv(d, cols), batch, n)
    with torch.cuda.device_of(z):
        _chunk_sums[_product_grid(batch, chunks, d)](z, W, starts, batch, n, d, chunks, STEPS, *PRODUCT_TILE)
        _running_sum[(batch, triton.cdiv(d, 128))](starts, c, d, chunks, False, 128, num_warps=1)
        grid = (triton.cdiv(batch, rows), chunks, len(parts))
        _walk_forward[grid](z, W, V, starts, parts, batch, n, d, chunks, STEPS, rows, cols, num_warps=1)
    return parts.sum(0) + b, (starts,)


def backward(
    grad_logits: Tensor, z: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor, saved: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the logits (B, n) → those of W (n, d), c (d,), V (n, d) and b (n,)."""
    (starts,) = saved
    g, z, W, c, V, b = _prepared(grad_logits, z, W, c, V, b)
    (batch, n), d = z.shape, len(c)
    chunks = triton.cdiv(n, STEPS)
    rows, cols = _tile(BACKWARD_TILE, d)
    blocks = triton.cdiv(batch, rows)
    each = max(1, triton.cdiv(blocks, SPLITS))  # blocks of images that share one place for partial sums
    splits = triton.cdiv(blocks, each)
    later = torch.empty_like(starts)
    parts = z.new_zeros(2, splits, n, d)
    with torch.cuda.device_of(z):
        grid = (splits, chunks, triton.cdiv(d, cols))
        _walk_backward[grid](
            g, z, W, V, starts, later, parts, batch, n, d, chunks, splits, each, STEPS, rows, cols, num_warps=1
        )
        _running_sum[(batch, triton.cdiv(d, 128))](later, c, d, chunks, True, 128, num_warps=1)
        dV, within = parts.sum(1)
        dW = torch.empty_like(W)
        grid = (chunks, triton.cdiv(d, PRODUCT_TILE[1]))
        _products[grid](z, later, within, dW, batch, n, d, chunks, STEPS, *PRODUCT_TILE)
    dW[-1] = 0  # no step follows the last pixel; the difference above may leave a rounding error
    return dW, later[:, 0].sum(0), dV, g.sum(0)


def _prepared(*tensors: Tensor) -> list[Tensor]:
    """As the kernels index them: dense float32. Bits may come as integers; parameters may not be cast."""
    assert all(x.dtype == torch.float32 for x in tensors[-4:]), "the Triton kernel is float32 only"
    return [x.to(torch.float32).contiguous() for x in tensors]


def _tile(largest: tuple[int, int], d: int) -> tuple[int, int]:
    """Images × hidden units; with few hidden units the warp takes no more lanes than they fill."""
    return largest[0], min(largest[1], max(32, triton.next_power_of_2(d)))


def _product_grid(batch: int, chunks: int, d: int) -> tuple[int, int, int]:
    rows, cols = PRODUCT_TILE
    return triton.cdiv(batch, rows), chunks, triton.cdiv(d, cols)


@triton.jit
def _sigmoid(a: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """σ(a) and its slope σ(a)(1 − σ(a)), both to a few units in the last place however large |a| is."""
    e = tl.exp(-tl.abs(a))
    r = 1.0 / (1.0 + e)
    return tl.where(a >= 0, r, e * r), e * r * r


@triton.jit
def _chunk_sums(
    z: tl.tensor, W: tl.tensor, sums: tl.tensor, batch: tl.tensor, n: tl.tensor, d: tl.tensor, chunks: tl.tensor,
    STEPS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
) -> None:  # fmt: skip
    """sums (B, chunks, d): Σ z_j W[j] over the steps of each chunk."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS).to(tl.int64)
    chunk = tl.program_id(1)
    step = chunk * STEPS + tl.arange(0, STEPS)
    col = tl.program_id(2) * COLS + tl.arange(0, COLS)
    bits = tl.load(
        z + row[:, None] * n + step[None, :], (row[:, None] < batch) & (step[None, :] < n), other=0.0
    )
    weights = tl.load(
        W + step[:, None] * d + col[None, :], (step[:, None] < n) & (col[None, :] < d), other=0.0
    )
    total = tl.dot(bits, weights, input_precision="ieee")
    place = sums + (row[:, None] * chunks + chunk) * d + col[None, :]
    tl.store(place, total, (row[:, None] < batch) & (col[None, :] < d))


@triton.jit
def _running_sum(sums: tl.tensor, c: tl.tensor, d: tl.tensor, chunks: tl.tensor, REVERSE: tl.constexpr, COLS: tl.constexpr) -> None:
    """Over the chunks of sums (B, chunks, d), in place: c + what came earlier, or from the end what comes from here on."""
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inside = col < d
    base = sums + tl.program_id(0).to(tl.int64) * chunks * d + col
    if REVERSE:
        total = tl.zeros([COLS], tl.float32)
        for i in range(chunks):
            place = base + (chunks - 1 - i) * d
            total += tl.load(place, inside, other=0.0)
            tl.store(place, total, inside)
    else:
        total = tl.load(c + col, inside, other=0.0)
        for i in range(chunks):
            place = base + i * d
            chunk = tl.load(place, inside, other=0.0)
            tl.store(place, total, inside)
            total += chunk


@triton.jit
def _walk_forward(
    z: tl.tensor, W: tl.tensor, V: tl.tensor, starts: tl.tensor, parts: tl.tensor, batch: tl.tensor, n: tl.tensor, d: tl.tensor, chunks: tl.tensor,
    STEPS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
) -> None:  # fmt: skip
    """parts (blocks of hidden units, B, n): what each block adds to V[t]·h_t."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS).to(tl.int64)
    chunk = tl.program_id(1)
    col = tl.program_id(2) * COLS + tl.arange(0, COLS)
    image, unit = row < batch, col < d
    tile = image[:, None] & unit[None, :]
    a = tl.load(starts + (row[:, None] * chunks + chunk) * d + col[None, :], tile, other=0.0)
    h, _ = _sigmoid(a)
    out = parts + tl.program_id(2).to(tl.int64) * batch * n + row * n
    for t in range(chunk * STEPS, tl.minimum(chunk * STEPS + STEPS, n)):
        v = tl.load(V + t * d + col, unit, other=0.0)
        tl.store(out + t, tl.sum(h * v[None, :], 1), image)
        bit = tl.load(z + row * n + t, image, other=0.0)
        if tl.max(bit, 0) > 0:
            a += bit[:, None] * tl.load(W + t * d + col, unit, other=0.0)[None, :]
            h, _ = _sigmoid(a)


@triton.jit
def _walk_backward(
    g: tl.tensor, z: tl.tensor, W: tl.tensor, V: tl.tensor, starts: tl.tensor, sums: tl.tensor, parts: tl.tensor,
    batch: tl.tensor, n: tl.tensor, d: tl.tensor, chunks: tl.tensor, splits: tl.tensor, each: tl.tensor,
    STEPS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
) -> None:  # fmt: skip
    """sums (B, chunks, d): Σ δ_t over each chunk; parts (2, splits, n, d): Σ_b g_t h_t and Σ_b z_j P_j."""
    split = tl.program_id(0)
    chunk = tl.program_id(1)
    col = tl.program_id(2) * COLS + tl.arange(0, COLS)
    unit = col < d
    parts_V = parts + split.to(tl.int64) * n * d + col
    parts_W = parts_V + splits.to(tl.int64) * n * d
    for block in range(split * each, split * each + each):
        row = block * ROWS + tl.arange(0, ROWS).to(tl.int64)
        image = row < batch
        tile = image[:, None] & unit[None, :]
        place = (row[:, None] * chunks + chunk) * d + col[None, :]
        a = tl.load(starts + place, tile, other=0.0)
        h, slope = _sigmoid(a)
        P = tl.zeros([ROWS, COLS], tl.float32)
        for t in range(chunk * STEPS, tl.minimum(chunk * STEPS + STEPS, n)):
            gt = tl.load(g + row * n + t, image, other=0.0)
            v = tl.load(V + t * d + col, unit, other=0.0)
            dV = tl.load(parts_V + t * d, unit, other=0.0)
            tl.store(parts_V + t * d, dV + tl.sum(gt[:, None] * h, 0), unit)
            P += gt[:, None] * v[None, :] * slope
            bit = tl.load(z + row * n + t, image, other=0.0)
            if tl.max(bit, 0) > 0:
                within = tl.load(parts_W + t * d, unit, other=0.0)
                tl.store(parts_W + t * d, within + tl.sum(bit[:, None] * P, 0), unit)
                a += bit[:, None] * tl.load(W + t * d + col, unit, other=0.0)[None, :]
                h, slope = _sigmoid(a)
        tl.store(sums + place, P, tile)
        tl.debug_barrier()  # the next block of images adds to what other lanes may have stored


@triton.jit
def _products(
    z: tl.tensor, later: tl.tensor, within: tl.tensor, dW: tl.tensor, batch: tl.tensor, n: tl.tensor, d: tl.tensor, chunks: tl.tensor,
    STEPS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
) -> None:  # fmt: skip
    """dW[j] = Σ_b z_j R_k − within[j], with R = later (B, chunks, d) and j in chunk k."""
    chunk = tl.program_id(0)
    step = chunk * STEPS + tl.arange(0, STEPS)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    total = tl.zeros([STEPS, COLS], tl.float32)
    for first in range(0, batch, ROWS):
        row = first + tl.arange(0, ROWS).to(tl.int64)
        bits = tl.load(
            z + row[None, :] * n + step[:, None], (row[None, :] < batch) & (step[:, None] < n), other=0.0
        )
        R = tl.load(
            later + (row[:, None] * chunks + chunk) * d + col[None, :],
            (row[:, None] < batch) & (col[None, :] < d),
            other=0.0,
        )
        total = tl.dot(bits, R, total, input_precision="ieee")
    inside = (step[:, None] < n) & (col[None, :] < d)
    place = step[:, None] * d + col[None, :]
    tl.store(dW + place, total - tl.load(within + place, inside, other=0.0), inside)
