"""What every density must do, for every configuration in conf/model, exactly: 3×3 images, float64."""

from __future__ import annotations

import copy
import itertools
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path

import broken
import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException
from reference import REFERENCES, causal
from zoo import MODELS, ROOT, an_order, base_of, build, chance, configuration, every_image, model_class, told

import chainrule
from chainrule import cli, testing
from chainrule.density import AutoregressiveDensity
from chainrule.mixture import OrderEnsemble
from chainrule.models.tabular import Tabular
from chainrule.orders import GRID_ORDERS
from chainrule.orders import ORDERS as ALL_ORDERS

ORDERS = [*GRID_ORDERS, "spiral", "random-5", [4, 0, 8, 2, 6, 1, 3, 5, 7]]

MISTAKES = [
    kind for kind in vars(broken).values()
    if isinstance(kind, type) and kind.__module__ == "broken" and issubclass(kind, AutoregressiveDensity)
]  # fmt: skip

every_model = pytest.mark.parametrize("name", MODELS)
REGULARIZED = [name for name in MODELS if "input_dropout" in configuration(name)]
every_regularized = pytest.mark.parametrize("name", REGULARIZED)
in_every_order = pytest.mark.parametrize("order", ORDERS, ids=[str(order) for order in ORDERS])


def allowed(name: str, order: str | list[int]) -> str | list[int]:
    """The order, where it makes sense for the model."""
    if order not in model_class(name).orders and model_class(name).orders != ALL_ORDERS:
        pytest.skip("only orders of a grid")
    return order


@pytest.mark.parametrize("invariant", testing.INVARIANTS, ids=lambda invariant: invariant.__name__)
@every_model
@in_every_order
def test_invariant(name: str, order: str | list[int], invariant: Callable[[AutoregressiveDensity], None]) -> None:
    invariant(build(name, order=allowed(name, order)))


@pytest.mark.parametrize("shape", [(2, 2), (2, 4), (4, 2), (4, 4)])
@every_model
def test_other_shapes(name: str, shape: tuple[int, int]) -> None:
    for invariant in (testing.normalization, testing.causality, testing.drawing):
        invariant(build(name, shape, order=model_class(name).orders[5]))


@pytest.mark.parametrize("name", [name for name in MODELS if "told" in configuration(name)])
def test_a_network_in_every_grid_order_uses_all_that_it_is_told(name: str) -> None:
    ensemble = OrderEnsemble(build(name, told=True), "grid")
    x = every_image()
    assert ensemble.log_prob(x).exp().sum().item() == pytest.approx(1, abs=1e-12)
    ensemble.log_prob(x).sum().backward()
    assert ensemble.density.told.grad.ne(0).all()


@every_model
def test_an_order_that_makes_no_sense_is_refused(name: str) -> None:
    if model_class(name).orders == ALL_ORDERS:
        pytest.skip("they all do")
    with pytest.raises(InstantiationException, match=r"model\.order must be one of raster, .* got 'spiral'"):
        build(name, order="spiral")
    with pytest.raises(ValueError, match="must be one of raster"):
        build(name).reordered("random-1")


def test_every_model_file_has_a_configuration_and_the_other_way_round() -> None:
    files = {path.stem for path in (ROOT / "src/chainrule/models").glob("*.py")} - {"__init__"}
    assert files == set(MODELS) >= set(REFERENCES)


@pytest.mark.parametrize("kind", MISTAKES, ids=lambda kind: kind.__name__)
def test_a_planted_mistake_breaks_an_invariant(kind: type[AutoregressiveDensity]) -> None:
    name = base_of(kind)
    model = build(name, (4, 4), order=an_order(name), **told(name))
    model.__class__ = kind
    with pytest.raises(AssertionError):
        for invariant in testing.INVARIANTS:
            invariant(model)


