"""Comparisons are of hand-made scores whose differences are worked out here, independently."""

from __future__ import annotations

import csv
import inspect
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from test_tables import OTHER, ROOT, write

from chainrule import cli
from chainrule.reporting.compare import compare, table
from chainrule.reporting.render import FORMATS
from chainrule.runs.record import Estimate, Record

RNG = np.random.default_rng(3)
EASY = RNG.normal(80, 20, 1000)  # how hard each image is, for every model


def run(folder: Path, nll: np.ndarray, **changes: object) -> Path:
    """A run directory whose images have these NLLs."""
    changes["nll__test"] = {
        "mean": float(nll.mean()),
        "stderr": float(nll.std(ddof=1) / len(nll) ** 0.5),
        "count": len(nll),
    }
    changes["bits_per_pixel"] = float(nll.mean() / np.log(2) / 784)
    np.savez_compressed(write(folder, **changes) / "nll_test.npz", nll=nll)
    return folder


def test_a_paired_difference(tmp_path: Path) -> None:
    nll = np.array([3.0, 5.0, 4.0, 8.0])
    a = run(tmp_path / "a", nll)
    b = run(tmp_path / "b", nll + np.array([-1.0, 0.0, -2.0, 1.0]))
    (d,) = compare([a, b])
    # mean −2/4; deviations −0.5, 0.5, −1.5, 1.5; sample variance 5/3; error √(5/3/4)
    assert (d.mean, d.better, d.worse) == (pytest.approx(-0.5), 2, 1)
    assert d.stderr == pytest.approx((5 / 12) ** 0.5)
    (back,) = compare([b, a])
    assert (back.mean, back.better, back.worse) == (pytest.approx(0.5), 1, 2)


def test_what_all_images_share_is_no_uncertainty(tmp_path: Path) -> None:
    a = run(tmp_path / "a", EASY)
    b = run(tmp_path / "b", EASY - 0.3 + RNG.normal(0, 0.5, len(EASY)))
    (d,) = compare([a, b])
    assert Record.read(b).test.stderr > 0.5  # the two NLLs alone would show nothing
    assert d.stderr < 0.02
    assert d.clear
    assert d.low < d.mean < d.high < 0
    assert (d.low, d.high) == pytest.approx((d.mean - 1.96 * d.stderr, d.mean + 1.96 * d.stderr))


def test_no_difference_is_not_clear(tmp_path: Path) -> None:
    noise = RNG.normal(0, 1, len(EASY))
    (d,) = compare([run(tmp_path / "a", EASY), run(tmp_path / "b", EASY + noise - noise.mean())])
    assert not d.clear
    assert "1 of 1 intervals include zero" in table([d], "markdown")


def test_the_interval_is_95_percent() -> None:
    """It covers the mean as often as it says: of skewed differences, within three standard errors of 300 draws."""
    hits = 0
    for k in range(300):
        d = np.random.default_rng(k).exponential(2.0, 400)
        estimate = Estimate.of(d)
        hits += abs(estimate.mean - 2.0) < 1.96 * estimate.stderr
    assert abs(hits / 300 - 0.95) < 3 * (0.95 * 0.05 / 300) ** 0.5


def test_seeds_in_one_folder_are_averaged(tmp_path: Path) -> None:
    shifts = {"fvsbn": 10.0, "nade": 0.0}
    for model, shift in shifts.items():
        for seed in (0, 1):
            run(tmp_path / model / str(seed), EASY + shift + seed, seed=seed, model=model)
    (d,) = compare([tmp_path / "fvsbn", tmp_path / "nade"])
    assert d.mean == pytest.approx(-10)
    np.testing.assert_allclose(d.other.nll, EASY + 0.5)
    (best_first,) = compare(tmp_path)
    assert (best_first.reference.row.first.model, best_first.mean) == ("nade", pytest.approx(10))
    text = table([d], "markdown")
    assert "fvsbn (2 seeds)" in text
    assert "nade (2 seeds)" in text
    assert "about images, not about seeds" in text


def test_more_than_two_are_compared_with_the_first(tmp_path: Path) -> None:
    paths = [run(tmp_path / name, EASY + k, config__model__hidden=k) for k, name in enumerate("abc")]
    found = compare(paths)
    assert [d.mean for d in found] == pytest.approx([1, 2])
    assert {d.reference.row.first.path.name for d in found} == {"a"}


