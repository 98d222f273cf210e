"""The report is built from run directories made here and read back as HTML; its charts are files that papers take."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from copy import deepcopy
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from zoo import ROOT

from chainrule.reporting import charts
from chainrule.reporting.report import curve, read_metrics, write_report

RESULTS = ROOT / "results"
RECORD = json.loads((RESULTS / "nade-static-s0/result.json").read_text())
EVIL = '<script>alert("1")</script>'


def write_run(folder: Path, nll: float = 87.0, seed: int = 0, **changes: object) -> Path:
    """A run directory with everything in it; fields of the record are changed by their dotted name."""
    record = deepcopy(RECORD)
    for name, value in {"nll__test__mean": nll, "nll__valid__mean": nll + 1, "seed": seed, **changes}.items():
        *path, last = name.split("__")
        place: Any = record
        for key in path:
            place = place[key]
        place[last] = value
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(record))
    lines = ["epoch,step,train/nll,val/nll"]
    for epoch in range(20):
        gap = 40 * 0.5**epoch
        lines += [f"{epoch},{epoch},,{nll + 1 + gap}", f"{epoch},{epoch},{nll - 1 + gap},"]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    for name, gray in (("samples.png", 10), ("completions.png", 20)):
        Image.new("L", (16, 16), gray + seed).save(folder / name)
    np.savez(folder / "nll_test.npz", nll=np.full(10, nll), pixels=np.linspace(0, nll / 392, 784))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two models, two seeds, a run that failed, one that was stopped and a partial one."""
    top = tmp_path / "runs"
    for seed, nll in enumerate((87.25, 87.0)):
        write_run(top / f"sweep/nade-s{seed}", nll, seed)
        write_run(top / f"sweep/fvsbn-s{seed}", nll + 10, seed, model="fvsbn", parameters__count=307720)
    write_run(top / "smoke", 70.0, complete=False)
    for name in ("failed", "stopped"):
        (top / name).mkdir()
        (top / name / "config.yaml").write_text("seed: 0\n")
    (top / "failed/failure.txt").write_text(f"NLL became nan in epoch 3, see {top.resolve()}/failed/train.log\n")
    return top


