"""The report is built from run directories made here, read back as HTML, and opened in a real browser."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, Page, chromium
from PIL import Image
from zoo import ROOT

from chainrule.reporting.report import growth, write_report
from chainrule.reporting.report.charts import HEIGHT, WIDTH, Axis, Curve, Scale, draw
from chainrule.reporting.report.figures import styles
from chainrule.reporting.report.gather import read_metrics, read_pixels
from chainrule.reporting.report.parts import sort_key
from chainrule.reporting.report.private import public, rerun, without_places

RESULTS, BENCH = ROOT / "results", ROOT / "docs/bench.json"
RECORD = json.loads((RESULTS / "nade-static-s0/result.json").read_text())
EVIL = '<script>alert("1")</script>'


def write_run(folder: Path, nll: float = 87.0, seed: int = 0, **changes: object) -> Path:
    """A run directory with everything in it; fields of the record are changed by their dotted name."""
    record = deepcopy(RECORD)
    record["overrides"] = ["data=static", f"seed={seed}", "paths.data_dir=/home/alice/mnist"]
    for name, value in {"nll__test__mean": nll, "nll__valid__mean": nll + 1, "seed": seed, **changes}.items():
        *path, last = name.split("__")
        place: Any = record
        for key in path:
            place = place[key]
        place[last] = value
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "result.json").write_text(json.dumps(record))
    write_metrics(folder / "metrics.csv", record["nll"]["valid"]["mean"])
    for name, gray in (("samples.png", 10), ("completions.png", 20)):
        Image.new("L", (16, 16), gray + seed).save(folder / name)
    np.savez(folder / "nll_test.npz", nll=np.full(10, nll), pixels=np.linspace(0, nll / 392, 784))
    return folder


def write_metrics(file: Path, end: float) -> None:
    lines = ["epoch,step,train/nll,val/nll"]
    for epoch in range(20):
        gap = 40 * 0.5**epoch
        lines += [f"{epoch},{epoch},,{end + gap}", f"{epoch},{epoch},{end - 2 + gap},"]
    file.write_text("\n".join(lines) + "\n")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two models, two seeds, a run that failed and one that was stopped."""
    top = tmp_path / "runs"
    for seed, nll in enumerate((87.25, 87.0)):
        write_run(top / f"sweep/nade-s{seed}", nll, seed)
        write_run(top / f"sweep/fvsbn-s{seed}", nll + 10, seed, model="fvsbn", parameters__count=307720)
    for name in ("failed", "stopped"):
        (top / name).mkdir()
        (top / name / "config.yaml").write_text("seed: 0\n")
    (top / "failed/failure.txt").write_text("NLL became nan in epoch 3, see /home/alice/runs/train.log\n")
    return top