def test_runs_of_one_configuration_are_told_apart(tmp_path: Path) -> None:
    paths = [run(tmp_path / str(seed) / "x", EASY + seed, seed=seed) for seed in (0, 1)]
    text = table(compare(paths), "csv")
    assert [row["run"] for row in csv.DictReader(io.StringIO(text))] == [str(paths[1])]
    assert str(paths[0]) in table(compare(paths), "console", width=1000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data__sha256__test": OTHER}, "a was scored on static 28×28 (SHA-256 ca0294c3…)"),
        ({"data__sha256__test": OTHER, "data__name": "seeded"}, "b was scored on seeded 28×28 (SHA-256 b2b2b2b2…)"),
    ],
)
def test_other_test_images_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    paths = [run(tmp_path / "a", EASY), run(tmp_path / "b", EASY, **change)]
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        compare(paths)
    assert "needs the same test images" in str(error.value)


def test_a_folder_of_two_test_sets_is_two_tables(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for k, name in enumerate("abcde"):
        other = (
            {"data__sha256__test": OTHER} if name in "bd" else {"data__sha256__test": "c3" * 32} if name == "e" else {}
        )
        run(tmp_path / name, EASY + k, config__model__hidden=k, **other)
    found = compare(tmp_path)
    pairs = [(d.reference.row.first.path.name, d.other.row.first.path.name) for d in found]
    assert sorted(pairs) == [("a", "c"), ("b", "d")]
    assert "e was scored on static" in caplog.text
    text = table(found, width=200)
    assert text.count("negative: better") == 2
    assert len([*csv.DictReader(io.StringIO(table(found, "csv")))]) == 2


def save(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def save_one(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "nll_test.npz is missing: the record alone"),
        (b"", "is damaged: it holds no numbers under the name nll"),
        (b"PK\x03\x04 torn", "is damaged"),
        (save_one(EASY), "is damaged"),
        (save(nll=EASY)[:3000], "is damaged"),
        (save(other=EASY), "is damaged"),
        (save(nll=np.array([{}], dtype=object)), "is damaged"),  # a pickle
        (save(nll=EASY[:10]), "is not of this run: 10 images"),
        (save(nll=EASY + 1), "is not of this run"),
        (save(nll=np.append(EASY[1:], np.inf)), "1 of the nll are not finite"),
    ],
)
def test_scores_that_are_not_there_or_not_right(tmp_path: Path, content: bytes | None, message: str) -> None:
    paths = [run(tmp_path / name, EASY) for name in "ab"]
    file = paths[1] / "nll_test.npz"
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        compare(paths)


def test_scores_are_read_whatever_is_stored_beside_them(tmp_path: Path) -> None:
    a, b = (run(tmp_path / name, EASY) for name in "ab")
    np.savez_compressed(b / "nll_test.npz", nll=EASY, pixels=np.zeros(9))
    assert compare([a, b])[0].mean == 0


def test_a_bit_that_flipped_is_noticed(tmp_path: Path) -> None:
    a, b = (run(tmp_path / name, EASY) for name in "ab")
    content = bytearray((b / "nll_test.npz").read_bytes())
    content[len(content) // 2] ^= 4
    (b / "nll_test.npz").write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        compare([a, b])


def test_too_few_runs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least two finished runs, and there is 1 in"):
        compare(run(tmp_path / "a", EASY))
    with pytest.raises(ValueError, match="does not exist"):
        compare([tmp_path / "a", tmp_path / "nowhere"])


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_has_the_figures(tmp_path: Path, form: str) -> None:
    nll = np.array([3.0, 5.0, 4.0, 8.0])
    differences = compare([run(tmp_path / "a", nll), run(tmp_path / "b", nll + np.array([-1.0, 0.0, -2.0, 1.0]))])
    text = table(differences, form)
    assert all(figure in text for figure in ("-0.5", "0.645", f"{differences[0].low:.3f}"[:5], "4.5"))
    with pytest.raises(ValueError, match="unknown format 'pdf'"):
        table(differences, "pdf")


def test_the_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "a", EASY)
    run(tmp_path / "b", EASY - 2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["chainrule", "compare", "runs=a,b", "format=markdown"])
    cli.main()
    text = capsys.readouterr().out
    assert re.search(r"\| b \| [\d.]+ \| -2\.000 ± 0\.000 \| -2\.000 to -2\.000 \| 1,000 \| 0 \|", text)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_compare_yaml_has_the_arguments() -> None:
    config = yaml.safe_load((ROOT / "conf" / "compare.yaml").read_text(encoding="utf-8"))
    arguments = inspect.signature(compare).parameters
    assert set(config) - {"defaults", "hydra", "format"} == set(arguments)
    assert config["runs"] == "???"


def test_comparing_needs_no_torch() -> None:
    code = "import sys, chainrule.reporting.compare; assert not {'torch', 'lightning', 'hydra'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(ROOT / "src")})