class Parsed(HTMLParser):
    """The elements of a page with their attributes, its rows and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_everything_is_in_one_page(runs: Path) -> None:
    (file,) = write_report(runs, runs.parent / "r.html", bench="none")
    page = Parsed(text := file.read_text())
    assert "4 finished runs on 1 test set," in page.text
    header, ours, theirs = page.rows[0], page.rows[1], next(row for row in page.rows if row[0].startswith("NADE ("))
    assert header[:4] == ["model", "test NLL", "published", "bits/pixel"]
    assert ours[:2] == ["nade", "87.12 ± 0.12"]
    assert theirs[1] == "88.33"
    titles = [image["alt"] for image in page.all("img")]
    assert titles == [
        "Learning curves", "NLL against parameters", "NLL against minutes of training", "Nats per pixel",
        *["Samples of nade", "Samples of fvsbn"], *["Completions of nade", "Completions of fvsbn"],
    ]  # fmt: skip
    command = "chainrule train experiment=nade data=static seed=0"
    assert command in page.text
    assert "smoothness: 0.0" in text
    assert "smoke: trained or scored on some batches only" in page.text
    assert "failed: failed: NLL became nan in epoch 3, see failed/train.log" in page.text
    assert "unfinished: stopped" in page.text
    assert str(runs.parent) not in text
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", text)  # needs no network


def test_records_alone_are_enough(tmp_path: Path) -> None:
    names = ("nade-static-s0", "mixture-static-s0", "nade-seeded-s0")
    for name in names:
        (tmp_path / name).mkdir()
        shutil.copy(RESULTS / name / "result.json", tmp_path / name)
    (file,) = write_report(tmp_path, tmp_path / "r.html", bench=ROOT / "docs/bench.json")
    page = Parsed(file.read_text())
    assert "3 finished runs on 2 test sets" in page.text
    assert len(page.all("details")) == 3
    assert "chainrule mix" in page.text


def test_what_a_stranger_wrote_is_text(runs: Path) -> None:
    write_run(runs / "evil", 88.0, model=EVIL, overrides=[EVIL], config__model__note=EVIL, hardware__cpu=EVIL)
    (runs / "failed/failure.txt").write_text(EVIL)
    text = write_report(runs, runs.parent / "r.html", bench="none")[0].read_text()
    assert EVIL not in text
    assert text.count("<script>") == 1
    assert "&lt;script&gt;" in text


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n torn", b"GIF89a"])
def test_damaged_files_are_left_out(runs: Path, content: bytes) -> None:
    for file in runs.rglob("samples.png"):
        file.write_bytes(content)
    for file in runs.rglob("metrics.csv"):
        file.write_bytes(content)
    for file in runs.rglob("nll_test.npz"):
        file.write_bytes(content)
    titles = {
        i["alt"] for i in Parsed(write_report(runs, runs.parent / "r.html", bench="none")[0].read_text()).all("img")
    }
    assert titles == {
        "NLL against parameters", "NLL against minutes of training", "Completions of nade", "Completions of fvsbn"
    }  # fmt: skip


def test_curves_have_the_last_finite_value_of_each_epoch(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,val/nll\n0,9\n0,8\n1,nan\n2,7\n2,x\n3")
    assert curve(read_metrics(tmp_path / "metrics.csv"), "val/nll") == [(1, 8.0), (3, 7.0)]
    assert read_metrics(tmp_path / "absent") == []


def test_figures_are_written_for_papers(runs: Path, tmp_path: Path) -> None:
    _, *files = write_report(runs, tmp_path / "r.html", bench="none", figures=tmp_path / "figures")
    names = {"learning-curves", "nll-parameters", "nll-minutes", "nats-per-pixel", "samples", "completions"}
    expected = {f"static-28x28-{name}" for name in names}
    assert {file.name for file in files} == {f"{name}.{form}" for name in expected for form in ("pdf", "svg")}
    for file in files:
        content = file.read_bytes()
        assert content.startswith(b"%PDF" if file.suffix == ".pdf" else b"<?xml")
    (width,) = re.findall(
        rb"/MediaBox \[ 0 0 ([\d.]+) ", (tmp_path / "figures/static-28x28-nll-minutes.pdf").read_bytes()
    )
    assert float(width) == pytest.approx(72 * charts.COLUMN)


def test_a_legend_names_every_row_once_and_each_looks_its_own() -> None:
    labels = [f"model {k}" for k in range(14)]
    figure = charts.nll_against([(label, 10.0 + k, 80.0 + k, 0.1) for k, label in enumerate(labels * 2)], "parameters")
    assert figure is not None
    assert [text.get_text() for text in figure.legends[0].get_texts()] == labels
    assert len({str(charts.styles(labels)[label]) for label in labels}) == 14
    assert charts.nll_against([("a", None, 80.0, 0.1)], "minutes") is None
    assert charts.learning_curves([("a", [], [], 1)]) is None


def test_a_chart_is_the_same_bytes_each_time(runs: Path) -> None:
    texts = [write_report(runs, runs.parent / f"{k}.html", bench="none")[0].read_text() for k in range(2)]
    assert re.findall("data:image/svg[^\"']*", texts[0]) == re.findall("data:image/svg[^\"']*", texts[1])


def test_what_cannot_work_is_said(runs: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ({"out": "r.pdf"}, "out must end in .html"),
        ({"published": "some"}, "published must be"),
        ({"bench": runs / "failed/failure.txt"}, "no valid JSON|holds no growth"),
    ):
        with pytest.raises(ValueError, match=message):
            write_report(runs, **{"out": tmp_path / "r.html", **arguments})  # type: ignore[arg-type]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no run found"):
        write_report(tmp_path / "empty", tmp_path / "r.html")


def test_the_report_needs_no_torch() -> None:
    check = "import sys, chainrule.reporting.report; sys.exit(bool({'torch', 'hydra', 'wandb'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", check], check=True, env={"PYTHONPATH": str(ROOT / "src")})


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser here")
def test_a_browser_shows_the_table(runs: Path, tmp_path: Path) -> None:
    (file,) = write_report(runs, tmp_path / "r.html", bench="none")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--window-size=390,900"]
    shot = tmp_path / "shot.png"
    subprocess.run([*command, f"--screenshot={shot}", file.as_uri()], check=True, capture_output=True, timeout=120)
    pixels = np.asarray(Image.open(io.BytesIO(shot.read_bytes())).convert("L"))
    assert pixels.shape[1] == 390
    assert (pixels < 100).any()
