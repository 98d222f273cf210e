"""The Triton kernel against the float64 reference: in Triton's interpreter, through its compiler, on a GPU.

Triton decides at import whether it interprets, so both checks without a GPU run this file as a script in a process
of its own: ``python test_kernels_triton.py interpret`` or ``… compile``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from chainrule.kernels import nade_torch

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed (Linux only)")

OUTPUTS = ("logits", "dW", "dc", "dV", "db")
TOLERANCE = 1e-5

# images, pixels, hidden units; the share of pixels that are on; the scale of W and c
SHAPES: dict[str, tuple[int, int, int, float, float]] = {
    "nothing is a multiple": (5, 70, 37, 0.3, 0.3),
    "smallest": (1, 1, 1, 1.0, 1.0),
    "one pixel": (3, 1, 5, 0.5, 1.0),
    "one hidden unit": (3, 33, 1, 0.5, 0.3),
    "one image, many hidden units": (1, 35, 260, 0.5, 0.2),
    "whole chunks": (4, 64, 32, 0.3, 0.3),
    "blocks of images share a place": (66, 6, 6, 0.3, 0.3),
    "all pixels off": (4, 40, 20, 0.0, 0.3),
    "all pixels on": (4, 40, 20, 1.0, 0.3),
    "saturated": (4, 66, 40, 0.5, 20.0),
    "no image": (0, 40, 20, 0.5, 0.3),
}
LARGE = {
    "published size": (100, 784, 500, 0.2, 0.05),
    "large batch": (1031, 100, 70, 0.2, 0.1),
    "many hidden units": (9, 300, 2100, 0.2, 0.05),
    "many chunks": (3, 3072, 64, 0.2, 0.05),
}


def arguments(shape: tuple[int, int, int, float, float], device: str = "cpu") -> dict[str, Tensor]:
    """Random bits, parameters and gradients of the logits; the same on every machine."""
    batch, n, d, on, scale = shape
    rng = torch.Generator().manual_seed(batch + 1000 * n + d)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=rng)

    z = (torch.rand(batch, n, generator=rng) < on).float()
    W, c, V, b = scale * normal(n, d), scale * normal(d), normal(n, d), normal(n)
    given = {"z": z, "W": W, "c": c, "V": V, "b": b, "g": normal(batch, n)}
    return {name: x.to(device) for name, x in given.items()}


def spread(x: Tensor) -> Tensor:
    """The same numbers, none next to another in memory."""
    return torch.stack([x, -x], x.ndim).transpose(0, x.ndim - 1).contiguous().transpose(0, x.ndim - 1)[..., 0]


def cases() -> dict[str, dict[str, Tensor]]:
    """All that the interpreter is given."""
    rng = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 60, (3, 3), generator=rng).tolist()
    given = {f"random {n} x {d}": arguments((1 + batch % 6, n, d, 0.3, 0.5)) for batch, n, d in sizes}
    given |= {name: arguments(shape) for name, shape in SHAPES.items()}
    small = arguments((3, 40, 20, 0.4, 0.3))
    given |= {f"bits as {dtype}": {**small, "z": small["z"].to(dtype)} for dtype in (torch.uint8, torch.bool)}
    given["not contiguous"] = {name: spread(x) for name, x in small.items()}
    given["gradient of a sum"] = {**small, "g": torch.ones(()).expand(3, 40)}
    given["every hidden unit saturated"] = {**small, "c": small["c"] + 12}  # where 1 − h has few digits
    given["enormous activations"] = {**small, "c": 1e30 * small["c"]}
    return given


def kernel(given: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """The kernel's logits and gradients."""
    from chainrule.kernels import nade_triton

    z, W, c, V, b, g = (given[name] for name in "zWcVbg")
    logits, saved = nade_triton.forward(z, W, c, V, b)
    return logits, *nade_triton.backward(g, z, W, c, V, b, saved)