class Parsed(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
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


def report(runs: Path, bench: Path | str = "none", published: bool = True) -> str:
    return write_report(runs, runs.parent / "report.html", bench, published).read_text()


def pictures(page: Parsed) -> list[np.ndarray]:
    contents = [base64.b64decode(img["src"].partition(",")[2]) for img in page.all("img")]
    return [np.asarray(Image.open(io.BytesIO(content))) for content in contents]


# ---- what is in it ----------------------------------------------------------------------------------


def test_records_alone_are_enough(tmp_path: Path) -> None:
    names = ("nade-static-s0", "fvsbn-static-s0", "nade-seeded-s0")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_bytes((RESULTS / name / "result.json").read_bytes())
    page = Parsed(write_report(tmp_path, tmp_path / "r.html", bench=BENCH).read_text())
    assert f"{len(names)} finished runs on 2 test sets" in page.text
    for row in RECORD["nll"]["test"], json.loads((RESULTS / "fvsbn-static-s0/result.json").read_text())["nll"]["test"]:
        assert f"{row['mean']:.2f} ± {row['stderr']:.2f}" in page.text
    assert "88.33" in page.text  # the published NADE, on the same images
    assert "chainrule train experiment=fvsbn data=static seed=0 trainer.enable_progress_bar=False" in page.text
    assert page.all("img") == []
    assert len(page.all("details")) == len(names)
    titles = [svg["aria-label"].partition(":")[0] for svg in page.all("svg") if "aria-label" in svg]
    assert titles == 2 * ["NLL against parameters", "NLL against training time"] + [
        "Parameters against pixels", "Training step against pixels", "Peak memory against pixels",
        "Parameters against hidden units", "Training step against hidden units",
    ]  # fmt: skip


def test_everything_of_a_run_is_shown(runs: Path) -> None:
    page = Parsed(report(runs))
    assert "4 finished runs on 1 test set" in page.text
    for title in ("Learning curves", "Samples", "Completions", "Nats per pixel", "Run it again", "Configuration"):
        assert title in page.text
    assert [row[:2] for row in page.rows[1:3]] == [["nade", "87.12 ± 0.12"], ["fvsbn", "97.12 ± 0.12"]]
    assert "sweep/ nade-s0" in page.text
    assert "hidden: 500" in page.text
    assert "chainrule train data=static seed=1" in page.text
    assert all(img["alt"] for img in page.all("img"))


def test_pictures_are_of_the_best_seed_by_validation(runs: Path) -> None:
    grays = [int(picture[0, 0]) for picture in pictures(Parsed(report(runs))) if picture.ndim == 2]
    assert grays == [11, 11, 21, 21]  # samples of seed 1 for both models, then completions


def test_maps_share_one_scale(tmp_path: Path) -> None:
    for name, high in (("nade", 1.0), ("fvsbn", 0.5)):
        run = write_run(tmp_path / "runs" / name, model=name)
        np.savez(run / "nll_test.npz", nll=np.ones(3), pixels=np.linspace(0, high, 784))
    maps = [picture for picture in pictures(Parsed(report(tmp_path / "runs"))) if picture.shape == (28, 28, 3)]
    brightness = sorted(int(picture.sum(-1).max()) for picture in maps)
    assert [int(picture[0, 0].sum()) for picture in maps] == 2 * [int(maps[0][0, 0].sum())]
    assert brightness[0] < 0.8 * brightness[1]
    assert "1.00 nats, all maps alike" in report(tmp_path / "runs")


def test_what_has_no_record_is_listed_with_its_reason(runs: Path) -> None:
    text = Parsed(report(runs)).text
    assert "failed failed: NLL became nan in epoch 3, see …/train.log" in text
    assert "stopped unfinished" in text


def test_a_folder_without_a_finished_run(tmp_path: Path) -> None:
    (tmp_path / "runs/killed").mkdir(parents=True)
    (tmp_path / "runs/killed/config.yaml").write_text("seed: 0\n")
    page = Parsed(report(tmp_path / "runs"))
    assert "0 finished runs, 1 without a result" in page.text
    assert "killed unfinished" in page.text
    jobs = [{"folder": name, "words": "", "fingerprint": ""} for name in ("killed", "waiting")]
    (tmp_path / "runs/sweep.json").write_text(json.dumps({"schema": 1, "key": "", "jobs": jobs}))
    assert "waiting never started" in Parsed(report(tmp_path / "runs")).text


def test_certificates(tmp_path: Path) -> None:
    for name, passed in (("nade", True), ("fvsbn", False)):
        run = write_run(tmp_path / "runs" / name, model=name, checkpoint_sha256="ab")
        checks = {"coding": {"passed": passed}}
        content = {"schema": 1, "passed": passed, "checkpoint_sha256": "ab", "test_nll": 87.0, "checks": checks}
        (run / "certificate.json").write_text(json.dumps(content))
    page = Parsed(report(tmp_path / "runs"))
    badges = [span["class"] for span in page.all("span") if span.get("class", "").startswith("badge")]
    assert sorted(badges) == 2 * ["badge no"] + 2 * ["badge yes"]  # in the table, and beside each run
    assert "Certificate: failed coding" in page.text


def test_missing_and_damaged_files_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = write_run(tmp_path / "runs/nade")
    (run / "samples.png").write_bytes((run / "samples.png").read_bytes()[:40])
    (run / "completions.png").write_text("<svg onload='alert(1)'/>")
    (run / "nll_test.npz").write_bytes(b"PK\x03\x04 torn")
    (run / "metrics.csv").unlink()
    with caplog.at_level(logging.WARNING):
        page = Parsed(report(tmp_path / "runs"))
    assert page.all("img") == []
    assert {name for name in ("samples.png", "completions.png", "nll_test.npz") if name in caplog.text} == {
        "samples.png", "completions.png", "nll_test.npz",
    }  # fmt: skip


def test_maps_of_old_runs_or_of_other_images(tmp_path: Path) -> None:
    file = tmp_path / "nll_test.npz"
    assert read_pixels(file, 3, 9) is None
    np.savez(file, nll=np.ones(5))
    assert read_pixels(file, 3, 9) is None
    np.savez(file, nll=np.ones(5), pixels=np.arange(9.0))
    assert read_pixels(file, 4, 16) is None
    assert read_pixels(file, 3, 9) == pytest.approx(np.arange(9.0).reshape(3, 3))
    np.savez(file, pixels=np.array([EVIL] * 9, dtype=object))
    assert read_pixels(file, 3, 9) is None  # pickles are not opened


def test_a_mixture_was_never_trained(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs/mixture")
    record = json.loads((run / "result.json").read_text())
    record["config"] = {"model": {"_target_": "chainrule.mixture.Mixture"}, "members": []}
    record["config"]["members"] = [{"run": f"../../home/alice/nade-{k}", "sha256": "ab"} for k in range(2)]
    for name in ("seconds", "epochs", "images_per_second", "best_epoch", "sampling", "overrides"):
        del record[name]
    record["nll"] = {"test": record["nll"]["test"]}
    (run / "result.json").write_text(json.dumps(record))
    text = report(tmp_path / "runs")
    assert "87.00" in text
    assert "NLL against training time" not in text
    assert "chainrule mix &#39;runs=…/nade-0,…/nade-1&#39;" in text
    assert "run: …/nade-1" in text
    assert "alice" not in text


# ---- curves, charts and cells -----------------------------------------------------------------------


def test_the_last_value_of_an_epoch_counts_and_torn_lines_do_not(tmp_path: Path) -> None:
    from chainrule.reporting.report.gather import _curve

    file = tmp_path / "metrics.csv"
    file.write_text("epoch,val/nll\n0,5\n1,4\n1,3.5\n2,nan\n3,\n,2\n4,2.\n5")
    assert _curve(read_metrics(file), "val/nll") == [(1, 5), (2, 3.5), (5, 2)]
    assert _curve(read_metrics(file), "train/nll") == []


def test_the_first_epochs_do_not_flatten_the_rest(runs: Path) -> None:
    text = report(runs)
    curves = text[text.index("Learning curves:") :]
    numbers = re.findall(r'text-anchor="end" dominant-baseline="central">([\d.]+)<', curves[: curves.index("</svg>")])
    assert max(map(float, numbers)) < 110  # the first epoch is at 138


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        (Axis(0, 10, 0, 100), ["0", "2", "4", "6", "8", "10"]),
        (Axis(0.4, 3.2, 0, 100, whole=True), ["1", "2", "3"]),
        (Axis(90, 1.1e6, 0, 100, log=True), ["100", "1k", "10k", "100k", "1M"]),
        (Axis(30, 160, 0, 100, log=True), ["50", "100"]),
    ],
)
def test_ticks(axis: Axis, values: list[str]) -> None:
    ticks = axis.ticks()
    assert [text for _, text in ticks] == values
    assert all(0 <= place <= 100 for place, _ in ticks)


