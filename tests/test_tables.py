"""Tables are built from hand-made records whose means and errors are worked out here, independently."""

from __future__ import annotations

import csv
import inspect
import io
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from chainrule.reporting import tables
from chainrule.reporting.format import with_error
from chainrule.reporting.published import published_for, published_numbers
from chainrule.reporting.render import FORMATS, Block, Column, Grid, console, csv_text, latex
from chainrule.reporting.tables import tabulate
from chainrule.runs.directory import discover
from chainrule.runs.record import Record

ROOT = Path(__file__).parents[1]
STATIC = "ca0294c3b8d984c7a1dc891015a8eea6f37bae59a34e35ea0fc8c47110a8dd86"  # tests/test_data.py holds it to the files
OTHER = "b2" * 32


def content(**changes: object) -> dict[str, Any]:
    """The contents of a result.json, with values changed by their dotted name (dots written as ``__``)."""
    raw: dict[str, Any] = {
        "schema": 1,
        "model": "nade",
        "kernel": "numba",
        "order": "raster",
        "parameters": {"count": 785284, "effective": 784784},
        "data": {"name": "static", "side": 28, "n": 784, "sha256": {"train": "t", "valid": "v", "test": STATIC}},
        "seed": 0,
        "nll": {
            "train": {"mean": 86.1, "stderr": 0.2, "count": 10000},
            "valid": {"mean": 88.0, "stderr": 0.2, "count": 10000},
            "test": {"mean": 88.4, "stderr": 0.25, "count": 10000},
        },
        "bits_per_pixel": 0.1627,
        "best_epoch": 38,
        "epochs": 40,
        "seconds": 291.2,
        "images_per_second": 8123.0,
        "hardware": {"cpu": "x", "cores": 2, "threads": 2, "gpu": None},
        "versions": {"torch": "2.15.0"},
        "git": {"commit": "abc", "dirty": False},
        "date": "2026-11-24T07:12:03+00:00",
        "overrides": ["model=nade"],
        "config": {
            "paths": {"runs": "somewhere"},
            "model": {"_target_": "chainrule.models.nade.NADE", "hidden": 500, "kernel": "auto"},
            "optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 0.001, "betas": [0.9, 0.999]},
            "scheduler": None,
            "trainer": {"max_epochs": 40, "enable_progress_bar": True},
        },
    }
    for name, value in changes.items():
        *path, last = name.split("__")
        place = raw
        for key in path:
            place = place.setdefault(key, {})
        place[last] = value
    raw["config"]["seed"] = raw["seed"]
    raw["nll"] = {split: score for split, score in raw["nll"].items() if score}
    return raw


def write(folder: Path, **changes: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "result.json").write_text(json.dumps(content(**changes)))
    return folder


def write_seeds(top: Path, means: dict[int, float], **changes: object) -> None:
    for seed, mean in means.items():
        write(top / f"s{seed}", seed=seed, nll__test__mean=mean, **changes)


def rows(top: Path, **options: Any) -> list[dict[str, str]]:  # noqa: ANN401
    return list(csv.DictReader(io.StringIO(tabulate(top, "csv", **options))))


def ours(top: Path) -> list[dict[str, str]]:
    return [row for row in rows(top, published=False) if row["row"] == "run"]


# ---- what was found --------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_unfinished_runs_are_listed_and_not_counted(tmp_path: Path, form: str) -> None:
    write(tmp_path / "done")
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "config.yaml").write_text("seed: 0\n")
    text = tabulate(tmp_path, form, width=100)
    assert "unfinished" in text
    assert "killed" in text.replace("\n", "")


@pytest.mark.parametrize("form", FORMATS)
def test_failed_runs_are_listed_with_their_reason(tmp_path: Path, form: str) -> None:
    write(tmp_path / "done")
    for name in ("before_config", "killed"):
        (tmp_path / name).mkdir()
    (tmp_path / "before_config" / "failure.txt").write_text("optimizer.lr must be\na number\n")
    (tmp_path / "killed" / "config.yaml").write_text("seed: 0\n")
    text = " ".join(tabulate(tmp_path, form, width=300).replace("\\", "").split())
    assert "optimizer.lr must be a number" in text
    if form != "csv":
        assert re.search(r"failed: \S*before_config: optimizer\.lr", text)
        assert re.search(r"unfinished: \S*killed", text)
    else:
        found = {row["row"]: row["notes"] for row in rows(tmp_path, published=False)}
        assert found == {"run": "", "failed": "optimizer.lr must be a number", "unfinished": ""}


def test_many_unfinished_runs_are_counted(tmp_path: Path) -> None:
    for k in range(25):
        (tmp_path / f"r{k:02}").mkdir()
        (tmp_path / f"r{k:02}" / "config.yaml").write_text("")
    text = tabulate(tmp_path, "markdown")
    assert "r19" in text
    assert "r20" not in text
    assert "unfinished: 5 more" in text


