"""The density of a run, out of its directory: nothing that somebody else may have put there is executed."""

from __future__ import annotations

import hashlib
import io
import sys
from pathlib import Path
from typing import TypeVar

import torch
from hydra.errors import HydraException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from chainrule.density import AutoregressiveDensity, BinaryDensity
from chainrule.files import LARGEST, file_sha256, is_intact, is_sealed, read_small
from chainrule.mixture import Mixture, OrderEnsemble, in_steps
from chainrule.runs.directory import RunDir, load_config, open_run
from chainrule.validate import choice, number

Kind = TypeVar("Kind")

RETIRED = ("l2",)  # arguments of models that earlier versions had: training only
PREFIX = "density."  # of the model's tensors in a checkpoint


def device_named(name: str) -> torch.device:
    """The device that a user's ``device=`` means.

    Raises:
        ValueError: it is neither cpu nor cuda, or there is no CUDA GPU.
    """
    if name not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but no CUDA device available: use device=cpu")
    return torch.device(name)


def load_model(run_dir: str | Path, device: str | torch.device = "cpu", trust: str | None = None) -> BinaryDensity:
    """The density of a run, as it was selected on the validation images, in evaluation mode.

    Args:
        run_dir: of a finished run, or one that has been validated at least once.
        device: where the density computes.
        trust: a module, as ``mine.foo``, whose code may be executed: for a model from outside the package that has not
            been imported yet.

    Raises:
        FileNotFoundError: no run directory, or no checkpoint in it or in a mixture's member.
        ValueError: the checkpoint is damaged, foreign or holds more than tensors and builtins; the model is not
            trusted; or a mixture's member has changed.
    """
    run = open_run(run_dir)
    config = load_config(run)
    density: BinaryDensity | None = None
    if members := config.get("members"):
        parts = [_load_member(run, member, trust) for member in members]
        if config.get("orders") and isinstance(parts[0], AutoregressiveDensity):
            density = OrderEnsemble(parts[0], list(config.orders))
        else:
            density = in_steps(parts) if config.get("average") == "steps" else Mixture(parts)
    return (density or load_selected(run, trust)).to(device).eval()


def load_autoregressive(
    run_dir: str | Path, trust: str | None = None, order: str | None = None
) -> AutoregressiveDensity:
    """The same on the CPU, for what needs an order.

    Args:
        run_dir: as :func:`load_model`.
        trust: as :func:`load_model`.
        order: of a network in several orders, or of any, the one to take; the first by itself.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_model`; or the run is a mixture of networks, or the network does
            not know the order.
    """
    return in_one_order(load_model(run_dir, trust=trust), run_dir, order)


def in_one_order(density: BinaryDensity, run_dir: str | Path, order: str | None = None) -> AutoregressiveDensity:
    """What :func:`load_autoregressive` makes of the density of a run."""
    if isinstance(density, OrderEnsemble):
        choice("order", order or density.orders[0], density.orders)
        return density.density.reordered(order or density.orders[0])
    if not isinstance(density, AutoregressiveDensity):
        raise ValueError(
            f"{run_dir} is a mixture: it has no order of its own, so its images are not drawn or coded pixel by pixel. "
            "Take one of its members, which its config.yaml names"
        )
    if order is not None:
        same = torch.equal(density.checked(order), density.order)
        if not (same or density.any_order):
            raise ValueError(f"order={order}: {run_dir} was trained in one order only, which is another")
        return density if same else density.reordered(order)
    return density


def _load_member(run: RunDir, member: DictConfig, trust: str | None) -> BinaryDensity:
    path = run.path / member.run
    if not RunDir(path).config.is_file() or not (
        RunDir(path).best.is_file() or load_config(RunDir(path)).get("orders")
    ):
        raise FileNotFoundError(f"{run.path} is a mixture, and {path}, a member of it, is no longer there: mix again")
    if checkpoint_sha256(RunDir(path)) != member.sha256:
        raise ValueError(
            f"{run.path} is a mixture, and {path}, a member of it, has changed since: its checkpoint's SHA-256 is not "
            f"{member.sha256[:12]}…. Mix again"
        )
    return load_model(path, trust=trust)


