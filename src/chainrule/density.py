"""The contracts: a density of binary images, and an autoregressive one.

    p(x) = ∏ₜ p(x_o(t) | x_o(1), …, x_o(t−1)),   each factor a Bernoulli with a logit of its own.

Inside an autoregressive model everything is in *chain order*: ``z[:, t] = x[:, order[t]]``. The permutation
happens at the door, here, once; so every model works in every order.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from typing import Any, ClassVar, Self, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chainrule.orders import ORDERS, grid_order, permutation
from chainrule.validate import number


class BinaryDensity(nn.Module, ABC):
    """A normalized distribution over {0,1}ⁿ that can be evaluated and drawn from exactly.

    Args:
        shape: (height, width) of the images; n = height · width.
    """

    kernel: str = "auto"  # the implementation asked for, in models that have several

    def __init__(self, *, shape: Sequence[int]) -> None:
        super().__init__()
        if not isinstance(shape, Sequence) or len(shape) != 2:
            raise ValueError(f"shape must be (height, width), got {shape!r}")
        height, width = (number("shape", side, int, 1) for side in shape)
        self.shape = (height, width)
        self.dim = self.shape[0] * self.shape[1]

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Log-likelihood in nats, (B,), of pixel-indexed images: (B, n) or (B, height, width), 0 or 1.

        Raises:
            ValueError: the shape is wrong or (outside training) a value is neither 0 nor 1.
        """

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n images, pixel-indexed (n, height · width), drawn exactly from the model."""

    def loss(self, x: Tensor) -> Tensor:
        """What training minimizes, (B,) nats of pixel-indexed images; no reported NLL ever comes from it.

        A model trained over random orders or masks overrides it with an unbiased estimate.
        """
        return -self.log_prob(x)

    def prepare(self, x: Tensor) -> None:
        """Sets what can be read off the training images (N, n), pixel-indexed, before the first step."""

    def log_prior(self) -> Tensor:
        """Log density in nats of a prior over the parameters (a scalar); 0 where there is none.

        Training maximizes Σ log p(x) + log_prior; no reported NLL contains it.
        """
        return torch.zeros((), device=self.device)

    def reference(self) -> Self:
        """A copy in float64 and evaluation mode, without compiled kernels, which know float32 only."""
        exact = copy.deepcopy(self).double().eval()
        for part in exact.modules():
            if isinstance(part, BinaryDensity):
                part.kernel = "torch"
        return exact

    @property
    def backend(self) -> str | None:
        """The kernel that serves this model where it is, for the record; None: the model has no choice of kernels."""
        return None

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def parameter_count(self) -> int:
        """The number of free parameters; a masked weight is not stored, so it is not counted."""
        return sum(p.numel() for p in self.parameters())

    @property
    def effective_parameter_count(self) -> int:
        """The number of parameters that the likelihood depends on."""
        return self.parameter_count

    def _flat(self, x: Tensor) -> Tensor:
        """Images as (B, n), checked, in the precision of the parameters."""
        x = torch.as_tensor(x)
        if x.ndim < 2 or x.shape[1:].numel() != self.dim:
            shapes = f"(B, {self.dim}) or (B, {self.shape[0]}, {self.shape[1]})"
            raise ValueError(f"images must be {shapes}, got the shape {tuple(x.shape)}")
        x = x.flatten(1)
        if not self.training and not bool(((x == 0) | (x == 1)).all()):
            raise ValueError("images must be binary: every pixel 0 or 1. Binarize them first, as data= does")
        return x.to(self.dtype)


class AutoregressiveDensity(BinaryDensity):
    """A density given by its n conditionals.

    A model supplies :meth:`conditionals`; everything else follows from it. It may override :meth:`walk` and
    :meth:`draw` with faster implementations of the same distribution (tests hold them equal).

    Args:
        shape: (height, width) of the images; n = height · width.
        order: a name or a permutation, see :func:`chainrule.orders.permutation`.
        patch: above 1, chain order goes through the grid patch by patch: step k·patch² + i is pixel i of patch k.

    Raises:
        ValueError: the order is none, or none of those that make sense for this class.
    """

    # What a class says of itself.
    orders: ClassVar[tuple[str, ...]] = ORDERS  # those that make sense: all, or the eight GRID_ORDERS
    sees_all: ClassVar[bool] = True  # each logit depends on every earlier pixel; False: the field may be finite
    any_order: ClassVar[bool] = False  # trained in random orders, so that each is as good a model as another
    growth: ClassVar[str | None] = None  # of the parameters with n pixels and d units, such as "nd"
    small: ClassVar[dict[str, Any]] = {}  # arguments that make it small enough for exhaustive tests

    order: Tensor

    def __init__(self, *, shape: Sequence[int], order: str | Sequence[int] = "raster", patch: int = 1) -> None:
        super().__init__(shape=shape)
        self.patch = patch
        self.register_buffer("order", self.checked(order))

    @final
    def checked(self, order: str | Sequence[int] | Tensor) -> Tensor:
        """The permutation of an order, if it makes sense for this class."""
        chosen = order.cpu() if isinstance(order, Tensor) else permutation(order, self.shape, self.patch)
        if self.orders != ORDERS and grid_order(chosen, self.shape, self.patch) is None:
            raise ValueError(f"model.order must be one of {', '.join(self.orders)} for this model, got {order!r}")
        return chosen

    @property
    def grid_order(self) -> str:
        """The name of the order among :data:`chainrule.orders.GRID_ORDERS`.

        Raises:
            ValueError: it is none of them.
        """
        if (name := grid_order(self.order.cpu(), self.shape, self.patch)) is None:
            raise ValueError("only the eight grid orders (raster and transposed, and their flips) make a grid")
        return name

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the images as the order walks through them: transposed, columns are rows.

        Raises:
            ValueError: the order is none of :data:`chainrule.orders.GRID_ORDERS`.
        """
        height, width = self.shape
        return (width, height) if self.grid_order.startswith("transposed") else (height, width)

    @property
    def cells(self) -> tuple[int, int]:
        """(rows, columns) of the grid of patches, as the order walks through them."""
        rows, columns = self.grid
        return rows // self.patch, columns // self.patch

    @property
    def patches(self) -> Tensor:
        """Which patch of the image, row by row, each patch along the order is: (n / patch²,)."""
        y, x = self.order[:: self.patch**2] // self.shape[1], self.order[:: self.patch**2] % self.shape[1]
        return y // self.patch * (self.shape[1] // self.patch) + x // self.patch

    @final
    def reordered(self, order: str | Sequence[int] | Tensor) -> Self:
        """These very parameters, shared and not copied, in another order of the pixels."""
        twin = copy.copy(self)
        twin.__dict__["_buffers"] = {**self._buffers, "order": self.checked(order).to(self.order.device)}
        return twin

    # ---- what a model supplies ------------------------------------------------------------------

    @abstractmethod
    def conditionals(self, z: Tensor) -> Tensor:
        """Logits of all steps at once: (B, n) bits in chain order → (B, n); logit t sees ``z[:, :t]`` only."""

    def walk(self, batch: int) -> Generator[Tensor, Tensor, None]:
        """The same conditionals one at a time.

        Yields the (B,) logits of step t and receives the (B,) bits of step t. This default recomputes
        everything at every step; a model overrides it for speed only.
        """
        z = torch.zeros(batch, self.dim, dtype=self.dtype, device=self.order.device)
        for t in range(self.dim):
            z[:, t] = yield self.conditionals(z)[:, t]

    @property
    def has_cache(self) -> bool:
        """Whether the walk keeps what it has seen: it is no default, which recomputes everything at every step."""
        return type(self).walk is not AutoregressiveDensity.walk

    @torch.no_grad()
    def draw(self, u: Tensor) -> Tensor:
        """Sampling as a deterministic map: (B, n) uniforms in chain order → (B, n) bits, ``u < σ(logit)``.

        By fixed-point iteration (Song et al., *Accelerating Feedforward Computation via Parallel Nonlinear Equation
        Solving*, ICML 2021): z ← [u < σ(conditionals(z))] until nothing changes. The first bit depends on nothing, so
        it is right after one round, and after k rounds the first k are right for good: it ends after n rounds at most
        with the very bits of the walk. Binary MNIST takes 20 to 40.
        """
        z = torch.zeros_like(u)
        moving = torch.arange(len(u), device=u.device)  # the images that have not settled
        for _ in range(self.dim):
            p = torch.sigmoid(self.conditionals(z[moving]))
            bits = (u[moving] < p).to(u.dtype) + 0 * p  # no number in, no number out
            changed = ((bits != z[moving]) & ~bits.isnan()).any(1)
            z[moving] = bits
            moving = moving[changed]
            if not len(moving):
                break
        return z

    @final
    @torch.no_grad()
    def draw_sequentially(self, u: Tensor) -> Tensor:
        """The same map, one bit after the other along :meth:`walk`: for models whose walk has a cache."""
        z = torch.empty_like(u)
        steps = self.walk(len(u))
        logit = next(steps)
        for t in range(self.dim):
            p = torch.sigmoid(logit)
            z[:, t] = (u[:, t] < p).to(u.dtype) + 0 * p  # no number in, no number out
            if t + 1 < self.dim:
                logit = steps.send(z[:, t])
        return z

    def initialize(self, z: Tensor) -> None:
        """Sets what can be read off the training images (N, n), in chain order, before the first step."""

    # ---- what everybody uses --------------------------------------------------------------------

    @final  # type: ignore[misc] # torch declares it as an attribute
    def forward(self, x: Tensor) -> Tensor:
        """Pixel-indexed (B, n) bits → pixel-indexed (B, n) logits."""
        return self._to_pixels(self.conditionals(self._to_chain(x)))

    @final
    def prepare(self, x: Tensor) -> None:
        self.initialize(x[:, self.order.to(x.device)])

    @final
    def log_prob(self, x: Tensor) -> Tensor:
        z = self._to_chain(x)
        return F.logsigmoid((2 * z - 1) * self.conditionals(z)).sum(1)

    @final
    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self._to_pixels(self.draw(self._uniforms(number("n", n, int, 0), generator)))

    @final
    @torch.no_grad()
    def complete(self, x: Tensor, observed: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Keeps the observed pixels of each image and draws the rest from p(rest | observed).

        Args:
            x: (B, n) bits, pixel-indexed.
            observed: (n,) bool, pixel-indexed. It must be a prefix of the order: only then is the result
                an exact conditional draw.
            generator: source of the uniforms.

        Raises:
            ValueError: ``observed`` is no prefix of the order.
        """
        known = observed.reshape(-1)[self.order.to(observed.device)].bool()
        first = int(known.sum())
        if len(known) != self.dim or not bool(known[:first].all()):
            raise ValueError(
                f"observed must be a prefix of the model's order: of its first {first} pixels, "
                f"{int(known[:first].sum())} are observed. Choose them as order[:k], or train with another order"
            )
        z = self._to_chain(x)
        u = self._uniforms(len(z), generator)
        # A uniform below 0 draws a one and one above 1 a zero, whatever the logit.
        u[:, :first] = 2 - 3 * z[:, :first]
        return self._to_pixels(self.draw(u))

    def _uniforms(self, n: int, generator: torch.Generator | None) -> Tensor:
        device = self.order.device if generator is None else generator.device
        return torch.rand(n, self.dim, generator=generator, dtype=self.dtype, device=device).to(self.order.device)

    def _to_chain(self, x: Tensor) -> Tensor:
        return self._flat(x).index_select(1, self.order)

    def _to_pixels(self, z: Tensor) -> Tensor:
        return torch.empty_like(z).index_copy(1, self.order, z)


# ---- what models share ------------------------------------------------------------------------------


def log_odds(z: Tensor, limit: float = 5.0) -> Tensor:
    """Log-odds of each pixel over the images z, (N, n) → (n,) float64, clamped to ±``limit``.

    Half a count is added to ones and to zeros; the clamp keeps a pixel that is never on within reach.
    """
    ones = z.sum(0, dtype=torch.float64) + 0.5
    return torch.logit(ones / (len(z) + 1)).clamp(-limit, limit)
