"""Mixtures of densities: of several networks, or of one network in several orders."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from chainrule.density import AutoregressiveDensity, BinaryDensity
from chainrule.orders import several
from chainrule.validate import number


class Mixture(BinaryDensity):
    r"""The average of K densities, each as likely as the others.

    .. math:: p(x) = \frac1K \sum_{k=1}^K p_k(x)

    What is averaged is the probability of the whole image, never a logit; so the mixture is normalized whenever its
    members are, and their orders may differ. With members that differ in their order only it is the ensemble of
    Uria, Murray & Larochelle, *A Deep and Tractable Density Estimator*, ICML 2014, section 3.3.

    Cost: a likelihood is one of each member, taken one after the other; a sample is one of one member.

    Args:
        members: two or more densities of images of one shape.
    """

    def __init__(self, members: Sequence[BinaryDensity]) -> None:
        shapes = {member.shape for member in members}
        if len(members) < 2 or len(shapes) > 1:
            raise ValueError(
                f"a mixture needs two or more members of one image shape, got {len(members)} of {sorted(shapes)}"
            )
        super().__init__(shape=members[0].shape)
        self.members: Sequence[BinaryDensity] = nn.ModuleList(members)  # type: ignore[assignment]

    @property
    def effective_parameter_count(self) -> int:
        return sum(member.effective_parameter_count for member in self.members)

    def log_prob(self, x: Tensor) -> Tensor:
        x = self._flat(x)
        nats = torch.stack([member.log_prob(x) for member in self.members])
        return nats.logsumexp(0) - math.log(len(self.members))

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        device = self.device if generator is None else generator.device
        number("n", n, int, 0)
        chosen = torch.randint(len(self.members), (n,), generator=generator, device=device).to(self.device)
        images = torch.empty(n, self.dim, dtype=self.dtype, device=self.device)
        for k, member in enumerate(self.members):
            mine = chosen == k
            images[mine] = member.sample(int(mine.sum()), generator)
        return images


class OrderEnsemble(Mixture):
    r"""One network in K orders, each as likely as the others: their parameters are shared, and counted once.

    .. math:: p(x) = \frac1K \sum_{k=1}^K p_{o_k}(x)

    Uria, Murray & Larochelle, *A Deep and Tractable Density Estimator*, ICML 2014, section 3.3 (EoNADE); Germain et
    al., *MADE*, ICML 2015, section 4.2; Jain et al., *Locally Masked Convolution*, UAI 2020.

    Training takes one random order a batch, so K orders are K-fold data: :meth:`loss` is an unbiased estimate of the
    mean NLL over the orders, which is never below the NLL of their mixture.

    Cost: a likelihood is K of the network; a sample is one.

    Args:
        density: the network; what it makes of another order is said by its class.
        orders: ``grid``, a number of random orders, or names: see :func:`chainrule.orders.several`.
    """

    def __init__(self, density: AutoregressiveDensity, orders: str | int | Sequence[str] = "grid") -> None:
        BinaryDensity.__init__(self, shape=density.shape)
        self.density = density
        self.orders = several(orders, density.shape)
        try:
            for order in self.orders:
                density.checked(order)
        except ValueError as error:
            raise ValueError(f"orders={orders}: {error}") from error

    @property
    def members(self) -> list[AutoregressiveDensity]:  # type: ignore[override]
        """The network in each of the orders; they share its parameters."""
        return [self.density.reordered(order) for order in self.orders]

    @property
    def effective_parameter_count(self) -> int:
        return self.density.effective_parameter_count

    @property
    def backend(self) -> str | None:
        return self.density.backend

    def loss(self, x: Tensor) -> Tensor:
        order = self.orders[int(torch.randint(len(self.orders), ()))]
        return self.density.reordered(order).loss(x)

    def log_prior(self) -> Tensor:
        return self.density.log_prior()

    def prepare(self, x: Tensor) -> None:
        self.density.prepare(x)