def test_nothing_found_and_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run found"):
        tabulate(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        tabulate(tmp_path / "nowhere")


def test_unknown_options(tmp_path: Path) -> None:
    write(tmp_path / "run")
    with pytest.raises(ValueError, match="unknown format 'pdf': choose one of console, markdown"):
        tabulate(tmp_path, "pdf")
    with pytest.raises(ValueError, match="published must be true, false, verified or all, got 'some'"):
        tabulate(tmp_path, published="some")
    with pytest.raises(ValueError, match="invalid must be true or false, got 'some'"):
        tabulate(tmp_path, invalid="some")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nll__test__mean": "x"}, "field nll.test.mean: Input should be a valid number"),
        ({"data__sha256": {}}, "field data.sha256: Value error, that of the test images is missing"),
        ({"schema": 2}, "schema 2 is newer than this chainrule"),
    ],
)
def test_a_malformed_record_names_file_and_field(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    run = write(tmp_path / "run", **change)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        tabulate(tmp_path)
    assert str(run / "result.json") in str(error.value)


# ---- grouping and statistics -----------------------------------------------------------------------


def test_mean_and_standard_error_over_seeds(tmp_path: Path) -> None:
    write_seeds(tmp_path, {0: 88.0, 1: 88.3, 2: 89.2})
    (row,) = ours(tmp_path)
    # mean 88.5; deviations −0.5, −0.2, 0.7; sample variance 0.78 / 2; error √(0.39 / 3) = √0.13
    assert float(row["test_nll"]) == pytest.approx(88.5)
    assert float(row["stderr"]) == pytest.approx(math.sqrt(0.13))
    assert (row["stderr_over"], row["seeds"]) == ("seeds", "0 1 2")
    text = tabulate(tmp_path, "markdown")
    assert "| nade | 88.50 ± 0.36 |" in text
    assert "± standard error over 3 seeds" in text


def test_a_single_seed_has_the_error_over_images(tmp_path: Path) -> None:
    write(tmp_path / "run")
    (row,) = ours(tmp_path)
    assert (float(row["test_nll"]), float(row["stderr"]), row["stderr_over"]) == (88.4, 0.25, "images")
    assert "± standard error over the test images" in tabulate(tmp_path, "markdown")


def test_the_best_seed_is_selected_by_validation(tmp_path: Path) -> None:
    for seed, valid, test in [(0, 88.0, 87.0), (1, 87.5, 89.0), (2, 87.9, 88.0)]:
        write(tmp_path / str(seed), seed=seed, nll__valid__mean=valid, nll__test__mean=test)
    (row,) = ours(tmp_path)
    assert (row["best_seed"], float(row["best_seed_test_nll"])) == ("1", 89.0)
    assert "| 1: 89.00 | 87.80 |" in tabulate(tmp_path, "markdown", columns=["best_seed", "valid"])


def test_costs_are_means_over_seeds(tmp_path: Path) -> None:
    for seed, seconds in enumerate([100.0, 200.0]):
        sampling = {"images": 1000, "seconds": 2.0 + 2 * seed, "latency": 0.001 * (1 + seed)}
        write(tmp_path / str(seed), seed=seed, seconds=seconds, images_per_second=seconds * 10, sampling=sampling)
    (row,) = ours(tmp_path)
    assert float(row["seconds"]) == pytest.approx(150)
    assert float(row["images_per_second"]) == pytest.approx(1500)
    assert float(row["ms_per_sample"]) == pytest.approx(3)
    assert float(row["latency_ms"]) == pytest.approx(1.5)
    assert "| 2.50 | 1.50 |" in tabulate(tmp_path, "markdown", columns=["minutes", "latency"])
    assert (row["parameters"], row["effective_parameters"]) == ("785284.0", "784784.0")


def test_a_seed_run_twice_counts_once_by_its_latest_run(tmp_path: Path) -> None:
    write(tmp_path / "new", nll__test__mean=88.0, date="2026-11-25T00:00:00+00:00")
    write(tmp_path / "old", nll__test__mean=99.0, date="2026-11-24T00:00:00+00:00")
    (row,) = ours(tmp_path)
    assert (float(row["test_nll"]), row["stderr_over"]) == (88.0, "images")
    assert re.search(r"left out: .*old, a later run", tabulate(tmp_path, "markdown").replace("\\", ""))


def test_different_test_sets_never_meet(tmp_path: Path) -> None:
    write(tmp_path / "a", seed=0)
    write(tmp_path / "b", seed=1, data__sha256__test=OTHER)
    write(tmp_path / "c", seed=2, data__name="dynamic")
    write(tmp_path / "d", seed=3, data__side=14, data__n=196)
    assert len(ours(tmp_path)) == 4
    assert all(row["stderr_over"] == "images" for row in ours(tmp_path))
    assert len(tables.sections(discover(tmp_path)[0])) == 4
    assert tabulate(tmp_path, "markdown").count("| model |") == 4


@pytest.mark.parametrize(("value", "count"), [(0, 1), (False, 1), (None, 1), (0.5, 2)])
def test_seeds_from_before_an_option_was_added_are_of_one_row(value: object, count: int, tmp_path: Path) -> None:
    write(tmp_path / "before", seed=0)
    write(tmp_path / "after", seed=1, config__model__dropout=value)
    assert len(ours(tmp_path)) == count


def test_a_seed_that_follows_the_runs_own_is_no_setting(tmp_path: Path) -> None:
    for seed in range(3):
        write(tmp_path / str(seed), seed=seed, config__data={"_target_": "chainrule.data.Static", "seed": seed})
    assert [row["seeds"] for row in ours(tmp_path)] == ["0 1 2"]
    write(tmp_path / "other", seed=0, config__data={"_target_": "chainrule.data.Static", "seed": 7})
    assert {row["config.data.seed"] for row in ours(tmp_path)} == {"", "7"}


def labels(top: Path) -> list[str]:
    (section,) = tables.sections(discover(top)[0], published=False)
    return section.labels


def test_a_label_says_what_varies(tmp_path: Path) -> None:
    write(tmp_path / "a", config__model__hidden=500, nll__test__mean=87.0)
    write(tmp_path / "b", config__model__hidden=1000, config__model__smoothness=10.0, config__model__order="raster_ud",
          nll__test__mean=85.0)  # fmt: skip
    write(tmp_path / "c", model="fvsbn", config__optimizer__lr=0.5)
    assert labels(tmp_path) == ["nade, 1000 units, smooth", "nade, 500 units", "fvsbn"]
    write(tmp_path / "d", config__model__hidden=500, config__optimizer__lr=0.1, nll__test__mean=90.0)
    write(tmp_path / "e", model="fvsbn", config__optimizer__lr=0.1, nll__test__mean=91.0)
    assert labels(tmp_path) == [
        "nade, 1000 units, smooth", "nade, 500 units, lr 0.001", "fvsbn, lr 0.5",
        "nade, 500 units, lr 0.1", "fvsbn, lr 0.1",
    ]  # fmt: skip
    assert {row["config.optimizer.lr"] for row in ours(tmp_path)} == {"0.001", "0.1", "0.5"}


def test_a_label_falls_back_on_what_there_is(tmp_path: Path) -> None:
    write_mixture(tmp_path / "a", ["x", "y"], parameters={"count": 12_600_000, "effective": 1})
    write_mixture(tmp_path / "b", ["z", "w"], parameters={"count": 6_300_000, "effective": 1}, nll__test__mean=86.0)
    assert labels(tmp_path) == ["mixture of 2 nade, 12.6M parameters", "mixture of 2 nade, 6.30M parameters"]


def test_two_classes_of_one_name_are_two_rows(tmp_path: Path) -> None:
    write(tmp_path / "a", config__model={"_target_": "mine.other.Other", "hidden": 5})
    write(tmp_path / "b", config__model={"_target_": "mine.other.Another", "hidden": 5}, nll__test__mean=90.0)
    assert labels(tmp_path) == ["nade, Other", "nade, Another"]


def test_two_settings_of_one_name_have_their_whole_keys(tmp_path: Path) -> None:
    write(tmp_path / "a", config__optimizer__lr=0.1, config__ema__lr=0.1)
    write(tmp_path / "b", config__optimizer__lr=0.2, config__ema__lr=0.3, nll__test__mean=90.0)
    assert labels(tmp_path) == ["nade, ema.lr 0.1", "nade, ema.lr 0.3"]


def test_columns_names_and_order_on_request(tmp_path: Path) -> None:
    for k, hidden in enumerate((500, 100)):
        write(tmp_path / str(k), config__model__hidden=hidden, nll__test__mean=88.0 + k, parameters__count=hidden)
    text = tabulate(tmp_path, "markdown", published=False, columns=["nll", "lr", "seeds"], names={"nade": "NADE"})
    assert "| model | test NLL | lr | seeds |" in text
    assert "| NADE, 500 units | **88.00 ± 0.25** | 0.001 | 0 |" in text
    for sort, first in (("nll", 500), ("-nll", 100), ("parameters", 100), ("hidden", 100), ("-hidden", 500)):
        lines = tabulate(tmp_path, "markdown", published=False, sort=sort).splitlines()
        assert f"{first} units" in lines[4], sort
    for option in ({"columns": ["color"]}, {"sort": "color"}):
        with pytest.raises(ValueError, match="no 'color'; there are published, nll, bits"):
            tabulate(tmp_path, **option)  # type: ignore[arg-type]


# ---- runs that are no result, or no run of their own ------------------------------------------------


def test_partial_runs_are_left_out_and_named(tmp_path: Path) -> None:
    write(tmp_path / "whole")
    write(tmp_path / "part", complete=False, nll__test__mean=70.0)
    for form in ("console", "markdown", "latex"):
        text = tabulate(tmp_path, form)
        assert "70.00" not in text
        assert "part: trained or scored on some batches only" in text.replace("\n  ", " ")
    assert "nade, partial | **70.00" in tabulate(tmp_path, "markdown", partial=True)
    assert len(ours(tmp_path)) == 1


def write_nll(run: Path, nll: np.ndarray) -> None:
    record = json.loads((run / "result.json").read_text())
    mean, stderr = float(nll.mean()), float(nll.std(ddof=1)) / math.sqrt(len(nll))
    record["nll"]["test"] = {"mean": mean, "stderr": stderr, "count": len(nll)}
    record["bits_per_pixel"] = mean / math.log(2) / 784
    (run / "result.json").write_text(json.dumps(record))
    np.savez_compressed(run / "nll_test.npz", nll=nll)


def test_copies_of_a_run_are_one_run(tmp_path: Path) -> None:
    nll = np.linspace(60, 120, 100)
    for seed in range(3):  # the third has the same mean, of other images
        write_nll(write(tmp_path / f"s{seed}", seed=seed), nll if seed < 2 else nll[::-1].copy())
    (row,) = ours(tmp_path)
    assert (row["seeds"], row["stderr_over"]) == ("0 2", "seeds")
    text = tabulate(tmp_path, "markdown").replace("\\", "")
    assert re.search(r"left out: \S*s1, one run with \S*s0: every image has the same NLL", text)
    assert "missing" not in text


def test_numbers_that_are_not_those_of_the_images_are_said(tmp_path: Path) -> None:
    run = write(tmp_path / "a")
    write_nll(run, np.linspace(60, 120, 100))
    assert "warning" not in tabulate(tmp_path, "markdown")
    record = json.loads((run / "result.json").read_text())
    record["bits_per_pixel"] = 0.1
    (run / "result.json").write_text(json.dumps(record))
    assert "warning: " in (text := tabulate(tmp_path, "markdown"))
    assert "is not of this run: their bits per pixel is" in text


def test_kernels_are_timed_apart(tmp_path: Path) -> None:
    write(tmp_path / "a", seed=0)
    write(tmp_path / "b", seed=1, kernel="torch")
    assert {row["kernel"] for row in ours(tmp_path)} == {"numba", "torch"}


# ---- certificates ----------------------------------------------------------------------------------


def certify(run: Path, passed: bool = True, **changes: object) -> None:
    checks = {"causality": {"passed": True}, "coding": {"passed": passed, "image": 7}}
    raw = {"schema": 1, "passed": passed, "checkpoint_sha256": "c0", "date": "2026-11-24", "checks": checks}
    raw["test_nll"] = json.loads((run / "result.json").read_text())["nll"]["test"]["mean"]
    (run / "certificate.json").write_text(json.dumps(raw | changes))


def badges(top: Path) -> list[str]:
    return [row["certified"] for row in ours(top)]


def test_a_certificate_is_a_badge(tmp_path: Path) -> None:
    for name, nll in (("a", 87.0), ("b", 88.0), ("c", 89.0)):
        write(tmp_path / name, config__model__hidden=nll, nll__test__mean=nll, checkpoint_sha256="c0")
    certify(tmp_path / "a")
    certify(tmp_path / "b", passed=False)
    assert badges(tmp_path) == ["yes", "no", "–"]
    text = tabulate(tmp_path, "markdown")
    assert re.findall(r"\| (yes|no|–) \|", text) == ["yes", "no", "–"]
    assert re.search(r"not certified: .*b, failed coding", text)


def test_every_seed_must_be_certified(tmp_path: Path) -> None:
    runs = [write(tmp_path / f"s{seed}", seed=seed, checkpoint_sha256="c0") for seed in range(3)]
    for run, badge in zip(runs, ("1 of 3", "2 of 3", "yes"), strict=True):
        certify(run)
        assert badges(tmp_path) == [badge]
    certify(runs[1], passed=False)
    assert badges(tmp_path) == ["no"]


# ---- what must be said -----------------------------------------------------------------------------


def test_missing_seeds_and_mixed_versions_are_said(tmp_path: Path) -> None:
    write(tmp_path / "a0", seed=0)
    write(tmp_path / "a1", seed=1, git__commit="fedcba9876")
    write(tmp_path / "b0", seed=0, model="fvsbn")
    text = tabulate(tmp_path, "markdown")
    assert "missing: seed 1 of fvsbn" in text
    assert "different versions of the code, abc, fedcba98" in text


def test_what_the_numbers_come_from_is_said(tmp_path: Path) -> None:
    write(tmp_path / "a", seed=0, git__dirty=True)
    write(tmp_path / "b", seed=1)
    text = tabulate(tmp_path, "markdown")
    assert "1 of 2 runs came from a checkout with uncommitted changes" in text
    assert "different machines" not in text
    write(tmp_path / "c", seed=2, hardware={"cpu": "y", "cores": 8, "threads": 8, "gpu": None})
    assert "are of different machines: x, 2 threads; y, 8 threads" in tabulate(tmp_path, "markdown")


def test_csv_has_what_it_takes_to_repeat_a_run(tmp_path: Path) -> None:
    write(tmp_path / "a", overrides=["model=nade", "paths.data_dir=here", "tags=[a b]"])
    (row,) = ours(tmp_path)
    assert (row["command"], row["commit"], row["machine"]) == ("model=nade 'tags=[a b]'", "abc", "x, 2 threads")
    assert row["date"] == "2026-11-24T07:12:03+00:00"


# ---- mixtures --------------------------------------------------------------------------------------


def write_mixture(folder: Path, members: list[str], **changes: object) -> Path:
    """What no training leaves behind is missing or null."""
    mixed: dict[str, Any] = {
        "model": "mixture", "kernel": None, "order": "2 orders", "nll__test__mean": 85.3,
        "images_per_second": None, "nll__train": None,
        "config": {
            "model": {"_target_": "chainrule.mixture.Mixture"}, "of": "nade",
            "members": [{"run": f"../{name}", "sha256": f"sha of {name}"} for name in members],
        },
    }  # fmt: skip
    return write(folder, **mixed | changes)


def test_a_mixture_has_its_row(tmp_path: Path) -> None:
    write(tmp_path / "member")
    write_mixture(tmp_path / "mixture", ["member", "other"])
    mixture, member = ours(tmp_path)
    assert (mixture["model"], mixture["test_nll"], mixture["variant"]) == ("mixture", "85.3", "mixture of 2 nade")
    assert (mixture["images_per_second"], mixture["kernel"]) == ("", "")
    assert (member["model"], member["variant"]) == ("nade", "")
    for form in FORMATS:
        assert "85.3" in tabulate(tmp_path, form)
    assert "| mixture of 2 nade | **85.30 ± 0.25** |" in tabulate(tmp_path, "markdown", published=False)


def test_mixtures_of_other_members_are_other_rows(tmp_path: Path) -> None:
    write_mixture(tmp_path / "a", ["x", "y"])
    write_mixture(tmp_path / "b", ["x", "z"], nll__test__mean=85.4)
    assert [row["test_nll"] for row in ours(tmp_path)] == ["85.3", "85.4"]


def test_mixtures_of_members_of_other_seeds_are_seeds(tmp_path: Path) -> None:
    write_mixture(tmp_path / "a", ["x0", "y0"], seed=0)
    write_mixture(tmp_path / "b", ["x1", "y1"], seed=1, nll__test__mean=85.5)
    write_mixture(tmp_path / "c", ["x0", "y0"], seed=0, date="2025-01-01", nll__test__mean=99.0)
    write_mixture(tmp_path / "d", ["x0", "y0", "z0"], seed=2)
    write_mixture(tmp_path / "e", ["w3", "v3"], seed=3, parameters={"count": 9, "effective": 9})
    assert [(row["seeds"], row["test_nll"], row["variant"]) for row in ours(tmp_path)] == [
        ("2", "85.3", "mixture of 3 nade"), ("3", "85.3", "mixture of 2 nade"), ("0 1", "85.4", "mixture of 2 nade")
    ]  # fmt: skip


def test_the_summary_of_a_mixture(tmp_path: Path) -> None:
    text = shown(Record.read(write_mixture(tmp_path / "a", ["x"], epochs=None)))
    assert re.search(r"valid NLL +88\.00 nats", text)
    assert re.search(r"seconds +291 *\n", text)
    assert "published" not in text  # a mixture of Bernoullis is another thing


# ---- published numbers -----------------------------------------------------------------------------


def published_in(top: Path, **options: bool | str) -> list[dict[str, str]]:
    return [row for row in rows(top, **options) if row["row"] == "published"]


@pytest.mark.parametrize("data", ["static", "dynamic"])
@pytest.mark.parametrize("which", [True, "all"])
def test_published_rows_are_of_the_same_data(tmp_path: Path, data: str, which: bool | str) -> None:
    write(tmp_path / "a", data__name=data)
    shown = published_in(tmp_path, published=which, invalid=True)
    assert {row["data"] for row in shown} == {data}
    of_that_data = {p.nll for p in published_numbers() if p.data == data}
    assert {float(row["test_nll"]) for row in shown} <= of_that_data


def test_static_and_dynamic_runs_are_not_ranked_together(tmp_path: Path) -> None:
    write(tmp_path / "s", nll__test__mean=90.0)
    write(tmp_path / "d", data__name="dynamic", nll__test__mean=80.0)
    static, dynamic = re.split(r"\*\*dynamic 28×28", tabulate(tmp_path, "markdown"))
    assert "90.00" in static
    assert "80.00 ±" not in static
    assert "88.33" in static
    assert "80.00" in dynamic
    assert "90.00" not in dynamic
    assert "88.33" not in dynamic


@pytest.mark.parametrize(
    "change",
    [
        {"data__name": "seeded"},
        {"data__name": "threshold"},
        {"data__side": 14, "data__n": 196},
        {"data__sha256__test": OTHER},
    ],
)
def test_other_test_sets_have_no_published_neighbours(tmp_path: Path, change: dict[str, Any]) -> None:
    write(tmp_path / "a", **change)
    assert published_in(tmp_path, published="all", invalid=True) == []
    assert "no published number is on this test set" in tabulate(tmp_path, "markdown")


def test_by_default_published_rows_are_exact_valid_and_one_a_model(tmp_path: Path) -> None:
    write(tmp_path / "a")
    shown = published_in(tmp_path)
    assert {(row["kind"], row["valid_likelihood"]) for row in shown} == {("exact", "true")}
    models = [row["model"] for row in shown]
    assert len(models) == len(set(models))
    assert {"NADE": "88.33", "MADE": "86.64"}.items() <= {row["model"]: row["test_nll"] for row in shown}.items()
    assert published_in(tmp_path, published=False) == []


def test_bounds_and_estimates_stand_apart(tmp_path: Path) -> None:
    write(tmp_path / "a")
    kinds = [row["kind"] for row in published_in(tmp_path, published="all")]
    assert set(kinds) == {"exact", "bound", "estimate"}
    text = tabulate(tmp_path, "markdown", published="all")
    assert "≤ 79.78" in text
    assert "≈ 84.55" in text
    assert "97.45†" in text
    assert "† commonly quoted" in text


@pytest.mark.parametrize("form", ["console", "markdown", "latex"])
def test_each_kind_of_published_number_stands_under_its_label(tmp_path: Path, form: str) -> None:
    write(tmp_path / "a")
    text = tabulate(tmp_path, form, published="all", invalid=True, width=200)
    places = [
        text.index(x)
        for x in ("88.40", "published, exact", "79.20", "bounds and estimates", "79.78", "invalid or doubt")
    ]
    assert places == sorted(places)
    assert "bounds" not in tabulate(tmp_path, form)
    assert "published, exact" not in tabulate(tmp_path, form, published=False)


def test_verified_numbers_only(tmp_path: Path) -> None:
    write(tmp_path / "a")
    shown = published_in(tmp_path, published="verified")
    assert {(row["kind"], row["verified"]) for row in shown} == {("exact", "true")}
    assert "97.45" not in {row["test_nll"] for row in shown}
    assert "88.33" in {row["test_nll"] for row in shown}
    text = tabulate(tmp_path, "markdown", published="verified")
    assert "†" not in text
    assert "published figures are on the same 10,000 test images" in text


def test_invalid_rows_only_on_request_with_the_reason(tmp_path: Path) -> None:
    write(tmp_path / "a")
    for which in (True, "all"):
        assert "INVALID" not in tabulate(tmp_path, "csv", published=which)
        assert "79.3," not in [row["test_nll"] for row in published_in(tmp_path, published=which)]
    text = tabulate(tmp_path, "markdown", invalid=True)
    assert "*invalid or doubtful*" in text
    assert "not a valid likelihood: NOT A LIKELIHOOD: run.py averages LOGITS" in text.replace("\\", "")


def test_figures_of_validation_images_are_no_test_figures(tmp_path: Path) -> None:
    write(tmp_path / "a")
    assert "94.5" not in {row["test_nll"] for row in published_in(tmp_path)}
    assert "scored on validation images" in tabulate(tmp_path, "markdown", published="all")


@pytest.mark.parametrize(
    ("model", "data", "nll", "where"),
    [
        ("nade", "static", 88.33, "static"),
        ("nade", "seeded", 88.33, "static"),
        ("fvsbn", "static", 97.45, "static"),
        ("fvsbn", "threshold", 97.45, "static"),
        ("nade", "dynamic", 84.0, "dynamic"),
        ("made", "static", 86.64, "static"),  # † is said in the table
        ("pixelcnn", "static", 81.3, "static"),
        ("EoNADE", "static", 85.1, "static"),
    ],
)
def test_the_reference_of_a_model(model: str, data: str, nll: float, where: str) -> None:
    p = published_for(model, data)
    assert p is not None
    assert (p.nll, p.data, p.kind, p.valid) == (nll, where, "exact", True)
    assert (f"a different test set than {data}" in p.protocol) == (data != where)
    assert ("not re-read" in p.protocol) == (not p.verified)


def test_models_nobody_published() -> None:
    assert published_for("tabular", "static") is None
    assert published_for("mlp", "seeded") is None


# ---- the summary of a run --------------------------------------------------------------------------


def shown(record: Record) -> str:
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(tables.summary(record))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_summary_of_a_run(tmp_path: Path) -> None:
    text = shown(Record.read(write(tmp_path / "a", data__name="seeded")))
    for part in ("88.40 ± 0.25 nats", "0.1627", "785,284 (784,784 effective)", "291 for 40 epochs", "numba"):
        assert part in text
    assert re.search(r"published +88\.33 nats \(NADE, Uria et al\., ICML 2014\): static test set", text)
    assert "exact; a different test set than seeded" in text
    assert f"seeded 28×28, SHA-256 {STATIC[:12]}" in text


def test_a_summary_without_reference_or_kernel() -> None:
    raw = content(kernel=None, data__side=14, data__n=196, parameters={"count": 7, "effective": 7})
    text = shown(Record.model_validate(raw))
    assert "published" not in text
    assert "kernel" not in text
    assert "effective" not in text


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (88.4, 0.25, "88.40 ± 0.25"),
        (8.8, 0.25, "8.800 ± 0.250"),
        (88.4, 0.0, "88.40 ± 0.00"),
        (88.4, 0.004, "88.400 ± 0.004"),
        (10.65, 0.00051, "10.6500 ± 0.0005"),
        (10.65, 1e-9, "10.6500 ± 0.0000"),
        (-0.194, 0.0049, "-0.194 ± 0.005"),
        (float("inf"), float("nan"), "inf ± nan"),
    ],
)
def test_an_error_has_a_digit(value: float, stderr: float, text: str) -> None:
    assert with_error(value, stderr) == text


