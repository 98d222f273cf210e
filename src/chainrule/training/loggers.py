"""Loggers of Lightning besides W&B's, as the configuration makes them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger

from chainrule.files import write_whole

MISSING = "logger={0} needs packages that are not installed: pip install 'chainrule[{0}]'"


def csv_logger(*, run_dir: Path, **about: object) -> CSVLogger:
    """``metrics.csv`` in the run directory, written after every epoch."""
    # Lightning warns of a folder that is not empty; ours holds the configuration and the log already.
    warnings.filterwarnings("ignore", message=".*Experiment logs directory.*")
    return CSVLogger(run_dir, name="", version="", flush_logs_every_n_steps=1)


def tensorboard_logger(*, run_dir: Path, config: dict[str, Any], **about: object) -> TensorBoardLogger:
    """Event files in ``tensorboard/`` of the run directory: ``tensorboard --logdir runs`` shows all runs."""
    try:
        logger = TensorBoardLogger(run_dir, name="tensorboard", version="", default_hp_metric=False)
        logger.log_hyperparams(config)
    except ModuleNotFoundError as error:
        raise ValueError(MISSING.format("tensorboard")) from error
    return logger


def mlflow_logger(
    *, run_dir: Path, model: str, data: str, seed: int, config: dict[str, Any], tracking_uri: str, experiment: str
) -> MLFlowLogger:
    """A run of MLflow. The run directory remembers its id, so that a resumed run is the same one there.

    Args:
        run_dir: the run directory.
        model: a tag.
        data: a tag.
        seed: of the run.
        config: the resolved configuration: the parameters of the run.
        tracking_uri: of the server, or of a database: ``sqlite:///mlflow.db``.
        experiment: of MLflow.

    Raises:
        ValueError: MLflow is not installed, or does not take the run.
    """
    memory = run_dir / "mlflow_id"
    known = memory.read_text() if memory.is_file() else None
    try:
        logger = MLFlowLogger(
            experiment, f"{model}-s{seed}", tracking_uri, tags={"model": model, "data": data}, run_id=known
        )
        if known is None:
            logger.log_hyperparams(config)
            write_whole(memory, str(logger.run_id).encode())
    except ModuleNotFoundError as error:
        raise ValueError(MISSING.format("mlflow")) from error
    except Exception as error:  # MLflow raises what its stores and servers raise
        raise ValueError(f"logger.mlflow: {error}") from error
    return logger