@pytest.mark.parametrize(
    ("name", "said"), [("independent", None), ("peeking", r"Peeking: normalization with .* sum to")]
)
def test_a_model_of_ones_own_is_two_files(
    name: str, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / f"{name}.yaml").write_text(f"_target_: mine.{name.title()}\norder: raster\n")
    (tmp_path / "mine.py").write_text(STRANGER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr(sys, "argv", ["chainrule", "check", f"model={name}", f"--config-dir={tmp_path}"])
    if said:
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert re.search(said, str(stop.value.code))
    else:
        cli.main()
        assert re.search(r"Independent: \d+ checks passed", capsys.readouterr().out)


@pytest.mark.parametrize("name", ["fvsbn", "nade"])
def test_arguments_from_python_that_are_none(name: str) -> None:
    model = build(name)
    with pytest.raises(ValueError, match=r"images must be \(B, 9\) or \(B, 3, 3\), got the shape \(9,\)"):
        model.log_prob(torch.zeros(9))
    with pytest.raises(ValueError, match=r"got the shape \(2, 8\)"):
        model.log_prob(torch.zeros(2, 8))
    assert torch.equal(model.log_prob(np.zeros((2, 3, 3))), model.log_prob(torch.zeros(2, 9)))  # type: ignore[arg-type]
    for density in (model, OrderEnsemble(model, 2)):
        with pytest.raises(ValueError, match="n must be a whole number of at least 0, got -1"):
            density.sample(-1)
    with pytest.raises(ValueError, match=r"shape must be \(height, width\), got 28"):
        model_class(name)(shape=28)
    with pytest.raises(ValueError, match="overrides must be a list"):
        chainrule.train(model=name, overrides="seed=1")


@pytest.mark.parametrize("words", [
    *MODELS, "made model.direct=false model.hidden=[9]", "pixelcnn model.patch=2",
    "pixelcnn model.told=true model.attention=1", "transformer model.patch=2",
])  # fmt: skip
def test_check_passes_every_model_of_ours(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, *more = words.split()
    monkeypatch.setattr(sys, "argv", ["chainrule", "check", f"model={name}", *more])
    cli.main()


STRANGER = """
import torch

from chainrule.density import AutoregressiveDensity


class Independent(AutoregressiveDensity):
    sees_all = False

    def __init__(self, *, shape, order="raster"):
        super().__init__(shape=shape, order=order)
        self.bias = torch.nn.Parameter(torch.zeros(self.dim))

    def conditionals(self, z):
        return self.bias.expand_as(z)


class Peeking(Independent):
    def conditionals(self, z):
        return self.bias + z
"""


@pytest.mark.parametrize("name", REFERENCES)
@in_every_order
def test_the_equations(name: str, order: str | list[int]) -> None:
    model, logit = build(name, order=allowed(name, order)), REFERENCES[name].logit
    for image in testing.every_image(model.dim)[::97]:
        z = image.int().tolist()
        expected = [logit(model, z, t) for t in range(model.dim)]
        assert model.conditionals(image[None])[0].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", [name for name in MODELS if "patch" in configuration(name)])
@pytest.mark.parametrize(
    "arguments", [{}, {"order": "transposed_lr", "told": True}, {"channels": 8, "attention": 2}], ids=str
)
def test_patches(name: str, arguments: dict[str, object]) -> None:
    model = build(name, (4, 4), patch=2, **arguments)
    for invariant in (testing.normalization, testing.causality, testing.walk, testing.drawing):
        invariant(model)
    (image,) = every_image(16)[12345:12346]
    expected = [REFERENCES[name].logit(model, image.int().tolist(), t) for t in range(16)]
    assert model.conditionals(image[None])[0].tolist() == pytest.approx(expected, abs=1e-12)
    with pytest.raises(InstantiationException, match="cannot be cut into patches"):
        build(name, (3, 4), patch=2)


@pytest.mark.parametrize("name", REFERENCES)
def test_the_equations_after_a_change_of_the_order(name: str) -> None:
    model, logit = build(name).reordered(an_order(name)), REFERENCES[name].logit
    for image in testing.every_image(model.dim)[::97]:
        z = image.int().tolist()
        expected = [logit(model, z, t) for t in range(model.dim)]
        assert model.conditionals(image[None])[0].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 4), (4, 4)])
@pytest.mark.parametrize("name", REFERENCES)
def test_parameters_are_counted_exactly(name: str, shape: tuple[int, int]) -> None:
    reference = REFERENCES[name]
    for arguments in reference.arguments:
        model = build(name, shape, **arguments)
        assert model.parameter_count == reference.parameters(model.dim, **arguments)
        assert model.effective_parameter_count == model.parameter_count - reference.unseen(model.dim, **arguments)