def test_places_on_axes() -> None:
    assert Axis(1, 3, 200, 0).place(1.5) == 150
    assert Axis(1, 10_000, 0, 400, log=True).place(100) == 200


@pytest.mark.parametrize("seed", range(5))
def test_labels_stand_apart_and_inside(seed: int) -> None:
    draws = random.Random(seed)
    points = [[(draws.uniform(1, 1e6), draws.gauss(80, 5))] for _ in range(7)]
    curves = [Curve(p, k, f"model-{k} x={k}", line=False, marks=p) for k, p in enumerate(points)]
    chart = draw("t", curves, Scale("x", log=True), Scale("y"))
    assert chart is not None
    boxes = [label.box() for label in chart.labels]
    assert len(boxes) >= 5  # where there is no room, none is better than one upon another
    assert all(box[0] >= 0 and box[1] >= 0 and box[2] <= WIDTH and box[3] <= HEIGHT for box in boxes)
    for k, a in enumerate(boxes):
        assert not any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for b in boxes[:k])


def test_nothing_to_draw() -> None:
    unusable = [Curve([(0, 1), (float("nan"), 1), (1, float("inf"))])]
    assert draw("t", unusable, Scale("x", log=True), Scale("y")) is None


def test_more_rows_than_colours(tmp_path: Path) -> None:
    for k in range(12):
        config = deepcopy(RECORD["config"]) | {"model": RECORD["config"]["model"] | {"hidden": 10 + k}}
        write_run(tmp_path / f"runs/{k:02}", 80 + k, config=config)
    page = Parsed(report(tmp_path / "runs", published=False, bench=BENCH))
    swatches = [svg["class"].rpartition("-")[2] for svg in page.all("svg") if "swatch" in svg.get("class", "")]
    assert swatches[:12] == [*map(str, range(7)), *5 * ["7"]]
    assert "Gray: rows for which there is no colour left" in page.text
    lines = [path["class"] for path in page.all("path") if path.get("class", "").startswith("line")][-4:]
    assert not any("hue-7" in name for name in lines)


