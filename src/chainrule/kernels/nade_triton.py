"""NADE's conditionals and their gradients on a GPU, in Triton: fused, float32, no (B, n, d) tensor in memory.

    a_t = c + Σ_{j<t} z_j W[j],   h_t = σ(a_t),   logit_t = b_t + V[t]·h_t      (Larochelle & Murray 2011)

With g the gradient of the logits, δ_t = g_t V[t] h_t (1 − h_t) is the gradient of a_t, and

    db = Σ_B g,   dV[t] = Σ_B g_t h_t,   dc = Σ_B Σ_t δ_t,   dW[j] = Σ_B z_j Σ_{t>j} δ_t      (Σ_B over images)

**Chunks.** The chain is sequential, so it is cut into chunks of 32 pixels. Forward: the sums Σ z_j W[j] of all
chunks at once, a running sum over them, and then every chunk walks its own steps from the activation it
starts with. Backward: one walk computes h again from the same starts, and yields dV and the sum of δ over
the chunk; a running sum from the end turns the latter into R_k, over chunk k and all later ones. For j in
chunk k, Σ_{t>j} δ_t = R_k − P_j with P_j = Σ δ_t over the chunk's steps up to j: the walk yields Σ_B z_j P_j,
a product Σ_B z_j R_k. So each hidden state is computed once forward and once backward.

**Programs.** A walking program is one warp that holds a few images × some hidden units in registers: sums over
hidden units are shuffles, sums over images stay within a thread. Where none of its images has the
pixel on, it keeps its h: one branch for the warp.

**Exact.** All products are float32: no TF32, whatever torch is set to. No atomics: partial sums have places of
their own and are added in a fixed order, so the same input gives the same bits.

**Memory** beyond arguments and results, in floats: B·⌈n/32⌉·d starting activations, kept for the backward pass,
which takes as many again for R; ⌈d/128⌉·B·n partial logits; 2·S·n·d partial gradients, S = min(8, ⌈B/8⌉) at most.

**Cost**, with p = B·n·d and f the fraction of steps at which one of a program's images has the pixel on:

    pass       multiply-adds    exponentials + reciprocals    bytes, each float once per kernel that touches it
    forward    (2 + f) p        2 f p                         p/2 + 12 nd + (12 + 8⌈d/128⌉) Bn
    backward   (5 + f) p        2 f p                         5p/8 + (24 + 16 S) nd + 16 Bn

not counted: what programs after the first read of V and W (from the caches), and some six more float operations
for each sigmoid. An H200 copies 4.27 TB/s and does 25 T multiply-adds/s in a float32 product (both measured); assumed
are 16 exponentials or reciprocals a clock of 1.9 GHz for each of 132 SMs, so 4 T/s. At B = 100, n = 784 and d = 500
(p = 39 M, S = 7) that bounds a pass from below:

    pass       multiply-adds    exponentials, f = 1    f = 1/2    bytes           measured, its walk
    forward    5 µs             20 µs                  10 µs      7 µs (28 MB)    60 µs, 40 µs
    backward   9 µs             20 µs                  10 µs      18 µs (79 MB)   112 µs, 71 µs

Measured on an H200 with torch 2.11 and Triton 3.6, images of as much ink as MNIST's, as replays of a CUDA graph, so
without the time of launching; through autograd, launches included, both passes take, beside chunks of torch,

    B                            100        200        1,000      10,000
    this kernel                  0.64 ms    0.72 ms    1.11 ms    9.9 ms
    nade_torch                   5.02 ms    8.74 ms    35.4 ms    391 ms

so a training step of 100 images waits for the launches, not for the kernels. A pass is 3 to 6 times its bound: a walk's
steps depend on each other, and each waits for the rows of W and V that it reads.
"""

# ruff: noqa: PLR0917 — kernels take positional arguments only, and backward takes what its caller has

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

STEPS = 32  # pixels in a chunk
FORWARD_TILE = (4, 128)  # images × hidden units of a walking program
BACKWARD_TILE = (8, 64)  # it holds more of each: fewer registers a thread let more warps hide each other's waits
PRODUCT_TILE = (32, 64)
SUM_TILE = (32, 32)  # chunks × hidden units
SPLITS = 8  # places for partial gradients
PRODUCT = {"num_warps": 4, "enable_fp_fusion": True}  # fusion is asked for: Triton warns where it has to guess
WARP = {"num_warps": 1, "enable_fp_fusion": True}