# ---- formats ----------------------------------------------------------------------------------------

NASTY = 'a|b_c & 100% <i>"x", [/red] \\end{x} $#^~ ø ∑ \x1b[2J \u202e'


@pytest.fixture
def nasty(tmp_path: Path) -> Path:
    write(tmp_path / "a_b%", config__model__note=NASTY)
    write(tmp_path / "b", config__model__note="=plain", seed=1, nll__test__mean=89.0)
    (tmp_path / "left_over & <more>").mkdir()
    (tmp_path / "left_over & <more>" / "config.yaml").write_text("")
    return tmp_path


@pytest.mark.parametrize("form", FORMATS)
def test_no_control_character_gets_through(nasty: Path, form: str) -> None:
    text = tabulate(nasty, form, published="all", invalid=True, width=250)
    assert all(c.isprintable() or c == "\n" for c in text)
    assert "red" in text


def test_csv_reads_back_and_holds_no_formula(nasty: Path) -> None:
    parsed = rows(nasty, published="all", invalid=True)
    notes = [row["config.model.note"] for row in parsed if row["row"] == "run"]
    assert notes[0].startswith('a|b_c & 100% <i>"x", [/red] \\end{x} $#^~ ø ∑ ')
    assert notes[1] == "'=plain"
    assert [row["run"] for row in parsed if row["row"] == "unfinished"] == [str(nasty / "left_over & <more>")]
    assert all(None not in row and None not in row.values() for row in parsed)
    cells = csv_text([{"a": "-x", "b": -1.5, "c": "-1.5e3", "d": "@x", "e": "+1", "f": "\t=x"}]).splitlines()[1]
    assert cells == "'-x,-1.5,-1.5e3,'@x,+1,'=x"


