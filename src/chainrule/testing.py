"""The invariants of an autoregressive density, for anybody's model: ``testing.check(Foo)``.

Images are so small that all of them are looked at, in float64, with noise on every parameter: an off-by-one mask hides
behind weights that start at zero. Each invariant takes such a density and raises an AssertionError.
"""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from itertools import cycle
from typing import TypeVar

import torch
from torch import Tensor
from torch.testing import assert_close

from chainrule.density import AutoregressiveDensity
from chainrule.orders import ORDERS

Density = TypeVar("Density", bound=AutoregressiveDensity)

FINAL = ("checked", "complete", "draw_sequentially", "forward", "log_prob", "prepare", "reordered", "sample")
SEEDS = range(1, 33)  # noise to try until every ReLU has been alive


def check(model: Callable[..., AutoregressiveDensity], **arguments: object) -> list[str]:
    """Runs every invariant in several orders and shapes; returns what was checked.

    Args:
        model: a class, or what builds one from the keywords ``shape`` and ``order``.
        arguments: more keywords; a class is built with those that it calls ``small``.

    Raises:
        AssertionError: an invariant does not hold, and which, in which shape and order.
        ValueError: the model refuses an argument.
    """
    cls = model if isinstance(model, type) else type(model(shape=(4, 4), order="raster", **arguments))
    assert issubclass(cls, AutoregressiveDensity), f"{cls.__name__} is no AutoregressiveDensity"
    given = {"shape": (3, 3), **(cls.small if cls is model else {}), **arguments}
    done: list[str] = []
    kinds: list[dict[str, object]] = [{"order": order} for order in some_orders(cls)]
    if given.get("patch") == 2:
        given["shape"] = (4, 4)
    else:
        kinds.append({"order": cls.orders[1], "shape": (2, 4)})
    for kind in kinds:
        for invariant in INVARIANTS:
            if invariant is not_a_number and kind is not kinds[0]:
                continue  # NaN does the same in every order
            what = f"{invariant.__name__} with {given | kind}"
            try:
                invariant(perturbed(model(**(given | kind)).double().eval()))
            except AssertionError as error:
                raise AssertionError(f"{cls.__name__}: {what}: {error}") from error
            done.append(what)
    if cls.orders != ORDERS:
        assert _refuses(lambda: model(**{**given, "order": "spiral"})), "an order outside of orders is taken"
    return done


def some_orders(cls: type[AutoregressiveDensity]) -> tuple[str, ...]:
    """Orders that show what may go wrong with one."""
    return ("raster", "transposed_lr", "random-5") if cls.orders == ORDERS else cls.orders


@torch.no_grad()
def perturbed(density: Density, seed: int = 0, keep: float = 1) -> Density:
    """Adds noise to ``keep`` times every parameter, scaled by fan-in so that deep networks do not overflow."""
    generator = torch.Generator().manual_seed(seed)
    for p in density.parameters():
        fan_in = max(1, math.prod(p.shape[1:]))
        p.mul_(keep).add_(torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p) / fan_in**0.5)
    return density


def every_image(n: int, most: int = 2**16) -> Tensor:
    """All 2ⁿ images, (2ⁿ, n) float64; of more than ``most``, so many at random."""
    numbers = torch.arange(2**n)
    if len(numbers) > most:
        numbers = numbers[torch.randperm(len(numbers), generator=torch.Generator().manual_seed(n))[:most]]
    return (numbers[:, None] >> torch.arange(n - 1, -1, -1) & 1).double()


@torch.no_grad()
def walk_along(density: AutoregressiveDensity, z: Tensor) -> Tensor:
    """The logits that ``walk`` yields when it is fed the bits z, in chain order: (B, n) float64."""
    z, steps = z.to(density.device, density.dtype), density.walk(len(z))
    logits = [next(steps).clone()]
    logits += [steps.send(z[:, t]).clone() for t in range(density.dim - 1)]
    return torch.stack(logits, 1).double().cpu()


# ---- invariants ---------------------------------------------------------------------------------------


def final(density: AutoregressiveDensity) -> None:
    changed = [name for name in FINAL if getattr(type(density), name) is not getattr(AutoregressiveDensity, name)]
    assert not changed, f"{changed[0]} is final: override conditionals, loss, walk, draw, initialize, log_prior"


