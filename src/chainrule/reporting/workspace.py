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
from chainrule.training.wandb import logged_in

MODEL = wr.Config("model.name")
SETTINGS = wr.Config("settings")  # of a run, without its seed
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
        path = Path(str(cfg.out)).expanduser()
        if path.suffix != ".json":
            raise ValueError(f"out must end in .json, got {cfg.out}")
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
            ws.Section(name="Sweep", panels=_sweep(cfg.parameters), is_open=True),
            ws.Section(name="Pictures", panels=_pictures(), is_open=True),
            ws.Section(
                name="Runs side by side",
                panels=[wr.RunComparer(diff_only="split"), wr.WeavePanelSummaryTable(table_name="test/extremes")],
            ),
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
        _lines("Validation NLL by model, nats", "val/nll", by=MODEL),
        _lines("Training NLL by model, nats", "train/nll", by=MODEL),
        _lines("Validation NLL of every run, nats", "val/nll"),
        _lines("Learning rate", "lr"),
        _lines("Norm of the gradient", "train/grad_norm", log_y=True),
        _lines("Images per second", "train/images_per_second"),
    ]


def _lines(title: str, metric: str, *, by: wr.Config | None = None, log_y: bool | None = None) -> wr.LinePlot:
    """Against epochs; grouped, the mean over runs and its standard error."""
    grouped: dict[str, Any] = {"groupby": by, "groupby_aggfunc": "mean", "groupby_rangefunc": "stderr"} if by else {}
    return wr.LinePlot(title=title, x="epoch", y=[metric], log_y=log_y, **grouped)


def _bars(title: str, by: wr.Config) -> wr.BarPlot:
    return wr.BarPlot(title=title, metrics=["test/nll"], groupby=by, groupby_aggfunc="mean", groupby_rangefunc="stderr")


def _result() -> list[wr.PanelTypes]:
    nll, seconds, parameters = (wr.SummaryMetric(name) for name in ("test/nll", "seconds", "parameters"))
    return [
        _bars("Test NLL by model, nats", MODEL),
        wr.ScatterPlot(title="Test NLL against parameters", x=parameters, y=nll, log_x=True),
        wr.ScatterPlot(title="Test NLL against seconds of training", x=seconds, y=nll, log_x=True),
    ]


def _sweep(parameters: list[str]) -> list[wr.PanelTypes]:
    axes: list[Any] = [*map(wr.Config, parameters), wr.SummaryMetric("val/best_nll"), wr.SummaryMetric("test/nll")]
    columns = [wr.ParallelCoordinatesPlotColumn(metric=axis) for axis in axes]
    return [
        wr.ParallelCoordinatesPlot(title="Settings and NLL", columns=columns),
        _bars("Test NLL by settings, mean over seeds", SETTINGS),
        _lines("Validation NLL by settings, mean over seeds", "val/nll", by=SETTINGS),
        wr.WeavePanelSummaryTable(table_name="samples"),
    ]


def _pictures() -> list[wr.PanelTypes]:
    titles = {
        "samples": "Samples", "completions": "Completions", "nats_per_pixel": "Nats per pixel",
        "conditionals": "Conditional probabilities of one image",
    }  # fmt: skip
    return [wr.MediaBrowser(title=t, media_keys=[f"pictures/{key}"], num_columns=2) for key, t in titles.items()]
