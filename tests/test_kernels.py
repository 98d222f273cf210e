"""The compiled kernels against the float64 reference, the generic walk, and the conditions they must survive."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import llvmlite.binding
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from zoo import ROOT

from chainrule.density import AutoregressiveDensity
from chainrule.kernels import nade, nade_torch
from chainrule.models.fvsbn import FVSBN
from chainrule.models.mlp import MLP
from chainrule.models.nade import NADE

numba = pytest.importorskip("numba")

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def torch_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def parameters(n: int, d: int, *, seed: int = 0, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) * scale for shape in ((n, d), (d,), (n, d), (n,))]


def bits(batch: int, n: int, *, seed: int = 0, on: float = 0.3) -> Tensor:
    return (torch.rand(batch, n, generator=torch.Generator().manual_seed(seed)) < on).float()


def both_ways(z: Tensor, given: list[Tensor], weights: Tensor, kernel: str) -> list[Tensor]:
    """Logits, and the gradients of their weighted sum."""
    leaves = [x.clone().requires_grad_() for x in given]
    logits = nade.conditionals(z, *leaves, kernel=kernel)
    return [logits.detach(), *torch.autograd.grad(logits, leaves, weights.to(logits))]


def check_agreement(z: Tensor, given: list[Tensor], *, seed: int = 0, saturated: float = 0.0) -> None:
    """Relative errors in norm; ``saturated`` also allows for what a σ wrong by this much does, where all are near 0."""
    weights = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed))
    compiled = both_ways(z, given, weights, "numba")
    reference = both_ways(z, [x.double() for x in given], weights, "torch")
    V, w, d = float(given[2].norm()), float(weights.norm()), len(given[1])
    slacks = {"logits": V * len(z) ** 0.5, "W": w * V, "c": w * V, "V": w * d**0.5, "b": 0.0}
    for (name, slack), x, y in zip(slacks.items(), compiled, reference, strict=True):
        assert x.shape == y.shape
        assert float((x.double() - y).norm()) <= 1e-5 * float(y.norm()) + saturated * slack, name
    assert not compiled[1][-1].any(), "the likelihood does not depend on W's last row"


# ---- values and gradients ---------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(0, 9),
    n=st.integers(1, 70),
    d=st.integers(1, 140),
    on=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    scale=st.sampled_from([0.1, 1.0, 10.0]),
    seed=st.integers(0, 2**31),
)
def test_values_and_gradients_agree_with_the_reference(
    *, batch: int, n: int, d: int, on: float, scale: float, seed: int
) -> None:
    check_agreement(
        bits(batch, n, seed=seed, on=on), parameters(n, d, seed=seed, scale=scale), seed=seed, saturated=1e-6
    )


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_large_batches_are_cut_and_shared_out(threads: int) -> None:
    torch.set_num_threads(threads)
    check_agreement(bits(333, 90, on=0.1), parameters(90, 70, scale=0.3))


def test_real_size() -> None:
    check_agreement(bits(70, 784, on=0.13), parameters(784, 500, scale=0.05))


@pytest.mark.parametrize("kind", [torch.uint8, torch.bool, torch.int64, torch.float64])
def test_bits_of_any_type_and_layout(kind: torch.dtype) -> None:
    z, given = bits(20, 33), parameters(33, 17)
    expected = nade.conditionals(z, *given, kernel="numba")
    for other in (z, z.T.contiguous().T, z.repeat(1, 2)[:, :33], z.repeat_interleave(2, 0)[::2]):
        assert torch.equal(nade.conditionals(other.to(kind), *given, kernel="numba"), expected)


def test_unpacked_bits_are_column_major() -> None:
    packed = np.asfortranarray(np.random.default_rng(0).integers(0, 256, (10, 5), np.uint8))
    z = torch.from_numpy(np.unpackbits(packed, axis=1)[:, :33])
    given = parameters(33, 17)
    expected = nade.conditionals(z.contiguous(), *given, kernel="numba")
    assert torch.equal(nade.conditionals(z, *given, kernel="numba"), expected)


def test_strided_parameters_and_expanded_gradients() -> None:
    z, (W, c, V, b) = bits(6, 20), parameters(20, 30)
    leaves = [x.requires_grad_() for x in (W.T.contiguous().T, c, V.T.contiguous().T, b)]
    nade.conditionals(z, *leaves, kernel="numba").sum().backward()
    expected = both_ways(z, [W.detach(), c.detach(), V.detach(), b.detach()], torch.ones(6, 20), "numba")
    for leaf, gradient in zip(leaves, expected[1:], strict=True):
        torch.testing.assert_close(leaf.grad, gradient)


def test_sigmoid_is_accurate_everywhere_and_finite_for_any_activation() -> None:
    extreme = [float("inf"), 3e38, 1e30, 1e10, 89.0, 20.0, 1e-30, 0.0]
    c = torch.cat([torch.linspace(-30, 30, 4001), torch.tensor(extreme), -torch.tensor(extreme)])
    n = len(c)
    h = nade.conditionals(torch.zeros(1, n), torch.zeros(n, n), c, torch.eye(n), torch.zeros(n), kernel="numba")
    assert float((h[0].double() - torch.sigmoid(c.double())).abs().max()) < 1e-6


def test_gradients_are_finite_for_extreme_weights() -> None:
    given = [x.sign() * 1e30 for x in parameters(12, 9)[:2]] + parameters(12, 9)[2:]
    assert all(bool(x.isfinite().all()) for x in both_ways(bits(5, 12), given, torch.ones(5, 12), "numba"))


@pytest.mark.parametrize("threads", [1, 2])
def test_same_inputs_give_the_same_bits(threads: int) -> None:
    torch.set_num_threads(threads)
    z, given, weights = bits(200, 100), parameters(100, 50), torch.rand(200, 100)
    runs = [both_ways(z, given, weights, "numba") for _ in range(3)]
    assert all(torch.equal(x, y) for run in runs[1:] for x, y in zip(run, runs[0], strict=True))


def test_bits_have_no_gradient_and_nothing_is_recorded_without_need() -> None:
    z, given = bits(4, 9).requires_grad_(), parameters(9, 5)
    leaves = [x.requires_grad_() for x in given]
    nade.conditionals(z, *leaves, kernel="numba").sum().backward()
    assert z.grad is None
    with torch.no_grad():
        assert nade.conditionals(z, *leaves, kernel="numba").grad_fn is None


# ---- sampling ---------------------------------------------------------------------------------------


def model(name: str, n_side: tuple[int, int] = (9, 11)) -> AutoregressiveDensity:
    torch.manual_seed(0)
    made: AutoregressiveDensity = {
        "nade": lambda: NADE(shape=n_side, hidden=70),
        "fvsbn": lambda: FVSBN(shape=n_side, block=20),
        "mlp": lambda: MLP(shape=n_side, hidden=7, block=20),
    }[name]()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return made.eval()


@pytest.mark.parametrize("name", ["nade", "fvsbn", "mlp"])
@pytest.mark.parametrize("batch", [1, 150])
def test_compiled_draws_are_the_walks_and_pass_in_parallel(name: str, batch: int) -> None:
    density = model(name)
    u = torch.rand(batch, density.dim, generator=torch.Generator().manual_seed(1))
    z = density.draw(u)
    chance = torch.sigmoid(density.conditionals(z).detach().double())
    tie = (u - chance).abs() < 1e-5
    assert z.dtype == torch.float32
    assert bool((((u < chance) == z.bool()) | tie).all())
    same = ~tie.any(1)  # after a tie the two may part
    assert torch.equal(AutoregressiveDensity.draw(density, u)[same], z[same])


@pytest.mark.parametrize("name", ["nade", "fvsbn", "mlp"])
@pytest.mark.parametrize("bias", [0.0, 1e4, -1e4, float("inf"), -float("inf")])
def test_uniforms_outside_the_unit_interval_force_bits(name: str, bias: float) -> None:
    density = model(name)
    with torch.no_grad():
        (density.alpha0 if name == "fvsbn" else density.b).add_(bias)
    z = bits(30, density.dim)
    assert torch.equal(density.draw(2 - 3 * z), z)


@pytest.mark.parametrize("name", ["nade", "fvsbn", "mlp"])
def test_double_precision_walks(name: str) -> None:
    density = model(name).double()
    u = torch.rand(5, density.dim, dtype=torch.float64)
    assert torch.equal(density.draw(u), AutoregressiveDensity.draw(density, u))


# ---- choice of a backend ----------------------------------------------------------------------------


def test_auto_takes_what_serves() -> None:
    assert nade.backend("auto", CPU, torch.float32) == "numba"
    assert nade.backend("auto", CPU, torch.float64) == "torch"
    assert nade.backend("auto", torch.device("meta"), torch.float32) == "torch"
    assert nade.backend("torch", CPU, torch.float32) == "torch"


def test_a_kernel_that_cannot_serve_is_refused_with_the_cure() -> None:
    with pytest.raises(ValueError, match=r"model\.kernel=numba .*float64.*model\.kernel=auto"):
        nade.conditionals(bits(2, 3).double(), *(x.double() for x in parameters(3, 2)), kernel="numba")
    with pytest.raises(ValueError, match=r"model\.kernel=triton .*cuda.*model\.kernel=auto"):
        nade.backend("triton", CPU, torch.float32)
    with pytest.raises(ValueError, match=r"model\.kernel must be one of auto, .*got 'fast'"):
        nade.backend("fast", CPU, torch.float32)


def test_reference_takes_integer_bits() -> None:
    z, given = bits(4, 9), parameters(9, 5)
    expected = nade_torch.conditionals(z, *given)
    assert torch.equal(nade.conditionals(z.byte(), *given, kernel="torch"), expected)


# ---- surroundings -----------------------------------------------------------------------------------

PROGRAM = """
import os, sys, torch
{before}
from chainrule.kernels import nade
torch.manual_seed(0)
z, given = (torch.rand(3, 20) < 0.5).float(), [torch.randn(s) for s in ((20, 5), (5,), (20, 5), (20,))]
expected = nade.conditionals(z, *given, kernel="torch")
{after}
torch.testing.assert_close(nade.conditionals(z, *given), expected)
print(nade.backend("auto", torch.device("cpu"), torch.float32))
"""


def run(*, before: str = "", after: str = "", **environment: str) -> str:
    program = PROGRAM.format(before=before, after=after)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_a_processor_without_avx_512_computes_the_same() -> None:
    found = llvmlite.binding.get_host_cpu_features()
    if not found.get("avx2"):
        pytest.skip("this one has other registers")
    wide = ("avx512", "avx10", "evex", "amx")
    features = ",".join(f"+{name}" for name, there in found.items() if there and not name.startswith(wide))
    after = """
