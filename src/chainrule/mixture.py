"""Mixtures of densities: the first density here that has no order of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from chainrule.density import BinaryDensity


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
        chosen = torch.randint(len(self.members), (n,), generator=generator, device=device).to(self.device)
        images = torch.empty(n, self.dim, dtype=self.dtype, device=self.device)
        for k, member in enumerate(self.members):
            mine = chosen == k
            images[mine] = member.sample(int(mine.sum()), generator)
        return images