@torch.no_grad()
def normalization(density: AutoregressiveDensity) -> None:
    total = sum(density.log_prob(x).exp().sum().item() for x in every_image(density.dim).split(4096))
    assert abs(total - 1) < 1e-10, f"the probabilities of all images sum to {total:.12g}"


@torch.no_grad()
def causality(density: AutoregressiveDensity) -> None:
    x, n = every_image(density.dim, 512), density.dim
    sees = torch.zeros(n, n, dtype=torch.bool)  # [t, s]: flipping the pixel of step t changes the logit of step s
    for seed in SEEDS:
        noisy = perturbed(copy.deepcopy(density), seed, keep=0)
        before = noisy(x)
        for t, pixel in enumerate(density.order.tolist()):
            flipped = x.clone()
            flipped[:, pixel] = 1 - x[:, pixel]
            sees[t] |= (noisy(flipped) != before).any(0)[density.order]
        for t, s in sees.tril().nonzero().tolist():
            raise AssertionError(f"the logit of step {s} sees the pixel of step {t}")
        blind = (~sees).triu(1).nonzero().tolist() if density.sees_all else []
        if not blind:
            return
    raise AssertionError(f"step {blind[0][1]} does not see step {blind[0][0]}; if that is meant, say sees_all = False")


@torch.no_grad()
def walk(density: AutoregressiveDensity) -> None:
    z = every_image(density.dim, 512)
    _close(walk_along(density, z), density.conditionals(z), "walk and conditionals")