@every_model
def test_the_same_seed_draws_the_same_samples(name: str) -> None:
    model = build(name)
    first, again = (model.sample(20, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, model.sample(20, torch.Generator().manual_seed(8)))
    assert set(first.unique().tolist()) <= {0.0, 1.0}


@every_model
def test_samples_have_the_exact_probabilities(name: str) -> None:
    model, draws = build(name, order=an_order(name)), 20_000
    samples = model.sample(draws, torch.Generator().manual_seed(0))
    numbers = (samples @ (2.0 ** torch.arange(model.dim - 1, -1, -1, dtype=torch.float64))).long()
    observed = torch.bincount(numbers, minlength=2**model.dim).numpy()
    expected = model.log_prob(every_image(model.dim)).exp().detach().numpy() * draws
    rare = expected < 5  # too few for χ²: taken together
    cells = [np.append(counts[~rare], counts[rare].sum()) for counts in (observed, expected)]
    cells = [c[:-1] if cells[1][-1] == 0 else c for c in cells]
    assert chance(cells[0], cells[1] * draws / cells[1].sum()) > 1e-3


@every_model
@in_every_order
def test_completions_have_the_exact_conditional_probabilities(name: str, order: str | list[int]) -> None:
    model, draws = build(name, order=allowed(name, order)), 4000
    observed = torch.zeros(model.dim, dtype=torch.bool)
    observed[model.order[:-2]] = True
    x = every_image(model.dim)[147]
    completed = model.complete(x.repeat(draws, 1), observed, torch.Generator().manual_seed(3))
    candidates = x.repeat(4, 1)
    candidates[:, ~observed] = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    expected = model.log_prob(candidates).softmax(0).detach()
    frequency = torch.stack([(completed == c).all(1).double().mean() for c in candidates])
    deviation = (frequency - expected) / (expected * (1 - expected) / draws).sqrt()
    assert deviation.abs().max() < 4.5


@every_model
def test_observed_pixels_that_are_no_prefix_are_refused(name: str) -> None:
    model = build(name)
    observed = torch.zeros(model.dim, dtype=torch.bool)
    observed[[0, 2]] = True
    with pytest.raises(ValueError, match="prefix of the model's order"):
        model.complete(every_image(model.dim)[:1], observed)


@every_model
def test_images_of_the_wrong_size_or_not_binary_are_refused(name: str) -> None:
    model = build(name)
    n = model.dim
    with pytest.raises(ValueError, match=rf"images must be \(B, {n}\) or .*, got the shape \(2, {n + 1}\)"):
        model.log_prob(torch.zeros(2, n + 1))
    with pytest.raises(ValueError, match="must be binary"):
        model.log_prob(torch.full((2, n), 0.5))


@every_model
def test_integer_and_image_shaped_input(name: str) -> None:
    model = build(name)
    x = every_image(model.dim)[:50]
    assert torch.equal(model.log_prob(x.to(torch.uint8).view(-1, *model.shape)), model.log_prob(x))


@every_model
def test_output_biases_start_at_the_log_odds(name: str) -> None:
    model = build(name, order=an_order(name))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    chance = torch.linspace(0, 1, model.dim)
    x = (torch.rand(400, model.dim, generator=torch.Generator().manual_seed(0)) < chance).double()
    model.initialize(x[:, model.order])
    if not any(parameter.any() for parameter in model.parameters()):
        pytest.skip("it has none")
    ones = x.sum(0)
    expected = ((ones + 0.5) / (400.5 - ones)).log().clamp(-5, 5)
    torch.testing.assert_close(model(x[:1])[0], expected)


@every_regularized
def test_input_dropout_is_for_training_only_and_none_changes_no_bit(name: str) -> None:
    model = build(name)
    x = every_image(model.dim)
    exact, random_state = model.log_prob(x), torch.get_rng_state()
    assert torch.equal(model.train().log_prob(x), exact)
    assert torch.equal(torch.get_rng_state(), random_state)
    dropping = build(name, input_dropout=0.3)
    assert torch.equal(dropping.log_prob(x), exact)
    assert not torch.equal(dropping.train().log_prob(x), exact)


@pytest.mark.parametrize("name", [name for name in REGULARIZED if name in REFERENCES])
def test_input_dropout_drops_each_input_alone_and_counts_the_kept_ones_more(name: str) -> None:
    model, logit, draws = build(name, shape=(3, 3), input_dropout=0.3).train(), REFERENCES[name].logit, 4000
    z, t = torch.tensor([[1.0, 1, 0, 1, 1, 0, 1, 1, 1]], dtype=torch.float64), 5
    kept = list(itertools.product([0, 1], repeat=t))
    expected = torch.tensor([logit(model, [bit * k / 0.7 for bit, k in zip(z[0, :t].tolist(), ks, strict=True)], t)
                             for ks in kept], dtype=torch.float64)  # fmt: skip
    chance = torch.tensor([0.7 ** sum(ks) * 0.3 ** (t - sum(ks)) for ks in kept], dtype=torch.float64)
    mean = (chance * expected).sum()
    spread = (chance * (expected - mean) ** 2).sum().sqrt()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = model.conditionals(z.repeat(draws, 1))[:, t].detach()
    assert (drawn[:, None] - expected).abs().min(1).values.max() < 1e-12
    assert abs(drawn.mean() - mean) < 4.5 * spread / draws**0.5


@every_regularized
def test_input_dropout_leaves_the_targets(name: str) -> None:
    model = build(name, input_dropout=0.5).train()
    x = every_image(model.dim)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        logits = model(x)
        torch.manual_seed(0)
        nats = model.log_prob(x)
    torch.testing.assert_close(nats, (torch.sigmoid(logits) * x + torch.sigmoid(-logits) * (1 - x)).log().sum(1))


def test_input_dropout_is_the_same_with_a_compiled_kernel() -> None:
    x = torch.randint(2, (20, 64), generator=torch.Generator().manual_seed(0)).float()
    gradients = []
    for kernel in ("numba", "torch"):
        model = build("nade", shape=(8, 8), hidden=7, kernel=kernel, input_dropout=0.4).float().train()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            gradients.append(torch.autograd.grad(model.log_prob(x).sum(), list(model.parameters())))
    for compiled, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-4)


