"""scripts/paper_table and its recipes, on images that need no download and for as short a time as it can take."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from zoo import MODELS, ROOT

from chainrule.orders import GRID_ORDERS

RECIPES = sorted(path.stem for path in (ROOT / "conf/experiment").glob("*.yaml"))

# Does nothing but to remember what it was asked for and to leave the files that the script looks for.
STAND_IN = """#!/usr/bin/env bash
echo "$*" >>asked.txt
for word; do case $word in paths.runs=* | out=* | run=*) folder=${word#*=} ;; esac; done
case $1 in
    train)
        case $folder in $FAILING) exit "$CODE" ;; esac
        mkdir -p "$folder"/{a,b}/checkpoints && touch "$folder"/{a,b}/{result.json,config.yaml} "$folder/a/nll_test.npz"
        truncate -s 4M "$folder/a/checkpoints/best.ckpt" && truncate -s 5M "$folder/b/checkpoints/best.ckpt" ;;
    mix) mkdir -p "$folder" && touch "$folder/result.json" ;;
    certify) touch "$folder/certificate.json" && [[ $folder != "$REFUTED" ]] ;;
esac
"""


def checkout(folder: Path, venv: Path) -> Path:
    """A folder with the script, and with a setup that has nothing to install."""
    (folder / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/paper_table", folder / "scripts")
    (folder / "scripts/setup").write_text(f"venv={venv}\nprepare() {{ :; }}\n")
    return folder


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """A checkout in which ``chainrule`` only writes down what it is asked for."""
    command = tmp_path / "venv/bin/chainrule"
    command.parent.mkdir(parents=True)
    command.write_text(STAND_IN)
    command.chmod(0o755)
    return checkout(tmp_path, tmp_path / "venv")


def paper_table(
    folder: Path, *words: str, refuted: str = "none", failing: str = "none", code: int = 1
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "200", "REFUTED": refuted, "FAILING": failing, "CODE": str(code)}
    command = ["bash", folder / "scripts/paper_table", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def asked(folder: Path, verb: str) -> list[str]:
    lines = (folder / "asked.txt").read_text().splitlines()
    (folder / "asked.txt").unlink()
    return [line.removeprefix(f"{verb} ") for line in lines if line.startswith(verb)]


def test_rows_and_seeds_are_trained_and_mixed(stage: Path) -> None:
    done = paper_table(stage, "rows=fvsbn,nade_orders,mixture,dynamic", "seeds=4,5", "runs=r", "logger=none", "a=b c")
    assert done.returncode == 0, done.stderr
    lines = (stage / "asked.txt").read_text().splitlines()
    trained = [line for line in lines if line.startswith("train")]
    assert [line.split()[2:6] for line in trained] == [
        [f"experiment={recipe}", f"data={data}", f"seed={seed}", f"paths.runs=r/{recipe}-{data}-s{seed}"]
        for recipe, data, seed in [
            ("fvsbn", "static", 4), ("fvsbn", "static", 5), ("nade_orders", "static", 4), ("nade_orders", "static", 5),
            ("fvsbn", "dynamic", 4), ("mlp", "dynamic", 4), ("nade", "dynamic", 4), ("pixelcnn", "dynamic", 4),
        ]
    ]  # fmt: skip
    assert all(line.endswith(" logger=none a=b c") for line in trained)
    assert asked(stage, "mix") == [f"runs=r/nade_orders-static-s{s} out=r/mixture-static-s{s}" for s in (4, 5)]
    assert lines[-1] == "tabulate runs=r"
    # members are certified before their mixture is
    assert lines.index("certify run=r/nade_orders-static-s4/b") < lines.index("certify run=r/mixture-static-s4")
    assert paper_table(stage, "rows=mixture_smooth", "seeds=4", "runs=r").returncode == 0
    assert asked(stage, "mix") == ["runs=r/nade_smooth_orders-static-s4 out=r/mixture_smooth-static-s4"]
    assert paper_table(stage, "rows=mixture_deep,mixture_steps", "seeds=4", "runs=r").returncode == 0
    assert asked(stage, "mix") == [
        "runs=r/pixelcnn_attention-static-s4,r/pixelcnn_raster-static-s4 out=r/mixture_deep-static-s4",
        "runs=r/pixelcnn_raster-static-s4,r/transformer-static-s4 out=r/mixture_steps-static-s4 average=steps",
    ]


def test_what_is_certified_is_not_certified_again_and_what_is_refuted_is_told(stage: Path) -> None:
    words = ["rows=nade", "seeds=0"]
    assert paper_table(stage, *words, refuted="runs/paper/nade-static-s0/a").returncode == 1
    assert asked(stage, "certify") == [f"run=runs/paper/nade-static-s0/{job}" for job in "ab"]
    assert paper_table(stage, *words).returncode == 0
    assert asked(stage, "certify") == []


def test_records_are_copied_and_of_one_seed_small_checkpoints(stage: Path) -> None:
    assert paper_table(stage, "rows=nade", "seeds=0,1", "results=to/records").returncode == 0
    copied = {str(path.relative_to(stage / "to/records")) for path in (stage / "to/records").rglob("*.*")}
    jobs = [f"nade-static-s{seed}/{job}" for seed in (0, 1) for job in "ab"]
    assert copied == {f"{job}/{name}.json" for job in jobs for name in ("result", "certificate")} | {
        "nade-static-s0/a/nll_test.npz", "nade-static-s1/a/nll_test.npz",
        "nade-static-s0/a/config.yaml", "nade-static-s0/a/checkpoints/best.ckpt",
    }  # fmt: skip


def test_a_network_begins_from_the_one_before(stage: Path) -> None:
    orders = ["pixelcnn_orders", "pixelcnn_orders_longer", "pixelcnn_orders_longest"]
    rows = ["pixelcnn", *orders, "pixelcnn_attention"]
    others = {"pixelcnn_raster": "pixelcnn_orders", "transformer_orders": "transformer"}
    chosen = ",".join([*rows, "transformer", *others])
    assert paper_table(stage, f"rows={chosen}", "seeds=0", "runs=r").returncode == 0
    trained = asked(stage, "train")
    for before, row in [*pairwise(rows), *((before, row) for row, before in others.items())]:
        starts = [line.split()[5:] for line in trained if f"experiment={row} " in line]
        assert starts == [[f"ckpt_path=r/{before}-static-s0/{job}"] for job in "ab"]


def test_a_row_that_fails_does_not_cost_the_others(stage: Path) -> None:
    words = ["rows=fvsbn,nade", "seeds=0"]
    assert paper_table(stage, *words, failing="*/fvsbn-*").returncode == 1
    asked_for = (stage / "asked.txt").read_text()
    assert "experiment=nade" in asked_for
    assert "tabulate" in asked_for


@pytest.mark.parametrize("code", [130, 143])
def test_what_is_stopped_stops_everything(stage: Path, code: int) -> None:
    assert paper_table(stage, "rows=fvsbn,nade", "seeds=0", failing="*/fvsbn-*", code=code).returncode == code
    assert "experiment=nade" not in (stage / "asked.txt").read_text()


@pytest.mark.slow
def test_a_row_from_its_recipe_to_the_table(tmp_path: Path) -> None:
    folder = checkout(tmp_path, Path(sys.executable).parents[1])
    done = paper_table(folder, "rows=tabular", "seeds=0", "data=toy", "results=records", "logger=none")
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (folder / "runs/paper/tabular-toy-s0").glob("*/")
    nll = json.loads((run / "result.json").read_text())["nll"]["test"]["mean"]
    (row,) = [line for line in done.stdout.splitlines()[-12:] if re.match(r"\W*tabular", line)]
    assert f"{nll:.3f}" in row
    assert json.loads((folder / "records/tabular-toy-s0" / run.name / "certificate.json").read_text())["passed"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_composes(recipe: str) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", overrides=[f"experiment={recipe}", "data=static"], return_hydra_config=True)
    assert cfg.model._target_.split(".")[2] in MODELS
    assert cfg.data._target_ == "chainrule.data.Static"
    swept = cfg.hydra.sweeper.params or {}
    assert set(swept) <= {"model", "model.order"}
    assert set(swept.get("model", MODELS[0]).split(",")) <= set(MODELS)


@pytest.mark.parametrize("recipe", ["nade", "nade_smooth"])
def test_the_members_of_a_mixture_are_one_recipe_in_the_eight_orders_of_the_grid(recipe: str) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", overrides=[f"experiment={recipe}_orders"], return_hydra_config=True)
        alone = compose("train", overrides=[f"experiment={recipe}"])
    assert tuple(cfg.hydra.sweeper.params["model.order"].split(",")) == GRID_ORDERS
    assert cfg.model == alone.model
    assert cfg.optimizer == alone.optimizer
    assert cfg.trainer == alone.trainer


def test_every_row_of_the_script_has_a_recipe() -> None:
    rows = re.findall(r"\w+", " ".join(re.findall(r"^rows\+?=(\S*)", (ROOT / "scripts/paper_table").read_text(), re.M)))
    assert {"fvsbn", "made", "pixelcnn_raster"} < set(rows)  # of every line
    assert set(rows) - {"mixture", "mixture_smooth", "mixture_deep", "mixture_steps", "dynamic", "seeded"} <= set(
        RECIPES
    )