@pytest.mark.parametrize(
    ("text", "words", "key"),
    [
        ("87.03 ± 0.22", False, 87.03), ("785,284", False, 785284), ("≤ 79.20†", False, 79.2), ("", False, None),
        ("1e-05", True, 1e-5), ("numba", True, None), ("2 seeds", True, None), ("500", True, 500), ("nan", False, None),
    ],
)  # fmt: skip
def test_what_cells_are_sorted_by(text: str, words: bool, key: float | None) -> None:
    assert sort_key(text, words) == key


# ---- growth -----------------------------------------------------------------------------------------


def test_every_growth_curve_has_its_name_and_the_measured_power() -> None:
    content = json.loads(BENCH.read_text())
    drawn = growth.charts(content, styles(growth.models(content)))
    names = [sorted(label.text.split()[0] for label in chart.labels) for chart in drawn]
    assert names == 2 * [["fvsbn", "mlp", "nade", "tabular"]] + 2 * [["mlp", "nade"]]
    assert "fvsbn n²·⁰⁰" in [label.text for label in drawn[0].labels]
    assert growth.claims(content) == "2ⁿ for tabular, n² for fvsbn, n²d for mlp, nd for nade"


def test_a_claim_ends_where_the_measurement_ends() -> None:
    content = json.loads(BENCH.read_text())
    claimed, measured = growth.charts(content, styles(growth.models(content)))[0].lines[2:4]  # of fvsbn
    assert (claimed.dashed, measured.dashed) == (True, False)
    assert claimed.path.rpartition("L")[2] == measured.path.rpartition("L")[2]


def test_a_bench_at_hand_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert growth.read_bench("auto", [tmp_path]) is None
    content = json.loads(BENCH.read_text())
    for day in ("20260101", "20260102"):
        (tmp_path / f"bench-{day}").mkdir()
        (tmp_path / f"bench-{day}/bench.json").write_text(json.dumps(content | {"date": day}))
    found = growth.read_bench("auto", [tmp_path])
    assert found is not None
    assert found["date"] == "20260102"
    assert growth.read_bench("none", [tmp_path]) is None


@pytest.mark.parametrize("content", ["{}", "[1]", "{", '{"growth": {"points": [{"model": 1}], "fits": []}}', "null"])
def test_what_is_no_bench(content: str, tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(content)
    with pytest.raises(ValueError, match=r"b\.json holds no growth that `chainrule bench` measured; bench=none"):
        write_report(RESULTS, tmp_path / "r.html", bench=tmp_path / "b.json")


# ---- safe to hand around ----------------------------------------------------------------------------


def assert_self_contained(text: str) -> None:
    page = Parsed(text)
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "data", "poster", "srcset", "background"):
            address = attributes.get(name, "data:")
            assert address.startswith(("data:", "#")), (tag, address)
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
    assert not re.search(r"@import|url\(", text)
    assert "default-src 'none'" in page.all("meta")[1]["content"]


def test_nothing_is_loaded_from_anywhere(runs: Path, tmp_path: Path) -> None:
    assert_self_contained(report(runs, bench=BENCH))
    assert_self_contained(write_report(RESULTS, tmp_path / "r.html", published="all").read_text())


