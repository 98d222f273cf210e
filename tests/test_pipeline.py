"""The pieces between the model and the command line."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from zoo import ROOT, build, every_image

from chainrule.data import Toy
from chainrule.evaluation import scoring
from chainrule.evaluation.images import save_completions, save_grid
from chainrule.evaluation.scoring import nll_per_image
from chainrule.runs.record import write_json
from chainrule.training import loggers, schedules
from chainrule.training.module import DensityModule


def module_for(name: str, train_size: int = 10) -> DensityModule:
    return DensityModule(
        build(name), optimizer=torch.optim.SGD, scheduler=schedules.constant, train_size=train_size
    ).double()


@pytest.mark.parametrize("batch", [1, 3, 7, 512])
def test_a_short_last_batch_weighs_what_it_is_worth(batch: int) -> None:
    module, x = module_for("fvsbn"), every_image()[:100]
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    for i, images in enumerate(x.split(batch)):
        module.validation_step(images, i)
    exact = -module.density.log_prob(x).mean().item()
    assert module.val_nll.compute().item() == pytest.approx(exact, abs=1e-12)
    assert nll_per_image(module.density, x).mean() == pytest.approx(exact, abs=1e-12)


def test_scoring_that_takes_long_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scoring, "MUTE", -1.0)
    monkeypatch.setattr(scoring, "BATCH", 100)
    with caplog.at_level("INFO"):
        nll_per_image(build("fvsbn"), every_image()[:250])
    assert [record.getMessage() for record in caplog.records] == [
        "scored 100 of 250 images",
        "scored 200 of 250 images",
    ]


def test_the_loss_is_the_nll_less_the_share_of_the_prior() -> None:
    module, x = module_for("tabular", train_size=40), every_image()[:8]
    module.on_train_epoch_start()
    loss = module.training_step(x, 0)
    assert loss.item() == pytest.approx(
        -module.density.log_prob(x).mean().item() - module.density.log_prior().item() / 40
    )


def test_a_nan_is_not_left_out_of_the_mean() -> None:
    module = module_for("fvsbn")
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    module.density.alpha0.data[0] = float("nan")
    module.validation_step(every_image()[:4], 0)
    assert module.val_nll.compute().isnan()


def test_schedules() -> None:
    def rates(make: object, **options: float) -> list[float]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
        scheduler = make(optimizer, 10, **options)  # type: ignore[operator]
        found = []
        for _ in range(11):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    assert rates(schedules.constant) == [2.0] * 11
    assert rates(schedules.inverse_time, tau=5) == pytest.approx([2 / (1 + t / 5) for t in range(11)])
    assert rates(schedules.cosine, final=0.1) == pytest.approx(
        [0.2 + 1.8 * (1 + np.cos(np.pi * t / 10)) / 2 for t in range(11)]
    )


def test_pictures(tmp_path: Path) -> None:
    save_grid(torch.eye(4), (2, 2), tmp_path / "grid.png", columns=2)
    pixels = np.asarray(Image.open(tmp_path / "grid.png").convert("L"))
    assert pixels.shape == (2 * (2 * 28 + 4) + 4,) * 2
    assert pixels[8, 8] == 255  # the first pixel of the first image is on
    assert pixels[8, 8 + 28] == 0
    observed = torch.tensor([True, True, False, False])
    save_completions(torch.eye(4)[:2], observed, torch.ones(2, 3, 4), (2, 2), tmp_path / "c.png")
    row = np.asarray(Image.open(tmp_path / "c.png").convert("L"))[8 + 28]
    assert [int(row[8 + k * 60]) for k in range(5)] == [0, 89, 255, 255, 255]  # original, hidden, drawn


def test_a_json_file_is_whole_or_absent(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_metrics_are_written_after_every_epoch(tmp_path: Path) -> None:
    logger = loggers.csv_logger(run_dir=tmp_path, model="x", config={})
    logger.log_metrics({"val/nll": 1.5}, step=0)
    logger.save()
    with (tmp_path / "metrics.csv").open() as file:
        assert list(csv.DictReader(file)) == [{"val/nll": "1.5", "step": "0"}]


@pytest.mark.slow
def test_the_wheel_carries_its_configuration(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    built = subprocess.run(
        [*pip, "wheel", "--no-deps", "-w", tmp_path, ROOT], capture_output=True, text=True, check=False
    )
    if built.returncode and "Could not find a version" in built.stderr:
        pytest.skip("the package index cannot be reached")
    assert built.returncode == 0, built.stderr
    (file,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", file], check=True)
    installed = {str(p.relative_to(tmp_path / "site/chainrule")) for p in (tmp_path / "site/chainrule").rglob("*.yaml")}
    conf = {str(p.relative_to(ROOT)) for p in (ROOT / "conf").rglob("*.yaml")}
    assert installed == conf | {"reporting/published.yaml"}
    words = ["train", "model=fvsbn", "data=toy", "logger=csv", "trainer.max_epochs=1", "hydra.run.dir=r"]
    main = "import chainrule.cli as c; assert 'site' in str(c.CONF); c.main()"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", main, *words], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0
    record = json.loads((tmp_path / "r/result.json").read_text())
    assert record["git"] == {}  # no checkout, so no commit, and nothing that could differ from one


def test_toy_needs_nothing_from_outside() -> None:
    data = Toy(data_dir="/nonexistent", cache_dir="/nonexistent")
    data.prepare_data()
    data.setup("fit")
    assert len(data.train.unique(dim=0)) == 14
