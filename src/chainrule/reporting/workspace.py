"""``chainrule dashboard``: a saved workspace of Weights & Biases for all runs of a project, made from code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import wandb
import wandb_workspaces.workspaces as ws
from omegaconf import DictConfig
from wandb_workspaces import expr
from wandb_workspaces.reports.v2 import interface as wr

from chainrule.files import write_whole
from chainrule.training.login import logged_in

MODEL = wr.Config("model.name")
COLUMNS = (
    "config:model.value.name", "config:data.value.name", "summary:test/nll", "summary:test/nll_stderr",
    "summary:parameters", "summary:seconds",
)  # fmt: skip


def dashboard(cfg: DictConfig) -> str:
    """Publishes the workspace to the user's project, or writes it where there is no login.

    Returns:
        Its address, or the file.

    Raises:
        ValueError: W&B does not take it.
        OSError: the file cannot be written.
    """
    if not (cfg.publish and logged_in()):
        path = Path(cfg.out).expanduser()
        write_whole(path, (json.dumps(content(build(cfg)), indent=1) + "\n").encode())
        return str(path)
    try:
        workspace: Any = build(cfg, cfg.entity or wandb.Api().default_entity)
        return str(workspace.save().url)
    except wandb.Error as error:
        raise ValueError(f"W&B does not take a workspace for the project {cfg.project}: {error}") from error


def build(cfg: DictConfig, entity: str | None = None) -> ws.Workspace:
    """The workspace: how models learn, what comes out, what they draw, what sets runs apart."""
    workspace = ws.Workspace(
        entity=entity or cfg.entity or "",
        project=cfg.project,
        name=cfg.name,
        sections=[
            ws.Section(name="Learning", panels=_learning(), is_open=True),
            ws.Section(name="Result", panels=_result(), is_open=True),
            ws.Section(name="Pictures", panels=_pictures(), is_open=True),
            ws.Section(name="Runs side by side", panels=_side_by_side()),
        ],
        runset_settings=ws.RunsetSettings(
            pinned_columns=list(COLUMNS), order=[expr.Ordering(expr.Summary("test/nll"), ascending=True)]
        ),
    )
    for section in workspace.sections:
        for number, panel in enumerate(section.panels):
            cast(Any, panel)._id = f"{section.name}-{number}".lower().replace(" ", "-")  # otherwise random
    return workspace


def content(workspace: ws.Workspace) -> dict[str, Any]:
    """The workspace as W&B stores it."""
    view = cast(Any, workspace)._to_model().model_dump(by_alias=True, exclude_none=True)
    return {"entity": view["entity"], "project": view["project"], "name": view["displayName"], "spec": view["spec"]}


def _learning() -> list[wr.PanelTypes]:
    return [
        _lines("Validation NLL by model, nats", "val/nll", by_model=True),
        _lines("Training NLL by model, nats", "train/nll", by_model=True),
        _lines("Validation NLL of every run, nats", "val/nll"),
        _lines("Learning rate", "lr"),
        _lines("Norm of the gradient", "train/grad_norm", log_y=True),
        _lines("Images per second", "train/images_per_second"),
    ]


def _lines(title: str, metric: str, *, by_model: bool = False, log_y: bool | None = None) -> wr.LinePlot:
    """Against epochs; by model, the mean over runs and its standard error."""
    grouped: dict[str, Any] = {"groupby": MODEL, "groupby_aggfunc": "mean", "groupby_rangefunc": "stderr"}
    return wr.LinePlot(title=title, x="epoch", y=[metric], log_y=log_y, **(grouped if by_model else {}))


def _result() -> list[wr.PanelTypes]:
    nll, seconds, parameters = (wr.SummaryMetric(name) for name in ("test/nll", "seconds", "parameters"))
    return [
        wr.BarPlot(
            title="Test NLL by model, nats", metrics=["test/nll"], groupby=MODEL, groupby_aggfunc="mean",
            groupby_rangefunc="stderr",
        ),
        wr.ScatterPlot(title="Test NLL against parameters", x=parameters, y=nll, log_x=True),
        wr.ScatterPlot(title="Test NLL against seconds of training", x=seconds, y=nll, log_x=True),
    ]  # fmt: skip


def _pictures() -> list[wr.PanelTypes]:
    titles = {
        "samples": "Samples", "completions": "Completions", "nats_per_pixel": "Nats per pixel",
        "conditionals": "Conditional probabilities of one image",
    }  # fmt: skip
    return [_browser(title, f"pictures/{key}") for key, title in titles.items()]


def _browser(title: str, key: str) -> wr.MediaBrowser:
    return wr.MediaBrowser(title=title, media_keys=[key], num_columns=2)


def _side_by_side() -> list[wr.PanelTypes]:
    return [wr.RunComparer(diff_only="split"), wr.WeavePanelSummaryTable(table_name="test/extremes")]