def test_only_our_own_script_may_run(runs: Path) -> None:
    text = report(runs)
    script = text[text.index("<script>") + len("<script>") : text.index("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


def write_evil(top: Path) -> Path:
    config = deepcopy(RECORD["config"]) | {EVIL: EVIL, "note": '"><img src=x onerror=alert(1)>'}
    evil = {"model": EVIL, "kernel": EVIL, "git__commit": EVIL, "date": EVIL, "data__name": EVIL, "hardware__cpu": EVIL}
    run = write_run(top / "<b>run", overrides=[f"model={EVIL}", "</code></pre><script>"], config=config, **evil)
    write_run(top / "plain", 90.0, config=config | {"note": EVIL}, **evil)
    (run.parent / "<img src=x>").mkdir()
    (run.parent / "<img src=x>/failure.txt").write_text(f"{EVIL} {{{{ 7 * 7 }}}}")
    return top


def test_words_of_records_are_never_markup(tmp_path: Path) -> None:
    text = report(write_evil(tmp_path / "runs"))
    page = Parsed(text)
    assert len(page.all("script")) == 1
    assert page.all("b") == []
    assert all(img["src"].startswith("data:image/png;base64,") for img in page.all("img"))
    assert EVIL in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert_self_contained(text)


def test_secrets_and_places_stay_at_home(tmp_path: Path) -> None:
    config = deepcopy(RECORD["config"])
    config["logger"]["wandb"] |= {"entity": "alice-team", "api_key": "hunter2", "save_dir": "x"}
    config["data"]["data_dir"] = "/home/alice/mnist"
    config["model"]["init"] = "/home/alice/weights.pt"
    words = [
        "data=static",
        "logger.wandb.api_key=hunter2",
        "+data.root=/home/alice",
        "model.init=/home/alice/weights.pt",
    ]
    write_run(tmp_path / "runs/a", config=config, overrides=words)
    write_run(tmp_path / "runs/b", config=config, overrides=words, date="2027-01-01T00:00:00+00:00")  # the same again
    text = report(tmp_path / "runs")
    for secret in ("alice", "hunter2", str(tmp_path)):
        assert secret not in text
    assert "chainrule train data=static 'model.init=…/weights.pt'" in Parsed(text).text


@pytest.mark.parametrize(
    ("text", "shortened"),
    [
        ("see /home/alice/runs/train.log", "see …/train.log"), ("~/data", "…/data"), (r"C:\Users\me\x.pt", "…/x.pt"),
        ("13,149 images/s and bits/pixel", "13,149 images/s and bits/pixel"),
        ("http://example.org/a/b", "http://example.org/a/b"), ("../shared/data", "../shared/data"),
        ("1 / 2 and 2.5e-3/step", "1 / 2 and 2.5e-3/step"),
    ],
)  # fmt: skip
def test_places_in_texts(text: str, shortened: str) -> None:
    assert without_places(text) == shortened


def test_private_keys_at_any_depth() -> None:
    config = {
        "paths": {"runs": "x"},
        "a": [{"token": "t", "lr": 1}],
        "monkey": 2,
        "data": {"cache_dir": "c", "side": 4},
    }
    assert public(config) == {"a": [{"lr": 1}], "monkey": 2, "data": {"side": 4}}


def test_the_command_can_be_pasted() -> None:
    words = ["experiment=x", "hydra.run.dir=a", "paths.runs=b", "callbacks=[ema,early stop]", "~callbacks.ema"]
    assert (
        rerun({"config": {}, "overrides": words})
        == "chainrule train experiment=x 'callbacks=[ema,early stop]' '~callbacks.ema'"
    )
    mixture = {"members": [{"run": "../a"}, {"run": "../b"}]}
    assert rerun({"config": mixture, "overrides": ["runs=here", "seed=3"]}) == "chainrule mix runs=here seed=3"
    assert rerun({"config": mixture, "overrides": ["seed=3"]}) == "chainrule mix seed=3 'runs=…/a,…/b'"


# ---- the command ------------------------------------------------------------------------------------


def chainrule(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("chainrule")), "report", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_the_command(tmp_path: Path) -> None:
    done = chainrule(f"runs={RESULTS},{RESULTS}", "out=a report, new.html", f"bench={BENCH}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "written: a report, new.html\n"
    assert "Growth" in (tmp_path / "a report, new.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["a report, new.html"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "report.pdf"}, r"out must end in \.html, got report\.pdf"),
        ({"runs": "nowhere"}, "nowhere does not exist"),
        ({"runs": "empty"}, "no run found in empty: give run directories"),
        ({"published": "some"}, "published must be true, false, verified or all, got 'some'"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        write_report(**{"runs": RESULTS, "out": "r.html", **options})
    assert not list(tmp_path.glob("*.html"))


def test_a_report_needs_no_torch() -> None:
    check = "import sys, chainrule.reporting.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


# ---- in a browser -----------------------------------------------------------------------------------

in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed (Debian: apt install chromium)")


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with chromium() as page:
        yield page


def column(page: Page, name: str, block: int = 0) -> list[str]:
    """The cells of a column of the first table, from the top."""
    names = [text.strip() for text in page.value("[...document.querySelectorAll('thead th')].map(th => th.innerText)")]
    rows = f"[...document.querySelector('table').tBodies[{block}].querySelectorAll('tr:not(.block)')]"
    cells: list[str] = page.value(f"{rows}.map(tr => tr.cells[{names.index(name)}].innerText.trim())")
    return cells


@in_a_browser
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_it_opens_without_complaints(runs: Path, page: Page, width: int, dark: bool, tmp_path: Path) -> None:
    report(runs, bench=BENCH)
    page.open(tmp_path / "report.html", width=width, phone=width < 500, dark=dark)
    assert page.complaints() == []
    assert all(address.startswith(("file:", "data:")) for address in page.requests())
    assert page.value("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert page.value("document.documentElement.scrollWidth") == width  # only tables scroll sideways
    page.screenshot(tmp_path / "page.png")
    picture = np.asarray(Image.open(tmp_path / "page.png").convert("L"))
    assert (np.median(picture) < 60) == dark
    assert 0.01 < np.mean(np.abs(picture - float(np.median(picture))) > 60) < 0.6


@in_a_browser
def test_a_click_on_a_header_sorts(runs: Path, page: Page, tmp_path: Path) -> None:
    report(runs)
    page.open(tmp_path / "report.html")
    parameters = next(k for k, th in enumerate(Parsed(report(runs)).rows[0], 1) if th == "parameters")
    assert column(page, "parameters") == ["785,284", "307,720"]
    theirs = column(page, "test NLL", block=1)
    page.click(f"thead th:nth-child({parameters}) button")
    assert column(page, "parameters") == ["307,720", "785,284"]
    assert column(page, "model") == ["fvsbn", "nade"]
    page.click(f"thead th:nth-child({parameters}) button")
    assert column(page, "parameters") == ["785,284", "307,720"]
    assert page.value("[...document.querySelectorAll('th[aria-sort]')].map(th => th.ariaSort)") == ["descending"]
    assert column(page, "test NLL", block=1) == theirs  # published numbers stay below, whatever they lack
    assert page.complaints() == []


@in_a_browser
def test_the_keyboard_sorts_as_well(runs: Path, page: Page, tmp_path: Path) -> None:
    report(runs)
    page.open(tmp_path / "report.html")
    page.value("document.querySelector('.scroll').focus()")
    page.press("Tab")
    assert page.value("document.activeElement.innerText").strip() == "model"
    page.press("Enter", "\r")
    assert column(page, "model") == ["fvsbn", "nade"]
    page.press(" ", " ")
    assert column(page, "model") == ["nade", "fvsbn"]
    assert column(page, "model", block=1)[0] > column(page, "model", block=1)[-1]


@in_a_browser
def test_a_hostile_record_does_nothing(page: Page, tmp_path: Path) -> None:
    report(write_evil(tmp_path / "runs"))
    page.open(tmp_path / "report.html")
    assert page.value("document.scripts.length") == 1
    assert not page.has_happened("Page.javascriptDialogOpening")
    assert page.complaints() == []


@in_a_browser
def test_the_browser_would_refuse_a_script_of_somebody_else(runs: Path, page: Page, tmp_path: Path) -> None:
    text = report(runs).replace("</body>", "<script>document.title = 'broken'</script></body>")
    (tmp_path / "forged.html").write_text(text)
    page.open(tmp_path / "forged.html")
    assert page.value("document.title") == "chainrule report"
    assert page.complaints() != []