def reference(given: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """The same in float64, by the plain implementation and autograd."""
    parameters = [given[name].double().requires_grad_() for name in "WcVb"]
    logits = nade_torch.conditionals(given["z"].double(), *parameters)
    return logits.detach(), *torch.autograd.grad(logits, parameters, given["g"].double())


def errors(given: dict[str, Tensor]) -> dict[str, float]:
    """Of each output: the norm of its difference from the reference, relative to the reference's."""
    found = {}
    for name, ours, exact in zip(OUTPUTS, kernel(given), reference(given), strict=True):
        assert ours.dtype == torch.float32
        assert ours.shape == exact.shape
        assert name != "dW" or not ours[-1].any(), "the last pixel conditions nothing"
        found[name] = float((ours - exact).norm() / exact.norm().clamp(min=1e-300))
    return found


# ---- on a CPU -----------------------------------------------------------------------------------------------


def in_a_process(what: str, **environment: str) -> dict[str, Any]:
    """Runs this file as a script; its last line is JSON."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    kept["PYTHONPATH"] = os.pathsep.join(sys.path)  # it finds what this process finds
    command = [sys.executable, str(Path(__file__).resolve()), what]
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    return in_a_process("interpret", TRITON_INTERPRET="1")


@pytest.mark.parametrize("case", cases())
def test_interpreted_kernel_agrees_with_the_reference(case: str, interpreted: dict[str, Any]) -> None:
    found = interpreted[case]
    assert list(found) == list(OUTPUTS)
    assert all(error < TOLERANCE for error in found.values()), found


def test_interpreted_kernel_hides_no_nan(interpreted: dict[str, Any]) -> None:
    assert interpreted["no number"] == dict.fromkeys("WcVbg", True)


def test_kernels_compile_for_an_h100(tmp_path: Path) -> None:
    """The interpreter accepts what the compiler does not, and cannot tell TF32."""
    compiled = in_a_process("compile", TRITON_CACHE_DIR=str(tmp_path))
    if not compiled:
        pytest.skip("this triton has no backend for NVIDIA")
    for name, code in compiled.items():
        assert not code["tf32"], f"{name} rounds products to TF32"
        assert not code["atomics"], f"{name} adds in no fixed order"


def interpret() -> dict[str, dict[str, float]]:
    torch.set_num_threads(1)
    scalars_from_arrays()
    return {name: errors(given) for name, given in cases().items()} | {"no number": without_a_number()}


def without_a_number() -> dict[str, bool]:
    """Of each parameter and of the logits' gradient: whether one NaN in it is one in what depends on it."""
    found = {}
    for name in "WcVbg":
        given = arguments((4, 66, 40, 0.5, 0.3))
        given[name][(0,) * given[name].ndim] = float("nan")
        logits, *gradients = kernel(given)
        found[name] = (
            any(bool(gradient.isnan().any()) for gradient in gradients) if name == "g" else bool(logits.isnan().any())
        )
    return found


def scalars_from_arrays() -> None:
    """Lets interpreters before Triton 3.7 run loops under numpy ≥ 2.4, which refuses ``int(array of one)``."""
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor

    def patched(tensor: Any, *rest: Any) -> None:  # noqa: ANN401 — Triton's own, different from version to version
        patch_tensor(tensor, *rest)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = patched


def compile_all() -> dict[str, dict[str, bool]]:
    """Every kernel, at the published sizes and where every size is 1, which Triton makes a constant."""
    from triton.backends import backends

    from chainrule.kernels import nade_triton as k

    if "nvidia" not in backends:
        return {}
    tiles = {
        k._chunk_sums: (k.PRODUCT_TILE, k.PRODUCT),
        k._sums_before: (k.SUM_TILE, k.WARP),
        k._sums_from: (k.SUM_TILE, k.WARP),
        k._walk_forward: (k.FORWARD_TILE, k.WARP),
        k._walk_backward: (k.BACKWARD_TILE, k.WARP),
        k._products: (k.PRODUCT_TILE, k.PRODUCT),
    }
    compiled = {}
    for function, ((rows, cols), options) in tiles.items():
        constants = {"STEPS": k.STEPS, "ROWS": rows, "COLS": cols}
        for ones in (False, True):
            compiled[f"{function.__name__}, ones: {ones}"] = compile_one(function, constants, options, ones=ones)
    return compiled


def compile_one(function: Any, constants: dict[str, int], options: dict[str, Any], *, ones: bool) -> dict[str, bool]:  # noqa: ANN401
    """What is to be known of one kernel's code for compute capability 9.0; needs no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = function.fn.__annotations__
    sizes = [name for name in function.arg_names if types[name] == "int"]
    constants = {name: value for name, value in constants.items() if name in types}
    constants |= dict.fromkeys(sizes, 1) if ones else {}
    signature = {name: "i32" if types[name] == "int" else "*fp32" for name in function.arg_names}
    source = ASTSource(function, signature | dict.fromkeys(constants, "constexpr"), constexprs=constants)
    code = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    ptx = code.asm["ptx"]
    return {"tf32": "tf32" in ptx, "atomics": re.search(r"\b(atom|red)\.", ptx) is not None}


# ---- on a GPU -----------------------------------------------------------------------------------------------

on_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1", reason="needs a CUDA device"
)


@on_gpu
@pytest.mark.parametrize("case", cases())
def test_kernel_agrees_with_the_reference_on_a_gpu(case: str) -> None:
    given = cases()[case]
    found = errors({name: x.cuda() for name, x in given.items()})
    assert all(error < TOLERANCE for error in found.values()), found


@on_gpu
@pytest.mark.parametrize("case", LARGE)
def test_kernel_is_exact_and_repeatable_at_real_sizes(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)  # a user's choice must not reach the kernel
    given = arguments(LARGE[case], "cuda")
    assert all(torch.equal(x, y) for x, y in zip(kernel(given), kernel(given), strict=True))
    found = errors(given)
    assert all(error < TOLERANCE for error in found.values()), found


@on_gpu
def test_kernel_holds_no_tensor_of_all_hidden_states() -> None:
    shape = batch, n, d, *_ = LARGE["published size"]
    given = arguments(shape, "cuda")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    kernel(given)
    assert torch.cuda.max_memory_allocated() - before < 4 * batch * n * d / 2


if __name__ == "__main__":
    print(json.dumps({"interpret": interpret, "compile": compile_all}[sys.argv[1]]()))