@torch.no_grad()
def drawing(density: AutoregressiveDensity) -> None:
    u = torch.rand(300, density.dim, dtype=density.dtype, generator=torch.Generator().manual_seed(1))
    u[::3, : density.dim // 2] = 3 * u[::3, : density.dim // 2].round() - 1  # −1 draws a one, 2 a zero
    z = density.draw(u)
    assert torch.equal(z.bool(), u < torch.sigmoid(density.conditionals(z))), "draw is not u < σ(conditionals)"
    assert torch.equal(z, density.draw_sequentially(u)), "draw and walk make different bits of the same uniforms"
    fixed = AutoregressiveDensity.draw(density, u)
    assert torch.equal(z, fixed), "draw and fixed-point iteration make different bits of the same uniforms"


@torch.no_grad()
def batches(density: AutoregressiveDensity) -> None:
    x = every_image(density.dim, 512)
    nats = density.log_prob(x)
    assert torch.equal(nats, density.log_prob(x)), "log_prob of the same images differs when asked again"
    _close(torch.cat([density.log_prob(image[None]) for image in x[::37]]), nats[::37], "log_prob alone and in a batch")


@torch.no_grad()
def precision(density: AutoregressiveDensity) -> None:
    x, single = every_image(density.dim, 512), copy.deepcopy(density).float()
    _close(single.log_prob(x).double(), density.log_prob(x), "log_prob in float32 and in float64", 1e-4)
    u = torch.rand(300, density.dim, generator=torch.Generator().manual_seed(2))
    z = single.draw(u)
    p = torch.sigmoid(single.conditionals(z))
    assert bool((((u < p) == z.bool()) | ((u - p).abs() < 1e-5)).all()), "draw in float32 is not u < σ(conditionals)"


def gradients(density: AutoregressiveDensity) -> None:
    x, reached = every_image(density.dim, 512), torch.zeros(density.parameter_count)
    # What a network in several orders knows of each of them has a gradient in that one only.
    orders = ["own"] if density.orders == ORDERS else ["own", *density.orders]
    for seed, order in zip(SEEDS, cycle(orders), strict=False):
        noisy = perturbed(copy.deepcopy(density), seed, keep=0)
        noisy = noisy if order == "own" else noisy.reordered(order)
        found = torch.autograd.grad(noisy.log_prob(x).mean(), list(noisy.parameters()))
        reached += torch.cat([gradient.flatten() for gradient in found]).abs()
        steps = [torch.randn_like(gradient) / gradient.numel() ** 0.5 for gradient in found]
        nats = []
        for size in (5e-7, -1e-6):
            with torch.no_grad():
                for p, step in zip(noisy.parameters(), steps, strict=True):
                    p.add_(step, alpha=size)
                nats.append(noisy.log_prob(x).mean())
        slope = torch.stack([(g * step).sum() for g, step in zip(found, steps, strict=True)]).sum()
        _close((nats[0] - nats[1]) / 1e-6, slope, "a difference of log_prob and its gradient", 1e-5)
        if (count := int((reached > 0).sum())) >= density.effective_parameter_count:
            break
    expected = density.effective_parameter_count
    assert count == expected, (
        f"{count:,} parameters have a gradient, but effective_parameter_count is {expected:,}. If the others reach "
        "beyond so small an image, give the class smaller windows to be tested with: small = {'window': [1, 3]}"
    )


@torch.no_grad()
def saving(density: AutoregressiveDensity) -> None:
    file, other, x = io.BytesIO(), perturbed(copy.deepcopy(density), seed=99), every_image(density.dim, 512)
    torch.save(density.state_dict(), file)
    assert not torch.equal(other.log_prob(x), density.log_prob(x)), "log_prob does not depend on the parameters"
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert torch.equal(other.log_prob(x), density.log_prob(x)), "log_prob changes on saving and loading"


@torch.no_grad()
def completions(density: AutoregressiveDensity) -> None:
    x = every_image(density.dim, 512)
    observed = torch.zeros(density.dim, dtype=torch.bool)
    observed[density.order[: density.dim // 2]] = True
    done = density.complete(x, observed, torch.Generator().manual_seed(3))
    assert torch.equal(done[:, observed], x[:, observed]), "complete changes observed pixels"
    assert _refuses(lambda: density.complete(x, ~observed)), "complete takes observed pixels that are no prefix"


@torch.no_grad()
def reordering(density: AutoregressiveDensity) -> None:
    x = every_image(density.dim, 512)
    before = density.log_prob(x)
    name = next(name for name in some_orders(type(density)) if not torch.equal(density.checked(name), density.order))
    twin = density.reordered(name)
    pairs = zip(density.parameters(), twin.parameters(), strict=True)
    assert all(a is b for a, b in pairs), "reordered copies parameters"
    for invariant in (normalization, walk, drawing):
        invariant(twin)
    assert torch.equal(density.log_prob(x), before), "log_prob changes once the density was used in another order"


def training(density: AutoregressiveDensity) -> None:
    x = every_image(density.dim, 512)
    loss = density.train().loss(x)
    assert loss.shape == x.shape[:1], f"loss has the shape {tuple(loss.shape)} instead of {(len(x),)}"
    assert bool(loss.isfinite().all()), "loss is not finite"
    (loss.mean() - density.log_prior()).backward()
    assert all(p.grad is not None for p in density.parameters()), "loss has no gradient for some parameter"


def not_a_number(density: AutoregressiveDensity) -> None:
    x, u = every_image(density.dim, 32), torch.rand(32, density.dim)
    for name, _ in density.named_parameters():
        broken = copy.deepcopy(density).float()
        broken.get_parameter(name).data.fill_(math.nan)
        nats = broken.log_prob(x)
        nats.mean().backward()
        assert bool(nats.isnan().any()), f"{name} is NaN, and log_prob hides it"
        assert any(bool(p.grad.isnan().any()) for p in broken.parameters() if p.grad is not None), "gradients hide NaN"
        assert bool(broken.draw(u).isnan().any()), f"{name} is NaN, and draw hides it"
        assert bool(broken.draw_sequentially(u).isnan().any()), f"{name} is NaN, and walk hides it"


INVARIANTS = (
    final, normalization, causality, walk, drawing, batches, precision, gradients, saving, completions, reordering,
    training, not_a_number,
)  # fmt: skip


def _close(a: Tensor, b: Tensor, what: str, tolerance: float = 1e-10) -> None:
    assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda message: f"{what} differ: {message}")


def _refuses(build: Callable[[], object]) -> bool:
    try:
        build()
    except Exception as error:
        if isinstance(error, ValueError) or isinstance(error.__cause__, ValueError):  # Hydra wraps it
            return True
        raise
    return False
