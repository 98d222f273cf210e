"""The density of a run, out of its directory: nothing that somebody else may have put there is executed."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import TypeVar

import torch
from hydra.errors import HydraException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig

from chainrule.density import AutoregressiveDensity, BinaryDensity
from chainrule.files import is_intact, is_sealed
from chainrule.mixture import Mixture
from chainrule.runs.directory import RunDir, load_config, open_run

Kind = TypeVar("Kind")

PREFIX = "density."  # of the model's tensors in a checkpoint


def device_named(name: str) -> torch.device:
    """The device that a user's ``device=`` means.

    Raises:
        ValueError: it is neither cpu nor cuda, or there is no CUDA GPU.
    """
    if name not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but no CUDA GPU is at hand: use device=cpu")
    return torch.device(name)


def load_model(run_dir: str | Path, device: str | torch.device = "cpu") -> BinaryDensity:
    """The density of a run, as it was selected on the validation images, in evaluation mode.

    Raises:
        FileNotFoundError: no run directory, or no checkpoint in it or in a mixture's member.
        ValueError: the checkpoint is damaged, foreign or holds more than tensors and builtins; or a mixture's
            member has changed.
    """
    run = open_run(run_dir)
    members = load_config(run).get("members")
    density = Mixture([_load_member(run, member) for member in members]) if members else load_selected(run)
    return density.to(device).eval()


def load_autoregressive(run_dir: str | Path, device: str | torch.device = "cpu") -> AutoregressiveDensity:
    """The same, for what needs an order.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_model`; or the run is a mixture.
    """
    density = load_model(run_dir, device)
    if not isinstance(density, AutoregressiveDensity):
        raise ValueError(
            f"{run_dir} is a mixture: it has no order of its own, so its images are not drawn or coded pixel by pixel. "
            "Take one of its members, which its config.yaml names"
        )
    return density


def _load_member(run: RunDir, member: DictConfig) -> BinaryDensity:
    path = run.path / member.run
    if not (RunDir(path).config.is_file() and RunDir(path).best.is_file()):
        raise FileNotFoundError(f"{run.path} is a mixture, and {path}, a member of it, is no longer there: mix again")
    if checkpoint_sha256(RunDir(path)) != member.sha256:
        raise ValueError(
            f"{run.path} is a mixture, and {path}, a member of it, has changed since: its checkpoint's SHA-256 is not "
            f"{member.sha256[:12]}…. Mix again"
        )
    return load_model(path)


def checkpoint_sha256(run: RunDir) -> str:
    """SHA-256 of what a run has selected: of ``best.ckpt``, or for a mixture of its members' hashes in a row."""
    if members := load_config(run).get("members"):
        return hashlib.sha256("".join(member.sha256 for member in members).encode()).hexdigest()
    with run.best.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_selected(run: RunDir) -> AutoregressiveDensity:
    """The density of a run that is no mixture, finished or not.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_model`.
    """
    if not run.best.is_file():
        raise FileNotFoundError(f"{run.best} does not exist: the run stopped before its first validation")
    state, shape = read_checkpoint(run.best)
    model = instance(load_config(run).model, AutoregressiveDensity, shape=shape)  # type: ignore[type-abstract]
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{run.best} does not fit the model of {run.config}: {error}") from error
    return model.eval()


def instance(config: DictConfig, kind: type[Kind], **arguments: object) -> Kind:
    """What a run directory asks to be built, perhaps somebody else's: one of a kind, and nothing that runs other code.

    Raises:
        ValueError: it asks for anything else.
    """
    try:
        target = get_class(str(config.get("_target_")))
    except (ImportError, ValueError, HydraException) as error:
        raise ValueError(f"_target_: {config.get('_target_')} cannot be built here: {error}") from error
    if not issubclass(target, kind):
        raise ValueError(f"_target_: {config.get('_target_')} is no {kind.__name__}: this configuration is not trusted")
    built: Kind = instantiate(config, **arguments, _recursive_=False, _partial_=False, _convert_="all")
    return built


def read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], tuple[int, int]]:
    """The model's tensors and its image shape, read without executing anything."""
    try:
        content = path.read_bytes()
        if is_sealed(content) and not is_intact(content):
            raise ValueError("its checksum does not match: it was altered")
        checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        height, width = checkpoint["image_shape"]
        state = {k.removeprefix(PREFIX): v for k, v in checkpoint["state_dict"].items() if k.startswith(PREFIX)}
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is damaged, or no checkpoint of chainrule ({reason})") from error
    return state, (height, width)