def forward(z: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Bits z (B, n), W and V (n, d), c (d,), b (n,) → (B, n) logits, and what :func:`backward` needs."""
    z, W, c, V, b = _prepared(z, W, c, V, b)
    (batch, n), d = z.shape, len(c)
    chunks = triton.cdiv(n, STEPS)
    rows, cols = _tile(FORWARD_TILE, d)
    starts = z.new_empty(batch, chunks, d)
    parts = z.new_empty(triton.cdiv(d, cols), batch, n)
    with _device(z):
        grid = (triton.cdiv(batch, PRODUCT_TILE[0]), chunks, triton.cdiv(d, PRODUCT_TILE[1]))
        _chunk_sums[grid](z, W, starts, batch, n, d, chunks, STEPS, *PRODUCT_TILE, **PRODUCT)
        _sums_before[batch, triton.cdiv(d, SUM_TILE[1])](starts, c, d, chunks, *SUM_TILE, **WARP)
        grid = (triton.cdiv(batch, rows), chunks, len(parts))
        _walk_forward[grid](z, W, V, starts, parts, batch, n, d, chunks, STEPS, rows, cols, **WARP)
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
    each = max(1, triton.cdiv(blocks, SPLITS))  # blocks of images that share a place for partial sums
    splits = triton.cdiv(blocks, each)
    sums, dW = torch.empty_like(starts), torch.empty_like(W)
    parts = z.new_empty(2, splits, n, d)
    with _device(z):
        grid = (splits, chunks, triton.cdiv(d, cols))
        sizes = (batch, n, d, chunks, splits, each)
        _walk_backward[grid](g, z, W, V, starts, sums, parts, *sizes, STEPS, rows, cols, **WARP)
        dV, within = parts.sum(1)
        _sums_from[batch, triton.cdiv(d, SUM_TILE[1])](sums, d, chunks, *SUM_TILE, **WARP)
        products = _products[chunks, triton.cdiv(d, PRODUCT_TILE[1])]
        products(z, sums, within, dW, batch, n, d, chunks, STEPS, *PRODUCT_TILE, **PRODUCT)
    return dW, sums[:, 0].sum(0), dV, g.sum(0)


def _prepared(*tensors: Tensor) -> list[Tensor]:
    """As the kernels index them: dense float32. Bits may come as integers; parameters are not cast."""
    assert all(x.dtype == torch.float32 for x in tensors[-4:]), "the Triton kernel is float32 only"
    return [x.to(torch.float32).contiguous() for x in tensors]


def _tile(largest: tuple[int, int], d: int) -> tuple[int, int]:
    """Images × hidden units of a walking program: with few hidden units, no more lanes than they fill."""
    return largest[0], min(largest[1], max(32, triton.next_power_of_2(d)))


def _device(x: Tensor) -> AbstractContextManager[None]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


@triton.jit
def _sigmoid(a: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """σ(a) and its slope σ(a)(1 − σ(a)), both to a few units in the last place however large |a| is."""
    e = tl.exp(-tl.abs(a))
    r = 1.0 / (1.0 + e)
    return tl.where(a >= 0, r, e * r), e * r * r


@triton.jit
def _chunk_sums(
    z: tl.tensor, W: tl.tensor, sums: tl.tensor, batch: int, n: int, d: int, chunks: int,
    STEPS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
) -> None:  # fmt: skip
    """Into sums (B, chunks, d): Σ z_j W[j] over the steps of each chunk."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS).to(tl.int64)[:, None]
    chunk = tl.program_id(1)
    step = chunk * STEPS + tl.arange(0, STEPS)
    col = tl.program_id(2) * COLS + tl.arange(0, COLS)[None, :]
    bits = tl.load(z + row * n + step[None, :], (row < batch) & (step < n)[None, :], other=0.0)
    weights = tl.load(W + step[:, None] * d + col, (step < n)[:, None] & (col < d), other=0.0)
    total = tl.dot(bits, weights, input_precision="ieee")
    tl.store(sums + (row * chunks + chunk) * d + col, total, (row < batch) & (col < d))


@triton.jit
def _sums_before(
    sums: tl.tensor, c: tl.tensor, d: int, chunks: int, ROWS: tl.constexpr, COLS: tl.constexpr
) -> None:  # fmt: skip
    """Sums (B, chunks, d), in place: each chunk becomes c + all chunks before it; ROWS of them are read at once."""
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    image = sums + tl.program_id(0).to(tl.int64) * chunks * d + col[None, :]
    total = tl.load(c + col, col < d, other=0.0)
    for first in range(0, chunks, ROWS):
        chunk = first + tl.arange(0, ROWS)[:, None]
        inside = (chunk < chunks) & (col < d)[None, :]
        own = tl.load(image + chunk * d, inside, other=0.0)
        tl.store(image + chunk * d, total[None, :] + (tl.cumsum(own, 0) - own), inside)
        total += tl.sum(own, 0)


@triton.jit
def _sums_from(sums: tl.tensor, d: int, chunks: int, ROWS: tl.constexpr, COLS: tl.constexpr) -> None:
    """Sums (B, chunks, d), in place: each chunk becomes itself + all chunks after it."""
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    image = sums + tl.program_id(0).to(tl.int64) * chunks * d + col[None, :]
    total = tl.zeros([COLS], tl.float32)
    for done in range(0, chunks, ROWS):
        chunk = chunks - 1 - done - tl.arange(0, ROWS)[:, None]
        inside = (chunk >= 0) & (col < d)[None, :]
        own = tl.load(image + chunk * d, inside, other=0.0)
        tl.store(image + chunk * d, total[None, :] + tl.cumsum(own, 0), inside)
        total += tl.sum(own, 0)


@triton.jit
def _walk_forward(
    z: tl.tensor, W: tl.tensor, V: tl.tensor, starts: tl.tensor, parts: tl.tensor,
    batch: int, n: int, d: int, chunks: int,
    STEPS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
) -> None:  # fmt: skip
    """Into parts (blocks of hidden units, B, n): what each block contributes to V[t]·h_t."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS).to(tl.int64)
    chunk = tl.program_id(1)
    col = tl.program_id(2) * COLS + tl.arange(0, COLS)
    image, unit = row < batch, col < d
    place = (row[:, None] * chunks + chunk) * d + col[None, :]
    a = tl.load(starts + place, image[:, None] & unit[None, :], other=0.0)
    h, _ = _sigmoid(a)
    out = parts + (tl.program_id(2).to(tl.int64) * batch + row) * n
    for t in range(chunk * STEPS, tl.minimum(chunk * STEPS + STEPS, n)):
        v = tl.load(V + t * d + col, unit, other=0.0)
        tl.store(out + t, tl.sum(h * v[None, :], 1), image)
        bit = tl.load(z + row * n + t, image, other=0.0)
        if tl.max(bit, 0) > 0:
            a += bit[:, None] * tl.load(W + t * d + col, unit, other=0.0)[None, :]
            h, _ = _sigmoid(a)


@triton.jit
def _walk_backward(
    g: tl.tensor, z: tl.tensor, W: tl.tensor, V: tl.tensor,
    starts: tl.tensor, sums: tl.tensor, parts: tl.tensor,
    batch: int, n: int, d: int, chunks: int, splits: int, each: int,
    STEPS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
) -> None:  # fmt: skip
    """Into sums (B, chunks, d): Σ δ_t over each chunk; into parts (2, splits, n, d): Σ_B g_t h_t, Σ_B z_j P_j."""
    split = tl.program_id(0)
    chunk = tl.program_id(1)
    col = tl.program_id(2) * COLS + tl.arange(0, COLS)
    unit = col < d
    parts_V = parts + split.to(tl.int64) * n * d + col
    parts_W = parts + (split + splits).to(tl.int64) * n * d + col
    for i in range(each):
        row = (split * each + i) * ROWS + tl.arange(0, ROWS).to(tl.int64)
        image = row < batch
        begun = unit & (i > 0)  # the first block of images finds nothing to add to
        tile = image[:, None] & unit[None, :]
        place = (row[:, None] * chunks + chunk) * d + col[None, :]
        a = tl.load(starts + place, tile, other=0.0)
        h, slope = _sigmoid(a)
        P = tl.zeros([ROWS, COLS], tl.float32)
        for t in range(chunk * STEPS, tl.minimum(chunk * STEPS + STEPS, n)):
            gt = tl.load(g + row * n + t, image, other=0.0)[:, None]
            v = tl.load(V + t * d + col, unit, other=0.0)
            bit = tl.load(z + row * n + t, image, other=0.0)
            P += gt * v[None, :] * slope
            dV = tl.load(parts_V + t * d, begun, other=0.0) + tl.sum(gt * h, 0)
            within = tl.load(parts_W + t * d, begun, other=0.0) + tl.sum(bit[:, None] * P, 0)
            tl.store(parts_V + t * d, dV, unit)
            tl.store(parts_W + t * d, within, unit)
            if tl.max(bit, 0) > 0:
                a += bit[:, None] * tl.load(W + t * d + col, unit, other=0.0)[None, :]
                h, slope = _sigmoid(a)
        tl.store(sums + place, P, tile)
        tl.debug_barrier()  # what this block has stored, other lanes may load for the next


@triton.jit
def _products(
    z: tl.tensor, sums: tl.tensor, within: tl.tensor, dW: tl.tensor, batch: int, n: int, d: int, chunks: int,
    STEPS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
) -> None:  # fmt: skip
    """dW[j] = Σ_B z_j R_k − within[j], with R = sums (B, chunks, d) and j in chunk k."""
    chunk = tl.program_id(0)
    step = chunk * STEPS + tl.arange(0, STEPS)[:, None]
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)[None, :]
    total = tl.zeros([STEPS, COLS], tl.float32)
    for first in range(0, batch, ROWS):
        row = first + tl.arange(0, ROWS).to(tl.int64)
        bits = tl.load(z + row[None, :] * n + step, (row < batch)[None, :] & (step < n), other=0.0)
        place = (row[:, None] * chunks + chunk) * d + col
        R = tl.load(sums + place, (row < batch)[:, None] & (col < d), other=0.0)
        total = tl.dot(bits, R, total, input_precision="ieee")
    inside = (step < n) & (col < d)
    total -= tl.load(within + step * d + col, inside, other=0.0)
    # No step follows the last pixel: its gradient is 0, not the rounding error of a difference.
    tl.store(dW + step * d + col, tl.where(step < n - 1, total, 0.0), inside)