@in_every_order
def test_smoothness_compares_each_pair_of_pixels_with_its_neighbours(order: str | list[int]) -> None:
    model = build("fvsbn", order=order, smoothness=0.7)
    step = model.order.argsort().tolist()
    weights = {}  # of pixel t on pixel j, where j comes before t
    for t, j in itertools.product(itertools.product(range(3), repeat=2), repeat=2):
        if (s := step[3 * j[0] + j[1]]) < (r := step[3 * t[0] + t[1]]):
            weights[t, j] = causal(model.alpha, r, s)[0]
    expected = 0.0
    for (t, j), weight in weights.items():
        for down, right in ((1, 0), (0, 1)):
            neighbour = (t[0] + down, t[1] + right), (j[0] + down, j[1] + right)
            if neighbour in weights:
                expected -= 0.35 * math.dist(t, j) * (weight - weights[neighbour]) ** 2
    assert model.log_prior().item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("order", ["raster", [4, 2, 7, 0, 8, 1, 3, 6, 5]])
def test_smoothness_of_nade_compares_the_rows_of_each_pixel_with_its_neighbours(order: str | list[int]) -> None:
    model = build("nade", order=order, smoothness=0.7)
    step = model.order.argsort().tolist()
    expected = 0.0
    for x in (model.W, model.V):
        for i, j in itertools.product(range(3), repeat=2):
            for down, right in ((1, 0), (0, 1)):
                if i + down < 3 > j + right:
                    row, neighbour = x[step[3 * i + j]], x[step[3 * (i + down) + j + right]]
                    expected -= 0.35 * (row - neighbour).square().sum().item()
    assert model.log_prior().item() == pytest.approx(expected, rel=1e-6)
    assert torch.autograd.gradcheck(model.roughness, (model.W.detach().requires_grad_(),))