def test_csv_has_a_line_a_run_on_request(tmp_path: Path) -> None:
    write_seeds(tmp_path, {0: 88.0, 1: 89.0})
    lines = rows(tmp_path, per="run")
    assert [(line["seeds"], line["test_nll"], line["config.optimizer.lr"]) for line in lines] == [
        ("0", "88.0", "0.001"), ("1", "89.0", "0.001")
    ]  # fmt: skip
    with pytest.raises(ValueError, match="per must be row, or run with format=csv, got 'run'"):
        tabulate(tmp_path, per="run")


def test_markdown_has_as_many_cells_in_every_row(nasty: Path) -> None:
    text = tabulate(nasty, "markdown", published="all", invalid=True, columns=["nll", "note"])
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(re.split(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert "<i>" not in text
    assert r"a\|b\_c &amp; 100%" in text


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_console_shows_every_number_whole(width: int) -> None:
    text = tabulate(ROOT / "results", width=width)
    assert {"84.86 ± 0.02", "87.076 ± 0.009", "10.6388 ± 0.0003"} <= set(re.findall(r"[\d.]+ ± [\d.]+", text))
    assert re.search(r"83\.50 ± 0\.21 +0\.1537 +12,558,272 +70\.4 +yes\n", text)
    assert max(map(len, text.splitlines())) <= max(width, 70)


def test_a_dozen_rows_fit_80_columns(tmp_path: Path) -> None:
    for k in range(12):
        write(tmp_path / str(k), model="transformer", config__model__hidden=1000 + k, nll__test__mean=80.0 + k / 100,
              parameters__count=12_345_678)  # fmt: skip
    lines = tabulate(tmp_path, width=80, published=False).splitlines()
    assert max(map(len, lines)) <= 80
    assert len([line for line in lines if line.startswith("transformer, ")]) == 12


def test_latex_is_escaped_and_marks_the_best() -> None:
    lines = [["NADE_5 (1)", "88.33 ± 0.02"], ["50% & more", "≤ 79.00"]]
    grid = Grid("static 28×28, test set x: NLL", [Column("model", True), Column("test NLL")],
                [Block(lines, "published", frozenset({(1, 1)}))], ["(1) Uria & al., 2014"])  # fmt: skip
    text = latex(grid)
    assert r"NADE\_5\textsuperscript{1} & 88.33 $\pm$ 0.02 \\" in text
    assert r"50\% \& more & \textbf{$\leq$ 79.00} \\" in text
    assert r"\caption{static 28$\times$28, test set x: NLL}\label{tab:static-28x28}" in text
    assert r"\textsuperscript{1} Uria \& al., 2014\par" in text
    assert text.isascii()


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_latex_compiles_within_the_width_of_a_page(nasty: Path) -> None:
    texts = [tabulate(nasty, "latex", published="all", invalid=True), tabulate(ROOT / "results", "latex")]
    document = "\\documentclass{article}\\usepackage{booktabs,tabularx}\\begin{document}\n%s\n\\end{document}"
    (nasty / "t.tex").write_text(document % "\n\n".join(texts))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=nasty, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert not re.findall(r"Overfull \\hbox \((?!\d\.)", done.stdout)  # ten points or more


def test_console_notes_and_labels_wrap() -> None:
    grid = Grid("t", [Column("model", True), Column("n")], [Block([["one two three", "1"]])], ["a long note " * 9])
    assert console(grid, 12).splitlines()[:6] == ["t", "─" * 12, "model      n", "─" * 12, "one two    1", "three"]


# ---- files ------------------------------------------------------------------------------------------

REQUIRED = {"model": str, "variant": str, "family": str, "data": str, "nll": float, "kind": str, "verified": bool}
CITED = {"cite": str, "paper": str}
OPTIONAL = {"source": str, "split": str, "error_bar": str, "params": str, "training": str, "notes": str}
VALUES: dict[str, set[object]] = {
    "data": {"static", "dynamic", "threshold", "unknown"},
    "kind": {"exact", "upper_bound", "estimate"},
    "split": {"test", "validation"},
    "valid_likelihood": {True, False, "doubtful"},
}


def published_rows() -> list[dict[str, Any]]:
    loaded = yaml.safe_load(Path(tables.__file__).with_name("published.yaml").read_text(encoding="utf-8"))
    assert isinstance(loaded, list)
    return loaded


def test_published_yaml_follows_its_schema() -> None:
    for row in published_rows():
        types = REQUIRED | CITED | OPTIONAL
        assert set(row) >= set(REQUIRED | CITED), row
        assert set(row) <= set(types) | {"valid_likelihood", "train_images"}, row
        assert row.get("train_images", 60_000) == 60_000, row
        assert all(type(row[key]) is types[key] for key in row if key in types), row
        assert all(row[key] in allowed for key, allowed in VALUES.items() if key in row), row
        assert 50 < row["nll"] < 300, row
        assert row["model"].strip()
        assert row["cite"].strip()
        assert len(row["cite"]) < 50


def test_published_yaml_gives_reasons_and_sources() -> None:
    for row in published_rows():
        if row.get("valid_likelihood", True) is not True:
            assert len(row.get("notes", "")) > 20, row
        if row["verified"]:
            assert row.get("source") or row["paper"].count("/") == 1 or row["kind"] != "exact", row


def test_published_yaml_has_no_row_twice() -> None:
    keys = [(r["model"], r["variant"], r["data"], r["cite"]) for r in published_rows()]
    assert len(keys) == len(set(keys))


def test_tabulate_yaml_has_the_arguments_of_tabulate() -> None:
    config = yaml.safe_load((ROOT / "conf" / "tabulate.yaml").read_text(encoding="utf-8"))
    arguments = inspect.signature(tabulate).parameters
    keys = set(config) - {"defaults", "hydra"}
    assert keys == set(arguments) - {"width"}
    assert config["runs"] == "???"
    assert all(config[key] == arguments[key].default for key in keys - {"runs"})


def test_tables_need_no_torch() -> None:
    code = (
        "import sys, chainrule.reporting.tables; assert not {'torch', 'lightning', 'hydra', 'wandb'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(ROOT / "src")})