def checkpoint_sha256(run: RunDir) -> str:
    """SHA-256 of what a run has selected: of ``best.ckpt``, or for a mixture of its members' hashes in a row."""
    if members := load_config(run).get("members"):
        return hashlib.sha256("".join(member.sha256 for member in members).encode()).hexdigest()
    return file_sha256(run.best)


def load_selected(run: RunDir, trust: str | None = None) -> BinaryDensity:
    """The density of a run that is no mixture, finished or not.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_model`.
    """
    if not run.best.is_file():
        raise FileNotFoundError(f"{run.best} does not exist: the run stopped before its first validation")
    state, shape = read_checkpoint(run.best)
    whole = load_config(run)
    config = whole.model
    if str(config.get("_target_")).startswith("chainrule."):
        config = OmegaConf.masked_copy(config, [key for key in config if key not in RETIRED])
    model = instance(config, BinaryDensity, trust, shape=shape)  # type: ignore[type-abstract]
    if orders := whole.get("orders"):
        model = in_orders(model, orders)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{run.best} does not fit the model of {run.config}: {error}") from error
    for part in model.modules():
        order = getattr(part, "order", None) if isinstance(part, AutoregressiveDensity) else None
        if order is not None and not torch.equal(order.sort().values, torch.arange(len(order))):
            raise ValueError(f"{run.best} is damaged: its order of the pixels is no permutation")
    return model.eval()


def instance(config: DictConfig, kind: type[Kind], trust: str | None = None, **arguments: object) -> Kind:
    """What a run directory asks to be built, perhaps somebody else's: one of a kind, and nothing that runs other code.

    Whatever it names must be part of chainrule, or be imported already, or be trusted: it is imported only then.

    Raises:
        ValueError: it asks for anything else.
    """
    name = str(config.get("_target_"))
    module = name.rpartition(".")[0]
    if not (name.startswith("chainrule.") or module in sys.modules or (trust and f"{name}.".startswith(f"{trust}."))):
        raise ValueError(
            f"_target_: {name} is no part of chainrule, and building it would execute its code. If you trust it: "
            f"trust={module}"
        )
    class_named(name, kind)
    built: Kind = instantiate(config, **arguments, _recursive_=False, _partial_=False, _convert_="all")
    return built


def class_named(name: str, kind: type[Kind]) -> type[Kind]:
    """The class that a ``_target_`` names, of a kind.

    Raises:
        ValueError: there is no such class, or it is of another kind.
    """
    try:
        target = get_class(name)
    except (ImportError, ValueError, AttributeError, HydraException) as error:
        raise ValueError(f"_target_: {name} cannot be built here: {error}") from error
    if not issubclass(target, kind):
        raise ValueError(f"_target_: {name} is no {kind.__name__}")
    return target


def read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], tuple[int, int]]:
    """The model's tensors and its image shape, read without executing anything."""
    try:
        content = read_small(path, LARGEST)
        if is_sealed(content) and not is_intact(content):
            raise ValueError("its checksum does not match: it was altered")
        checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        height, width = (number("image_shape", side, int, 1) for side in checkpoint["image_shape"])
        state = {k.removeprefix(PREFIX): v for k, v in checkpoint["state_dict"].items() if k.startswith(PREFIX)}
        bad = [name for name, value in state.items() if not bool(torch.isfinite(value).all())]
        if height * width > sum(map(torch.numel, state.values())):
            raise ValueError(f"its model is none of {height}×{width} images")
    except OSError:
        raise
    except Exception as error:  # a malformed archive may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is damaged, or no checkpoint of chainrule ({reason})") from error
    if bad:
        raise ValueError(f"{path}: {bad[0]} is not finite: the training diverged, or the file was altered")
    return state, (height, width)


def in_orders(density: BinaryDensity, orders: object) -> OrderEnsemble:
    """One network in several orders, as ``orders=`` of a configuration asks for.

    Raises:
        ValueError: the orders are none, or the model has no order.
    """
    if not isinstance(density, AutoregressiveDensity):
        raise ValueError(f"orders={orders}: a {type(density).__name__} has no order")
    return OrderEnsemble(density, OmegaConf.to_object(orders) if OmegaConf.is_config(orders) else orders)  # type: ignore[arg-type]