def test_the_gradient_of_smoothness_is_that_of_its_value() -> None:
    model = build("fvsbn", order="spiral", smoothness=0.7)
    weights = list(model.alpha.parameters())
    gradients = torch.autograd.grad(model.log_prior(), weights)
    step = [torch.randn_like(w) * 1e-4 for w in weights]
    slope = sum((g * s).sum() for g, s in zip(gradients, step, strict=True))
    values = []
    for times in (1, -2):
        with torch.no_grad():
            for w, s in zip(weights, step, strict=True):
                w.add_(s, alpha=times)
        values.append(model.log_prior().item())
    assert slope.item() == pytest.approx((values[0] - values[1]) / 2, rel=1e-6)


@pytest.mark.parametrize("name", ["fvsbn", "nade"])
def test_smoothness_in_mixed_precision_and_in_a_copy(name: str) -> None:
    model = build(name, smoothness=0.7)
    expected = model.log_prior()
    with torch.autocast("cpu", torch.bfloat16):
        assert model.log_prior() == expected
    assert copy.deepcopy(model).log_prior() == expected
    torch.testing.assert_close(model.float().log_prior(), expected.float())


def test_smoothness_leaves_nothing_in_the_checkpoint() -> None:
    assert build("fvsbn", smoothness=1.0).state_dict().keys() == build("fvsbn").state_dict().keys()
    with pytest.raises(InstantiationException, match=r"model\.smoothness must be a number from 0 to 1,000,000, got -1"):
        build("fvsbn", smoothness=-1)


def test_tabular_refuses_what_cannot_fit() -> None:
    with pytest.raises(ValueError, match=r"n = 784 pixels has 2\^784 − 1 ≈ 10\^236 parameters.*data\.side=4"):
        Tabular(shape=(28, 28))


@pytest.mark.parametrize("smoothing", [0.0, 0.5, 3.0])
def test_tabular_in_closed_form_counts(smoothing: float) -> None:
    model = Tabular(shape=(2, 2), smoothing=smoothing, closed_form=True).double().eval()
    z = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 0], [0, 1, 0, 0], [1, 1, 1, 1]])
    model.initialize(z)
    p = torch.sigmoid(model.conditionals(z.double()))
    share = (2 + smoothing) / (3 + 2 * smoothing)  # of three images that begin with 0, two go on with 1
    assert p[:3, 1].tolist() == pytest.approx([share] * 3, abs=1e-9)
    assert p[0, 0].item() == pytest.approx((1 + smoothing) / (4 + 2 * smoothing), abs=1e-9)


@pytest.mark.parametrize("value", [-0.1, "x", 1, True, float("nan")])
@every_regularized
def test_regularization_out_of_range(name: str, value: object) -> None:
    message = rf"model\.input_dropout must be a number from 0 to 0\.99, got '?{value}'?"
    with pytest.raises(InstantiationException, match=message):
        build(name, input_dropout=value)


@pytest.mark.parametrize(("key", "value", "message"), [
    ("heads", 3, "width must be divisible by 4 · model.heads = 12, got 8"),
    ("heads", 0, "heads must be a whole number"),
    ("first", [2], r"first must be \[rows, columns\], got \[2\]"), ("first", [0, 3], "first must be a whole number"),
    ("dropout", 1, "dropout must be a number from 0 to 0.99"), ("patch", 5, "patch must be a whole number from 1 to 4"),
])  # fmt: skip
def test_a_transformer_that_cannot_be_built(key: str, value: object, message: str) -> None:
    with pytest.raises(InstantiationException, match=rf"model\.{message}"):
        build("transformer", **{key: value})


def test_a_pixelcnn_that_cannot_be_built() -> None:
    with pytest.raises(InstantiationException, match=r"model\.channels must be divisible by .* = 8, got 4"):
        build("pixelcnn", attention=2)


@pytest.mark.parametrize(
    ("key", "value"), [("hidden", 0), ("hidden", -3), ("hidden", 2.5), ("hidden", True), ("hidden", 1001), ("block", 0)]
)
def test_hyperparameters_out_of_range(key: str, value: object) -> None:
    allowed = "from 1 to 1,000" if key == "hidden" else "of at least 1"
    with pytest.raises(InstantiationException, match=rf"model\.{key} must be a whole number {allowed}, got {value}"):
        build("mlp", **{key: value})
