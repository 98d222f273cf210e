"""Mixtures of densities: of several networks, image by image or step by step, or of one network in several orders."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chainrule.density import AutoregressiveDensity, BinaryDensity
from chainrule.orders import GRID_ORDERS, ORDERS, several
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


class StepMixture(AutoregressiveDensity):
    r"""K networks in one order, whose probabilities are averaged at each step.

    .. math:: p(x_t = 1 \mid x_{<t}) = \frac1K \sum_{k=1}^K p_k(x_t = 1 \mid x_{<t})

    Each factor is a Bernoulli, so the product is as normalized as that of any of them; this needs one order, in which
    they all predict the same pixel from the same pixels. Lakshminarayanan, Pritzel & Blundell, *Simple and Scalable
    Predictive Uncertainty Estimation using Deep Ensembles*, NIPS 2017, section 2.4. An image's NLL is never above the
    mean of its members'. :class:`Mixture` stays with the member that explains the image so far; here all have a say
    in each pixel, and what one of them overlooks costs less.

    Cost: a likelihood and a sample are one of each member.

    Args:
        members: two or more autoregressive densities of images of one shape, in one order.

    Raises:
        ValueError: they are fewer, or their shapes or orders differ.
    """

    def __init__(self, members: Sequence[AutoregressiveDensity]) -> None:
        if len({(m.shape, m.patch, *m.order.tolist()) for m in members}) != 1 or len(members) < 2:
            raise ValueError(
                f"steps are averaged over two or more networks that go through images of one shape in one order, got "
                f"{len(members)} of {len({tuple(m.order.tolist()) for m in members})}"
            )
        # What the members have in common.
        self.orders = ORDERS if all(m.orders == ORDERS for m in members) else GRID_ORDERS  # type: ignore[misc]
        self.any_order = all(m.any_order for m in members)  # type: ignore[misc]
        self.sees_all = any(m.sees_all for m in members)  # type: ignore[misc]
        super().__init__(shape=members[0].shape, order=members[0].order.tolist(), patch=members[0].patch)
        self.networks: Sequence[AutoregressiveDensity] = nn.ModuleList(members)  # type: ignore[assignment]

    @property
    def members(self) -> list[AutoregressiveDensity]:
        """The networks in this order; they share their parameters with those that were given."""
        return [network.reordered(self.order) for network in self.networks]

    @property
    def effective_parameter_count(self) -> int:
        return sum(network.effective_parameter_count for network in self.networks)

    def conditionals(self, z: Tensor) -> Tensor:
        return _averaged(torch.stack([member.conditionals(z) for member in self.members]))

    @torch.no_grad()
    def walk(self, batch: int) -> Generator[Tensor, Tensor, None]:
        walks = [member.walk(batch) for member in self.members]
        bits = yield _averaged(torch.stack([next(walk) for walk in walks]))
        for _ in range(1, self.dim):
            bits = yield _averaged(torch.stack([walk.send(bits) for walk in walks]))

    @property
    def has_cache(self) -> bool:
        return all(network.has_cache for network in self.networks)

    def draw(self, u: Tensor) -> Tensor:
        return self.draw_sequentially(u) if self.has_cache else super().draw(u)


def in_steps(members: Sequence[BinaryDensity]) -> StepMixture | OrderEnsemble:
    """The :class:`StepMixture` of networks in one order; of networks in several orders, that in each of them, mixed.

    Raises:
        ValueError: they have no order, or not the same ones.
    """
    several_orders = [member.orders for member in members if isinstance(member, OrderEnsemble)]
    if len(several_orders) == len(members) and all(orders == several_orders[0] for orders in several_orders):
        first, *_ = several_orders[0]
        networks = [cast(OrderEnsemble, member).density.reordered(first) for member in members]
        return OrderEnsemble(StepMixture(networks), several_orders[0])
    if several_orders or not all(isinstance(member, AutoregressiveDensity) for member in members):
        raise ValueError("steps are averaged over networks in one order, or over networks in the same several orders")
    return StepMixture(cast(Sequence[AutoregressiveDensity], members))


def _averaged(logits: Tensor) -> Tensor:
    """The logits of mean probabilities: (K, …) → (…)."""
    return F.logsigmoid(logits).logsumexp(0) - F.logsigmoid(-logits).logsumexp(0)