from chainrule.kernels.lanes import LANES
from test_kernels import bits, check_agreement, parameters
for batch, n, d in ((3, 9, 5), (70, 49, 100)):
    check_agreement(bits(batch, n), parameters(n, d))
assert LANES == 32
"""
    assert run(after=after, NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES=features) == "numba"


def test_without_numba_torch_serves() -> None:
    refused = """
try: nade.backend("numba", torch.device("cpu"), torch.float32)
except ValueError as e: assert "numba" in str(e) and "pip install" in str(e), e
else: raise AssertionError
assert nade.draw(z, *given) is None and nade.compiled_walks(z) is None
"""
    assert run(before="sys.modules['numba'] = None", after=refused) == "torch"


def test_an_unwritable_cache_folder_costs_the_compile_only() -> None:
    assert run(NUMBA_CACHE_DIR="/proc/none") == "numba"


def test_no_cache_folder_at_all_costs_the_compile_only() -> None:
    none = "import numba.core.caching as c; c.CacheImpl._locator_classes = []"
    assert run(before=none) == "numba"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_computes_too() -> None:
    fork = """
torch.set_num_threads(2)
nade.conditionals(z, *given)
child = os.fork()
if child == 0:
    same = torch.equal(nade.conditionals(z, *given), nade.conditionals(z[:, :], *given))
    os._exit(0 if same else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    assert run(before="import warnings; warnings.simplefilter('ignore', DeprecationWarning)", after=fork) == "numba"


@pytest.mark.parametrize("threads", [1, 2, 200])
def test_threads_are_torchs_and_no_more_than_numba_has(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr("numba.set_num_threads", asked.append)
    torch.set_num_threads(threads)
    nade.conditionals(bits(300, 9), *parameters(9, 5), kernel="numba")
    count = min(threads, numba.config.NUMBA_NUM_THREADS)
    assert asked[:1] == ([count] if count > 1 else [])


def test_concurrent_callers() -> None:
    z, given = bits(50, 60), parameters(60, 30)
    expected = both_ways(z, given, z, "numba")
    results: list[list[Tensor]] = []
    callers = [threading.Thread(target=lambda: results.append(both_ways(z, given, z, "numba"))) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(results) == 4
    assert all(torch.equal(x, y) for result in results for x, y in zip(result, expected, strict=True))


def test_a_change_in_any_kernel_file_compiles_them_all_again(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    shutil.copytree(ROOT / "src/chainrule", folder / "chainrule", ignore=shutil.ignore_patterns("__pycache__"))
    code = """if True:
        import torch
        from chainrule.kernels import lanes, nade_numba
        nade_numba.forward(*(torch.zeros(s) for s in ((1, 2), (2, 3), (3,), (2, 3), (2,))))
        assert 'site' in lanes.__file__
        stats = nade_numba._logits.stats
        print(len(stats.cache_hits), len(stats.cache_misses))
    """

    def run() -> str:
        environment = os.environ | {"PYTHONPATH": str(folder)}
        environment.pop("NUMBA_CACHE_DIR", None)
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert run() == "0 1"
    assert run() == "1 0"
    with (folder / "chainrule/kernels/lanes.py").open("a") as file:
        file.write("# changed\n")
    assert run() == "0 1"


# ---- no number in, no number out --------------------------------------------------------------------


@pytest.mark.parametrize("d", [3, 70])
def test_a_logit_is_no_number_where_it_depends_on_none(d: int) -> None:
    z, expected = bits(20, 30), torch.zeros(4, 20, 30, dtype=torch.bool)
    expected[0, :, 12:] = z[:, 11:12] > 0  # W[11]: after pixel 11, where it is on
    expected[1] = True  # c
    expected[2, :, 11] = expected[3, :, 11] = True  # V[11], b[11]
    for i in range(4):
        given = parameters(30, d)
        given[i][(11, d - 1)[: given[i].ndim] if i != 1 else d - 1] = float("nan")
        logits, *gradients = both_ways(z, given, torch.ones(20, 30), "numba")
        assert torch.equal(logits.isnan(), expected[i])
        if i < 3:
            assert any(bool(gradient.isnan().any()) for gradient in gradients)


def test_gradients_are_no_number_where_those_of_the_logits_are_none() -> None:
    weights = torch.ones(20, 30)
    weights[4, 11] = float("nan")
    _, dW, dc, dV, db = both_ways(bits(20, 30, on=1), parameters(30, 70), weights, "numba")
    assert bool(dc.isnan().all())
    assert bool(dW[:11].isnan().all())
    assert torch.equal(dV.isnan().any(1).nonzero().flatten(), torch.tensor([11]))
    assert torch.equal(db.isnan().nonzero().flatten(), torch.tensor([11]))


@pytest.mark.parametrize("kind", [FVSBN, MLP, NADE])
def test_what_is_drawn_from_no_number_is_none(kind: type[AutoregressiveDensity]) -> None:
    model, u = kind(shape=(6, 6)), torch.rand(50, 36)
    assert not model.draw(u).isnan().any()
    for name, parameter in model.named_parameters():
        before = parameter.detach().clone()
        parameter.data.fill_(float("nan"))
        drawn = model.draw(u)
        assert bool(drawn.isnan().any()), name
        assert set(drawn[~drawn.isnan()].tolist()) <= {0.0, 1.0}
        parameter.data.copy_(before)


@settings(max_examples=40, deadline=None)
@given(a=st.floats(width=32), other=st.floats(width=32))
def test_sigmoid_of_whatever_float(a: float, other: float) -> None:
    W, c = torch.tensor([[other], [0.0]]), torch.tensor([a])
    given = W, c, torch.ones(2, 1), torch.zeros(2)
    ours = nade.conditionals(torch.tensor([[1.0, 0.0]]), *given, kernel="numba")
    exact = torch.sigmoid(torch.stack([c, c + W[0]]).double())
    torch.testing.assert_close(ours[0].double(), exact[:, 0], rtol=0, atol=4e-7, equal_nan=True)
