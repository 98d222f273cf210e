"""What a configuration may say: ranges of numbers, choices, what counts as a setting and what stays private."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from chainrule.validate import choice, number

# What a number in the configuration may be. Models and data check what is theirs.
RANGES: dict[str, tuple[type, float, float]] = {
    "seed": (int, 0, 2**32 - 1),
    "samples": (int, 1, 10_000),
    "optimizer.lr": (float, 1e-12, 100),
    "optimizer.weight_decay": (float, 0, 100),
    "optimizer.momentum": (float, 0, 0.9999),
    "trainer.max_epochs": (int, 0, 1_000_000),
    "trainer.devices": (int, 1, 64),
    "trainer.num_sanity_val_steps": (int, -1, 1_000_000),
    "trainer.gradient_clip_val": (float, 1e-12, 1e12),
    "callbacks.ema.decay": (float, 0, 1),
    "callbacks.early_stopping.patience": (int, 1, 1_000_000),
    "logger.wandb.pictures": (int, 1, 1_000_000),
    "search.trials": (int, 1, 1_000_000),
    "search.seconds": (float, 1, 1e9),
    "n": (int, 1, 1_000_000),
    "draws": (int, 1, 1000),
    "k": (int, 12, 20),
    "keep": (float, 0, 1),
}

CHOICES: dict[str, tuple[object, ...]] = {
    "resume": ("auto", "never", "force"),
    "print_config": (True, False),
    "trainer.accelerator": ("auto", "cpu", "cuda", "gpu"),
    "trainer.strategy": ("auto", "ddp_spawn"),
    "trainer.num_nodes": (1,),
}
# Where a verb has them: what must be there, and what must be text.
NEEDED = (
    "seed", "samples", "n", "draws", "k", "keep", "run", "file", "split", "device", "optimizer.lr",
    "trainer.max_epochs",
)  # fmt: skip
TEXTS = (
    "run", "out", "file", "split", "observed", "device", "only", "order", "trust", "ckpt_path", "bench", "figures",
)  # fmt: skip
# What makes a run train or validate on a part of the images, or stop before its last epoch.
PARTIAL: dict[str, tuple[object, ...]] = {
    "fast_dev_run": (False, 0), "limit_train_batches": (1.0,), "limit_val_batches": (1.0,), "overfit_batches": (0,),
    "max_steps": (-1,), "max_time": (),
}  # fmt: skip


def check(cfg: DictConfig, optional: Sequence[str] = ()) -> None:
    """Looks at every number before anything costs time.

    Raises:
        ValueError: a number is mistyped or out of its range, or a mandatory value is missing.
    """
    missing = OmegaConf.missing_keys(cfg)
    if missing:
        raise ValueError(f"missing: {', '.join(sorted(missing))}. Give it as {min(missing)}=…")
    for key in set(NEEDED) - set(optional):
        parent, _, name = key.rpartition(".")
        part = OmegaConf.select(cfg, parent) if parent else cfg
        if part is not None and (key in cfg or parent) and part.get(name) is None:
            raise ValueError(f"{key} is needed: null, or nothing, is no value for it")
    check_texts(cfg)
    for key, (kind, low, high) in RANGES.items():
        if (value := OmegaConf.select(cfg, key)) is not None:
            number(key, value, kind, low, high)
    for key, choices in CHOICES.items():
        if (value := OmegaConf.select(cfg, key)) is not None:
            choice(key, value, choices)
    if OmegaConf.select(cfg, "trainer.limit_val_batches") in (0, 0.0):
        raise ValueError("trainer.limit_val_batches=0: the best epoch is chosen by the validation images")
    if (OmegaConf.select(cfg, "trainer.devices") or 1) > 1 and OmegaConf.select(cfg, "trainer.strategy") != "ddp_spawn":
        raise ValueError("trainer.devices above 1 needs trainer=ddp, whose strategy is ddp_spawn")
    import torch  # noqa: PLC0415 (tables read settings without it)

    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    if threads > 8 * cores:
        raise ValueError(f"{threads} threads are too many for {cores} cores: set OMP_NUM_THREADS={cores}, or less")


def check_texts(cfg: DictConfig) -> None:
    """Raises a ValueError where a name or a path is something else."""
    for key in TEXTS:
        if not isinstance(value := cfg.get(key), str | None):
            raise ValueError(f"{key} must be a name or a path, got {value!r}")
    for key in ("tags", "runs"):
        value = cfg.get(key)
        words = [value] if key == "runs" and isinstance(value, str) else [] if value is None else value
        if not isinstance(words, list | ListConfig) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"{key} must be a list of words, as in {key}=[a,b], got {value!r}")
    for key in ("paths", "search"):
        if key in cfg and not isinstance(cfg[key], DictConfig):
            raise ValueError(f"{key} must have keys of its own, got {cfg[key]!r}")


def is_complete(cfg: DictConfig) -> bool:
    """Whether a run trains and validates on all images, to its last epoch: only then is its NLL a result."""
    return all(cfg.trainer.get(key) in (None, *whole) for key, whole in PARTIAL.items())


# ---- what cannot change a number ------------------------------------------------------------------------

PLACES = ("paths", "paths.*", "hydra", "hydra.*", "*_dir", "*dirpath")
SECRETS = ("*key", "*token", "*secret", "*password")
# Configuration that changes where, how loudly or how well explained a number is computed, but not the number.
NEUTRAL = (
    *PLACES, *SECRETS, "choices", "choices.*", "resume", "experiment", "tags", "notes", "trust", "samples",
    "print_config", "logger", "logger.*", "trainer.logger*", "trainer.enable_*", "trainer.default_root_dir",
    "trainer.profiler", "trainer.log_every_n_steps",
)  # fmt: skip
PRIVATE = (*PLACES, *SECRETS, "ckpt_path")
# What tells no two settings apart: seeds, names, what the class of a model is called, how fast it computes.
IGNORED = (
    *NEUTRAL, "seed", "name", "*run_name", "callbacks.*checkpoint*", "callbacks.*progress*", "callbacks.*summary*",
    "callbacks.*images*", "callbacks.*samples*", "callbacks.*completion*", "callbacks.*learning_rate*", "model",
    "model.kernel", "model.block", "data", "data.name", "data.side", "*.root", "*.download", "*.fused",
    "*.num_workers", "*.verbose", "*._partial_", "*._convert_", "*._recursive_",
)  # fmt: skip


def settings(config: Mapping[str, Any]) -> dict[str, object]:
    """The configuration flattened to dotted keys, without what does not change the number.

    A ``_target_`` becomes the value of its parent: ``optimizer: AdamW``, ``optimizer.lr: 0.001``. Of the
    ``members`` of a mixture, their number remains. Seeds that follow the run's own, as ``data.seed`` does, are no
    setting.
    """
    found = {key: value for key, value in flatten(config) if not _matches(key, IGNORED)}
    follow = {key for key, value in found.items() if key.endswith(".seed") and value == config.get("seed")}
    return {key: _counted(key, value) for key, value in found.items() if key not in follow}


def _counted(key: str, value: object) -> object:
    if (key, value) == ("orders", "grid"):
        return 8
    return len(value) if key in ("members", "orders") and isinstance(value, list) else value


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted keys and their values; a ``_target_`` becomes that of its parent."""
    for name, value in config.items():
        key = f"{prefix}{name}"
        if name == "_target_" and prefix:
            yield prefix[:-1], str(value).rpartition(".")[2]
        elif isinstance(value, Mapping) and value:
            yield from flatten(value, f"{key}.")
        else:
            yield key, value or None if isinstance(value, Mapping) else value


def public_config(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration without secrets, and without where things are on this machine."""
    config: dict[str, Any] = without(PRIVATE, OmegaConf.to_container(cfg, resolve=True))
    return config


def public_overrides(overrides: Sequence[str]) -> list[str]:
    """The overrides of a command line without those that say a secret, or where things are on this machine."""
    return [word for word in overrides if not _matches(word.partition("=")[0].lstrip("+~"), PRIVATE)]


def without(patterns: Sequence[str], config: Any, prefix: str = "") -> Any:  # noqa: ANN401 (whatever is in the YAML)
    if not isinstance(config, dict):
        return config
    return {key: without(patterns, value, f"{prefix}{key}.") for key, value in config.items()
            if not _matches(f"{prefix}{key}", patterns)}  # fmt: skip


def _matches(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(key, pattern) for pattern in patterns)
