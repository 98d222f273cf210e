"""scripts/paper_table and its recipes, on images that need no download and for as short a time as it can take."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from zoo import MODELS, ROOT

from chainrule.orders import GRID_ORDERS

RECIPES = sorted(path.stem for path in (ROOT / "conf/experiment").glob("*.yaml"))
SHORT = ["data=toy", "logger=none", "trainer.max_epochs=1", "trainer.enable_progress_bar=false"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the script, and with a setup that has nothing to install."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/paper_table", tmp_path / "scripts")
    (tmp_path / "scripts/setup").write_text(f"venv={Path(sys.executable).parents[1]}\nprepare() {{ :; }}\n")
    return tmp_path


def paper_table(checkout: Path, *words: str) -> str:
    environment = os.environ | {"COLUMNS": "200"}
    command = [checkout / "scripts/paper_table", *words, *SHORT]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def written(folder: Path) -> dict[Path, int]:
    """When each record below a folder was written, by its place."""
    return {path.parent.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("result.json")}


@pytest.mark.slow
def test_rows_are_trained_mixed_certified_and_tabulated_and_only_once(checkout: Path) -> None:
    words = ["rows=fvsbn,nade_orders,mixture", "seeds=0", "results=records"]
    table = paper_table(checkout, *words).splitlines()[-30:]
    assert {"fvsbn", "nade", "mixture"} <= {line.split()[0] for line in table if line.split()}
    runs, records = written(checkout / "runs/paper"), written(checkout / "records")
    assert runs.keys() == records.keys()
    assert len(runs) == 1 + 8 + 1
    assert all((checkout / "records" / run / "certificate.json").is_file() for run in runs)
    assert not list((checkout / "records").rglob("*.ckpt"))

    assert "passed" not in paper_table(checkout, *words)  # nothing is certified once more
    assert written(checkout / "runs/paper") == runs


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_composes(recipe: str) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", overrides=[f"experiment={recipe}", "data=static"], return_hydra_config=True)
    assert cfg.model._target_.split(".")[2] in MODELS
    assert cfg.data._target_ == "chainrule.data.Static"
    swept = cfg.hydra.sweeper.params or {}
    assert set(swept) <= {"model", "model.order"}
    assert set(swept.get("model", MODELS[0]).split(",")) <= set(MODELS)


def test_the_members_of_the_mixture_are_the_eight_orders_of_the_grid() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", overrides=["experiment=nade_orders"], return_hydra_config=True)
        nade = compose("train", overrides=["experiment=nade"])
    assert tuple(cfg.hydra.sweeper.params["model.order"].split(",")) == GRID_ORDERS
    assert cfg.model == nade.model
    assert cfg.optimizer == nade.optimizer


def test_every_row_of_the_script_has_a_recipe() -> None:
    (line,) = [line for line in (ROOT / "scripts/paper_table").read_text().splitlines() if line.startswith("rows=")]
    rows = line.split()[0].removeprefix("rows=").split(",")
    assert set(rows) - {"mixture", "dynamic", "seeded"} <= set(RECIPES)
