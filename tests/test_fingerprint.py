"""A fingerprint changes with what computes a number, and with nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from zoo import ROOT

from chainrule.runs.provenance import _git

PROBE = """
import importlib, json, sys
from hydra import compose, initialize_config_dir
from chainrule import CONF
from chainrule.runs.fingerprint import code_sha256, fingerprint, sources
for line in sys.stdin:
    importlib.invalidate_caches(), code_sha256.cache_clear(), sources.cache_clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        print(fingerprint(compose("train", overrides=json.loads(line))), flush=True)
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the program, and a model of somebody else's beside a helper of it."""
    folder = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "src/chainrule", folder / "chainrule", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "conf", folder / "chainrule/conf")
    (folder / "mine").mkdir()
    (folder / "mine/foo.py").write_text(
        "from mine.layers import f\n\ndef g():\n    import mine.late\n\nclass Foo: ...\n"
    )
    (folder / "mine/layers.py").write_text("f = 1\n")
    (folder / "mine/late.py").write_text("x = 1\n")
    (folder / "mine/other.py").write_text("x = 1\n")
    yield folder
    asked(folder).communicate()


@cache
def asked(tree: Path) -> subprocess.Popen[str]:
    """A process of that program, which says the fingerprint of each configuration that it is given."""
    environment = os.environ | {"PYTHONPATH": str(tree)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", PROBE], env=environment, **pipes)


def fingerprint(tree: Path, *overrides: str) -> str:
    process = asked(tree)
    print(json.dumps([f"hydra.searchpath=[file://{tree}]", *overrides]), file=process.stdin, flush=True)
    said = process.stdout.readline().strip()
    assert said, "it ended with an error"
    return said


unedited = cache(fingerprint)

TOY = ("data=toy", "model=nade")


@pytest.mark.parametrize(
    "file",
    ["reporting/tables.py", "cli.py", "models/tabular.py", "models/__init__.py", "runs/load.py", "files.py",
     "training/sweep.py", "evaluation/images.py", "data/mnist.py", "data/arrays.py"],
)  # fmt: skip
def test_an_edit_elsewhere_keeps_finished_runs_finished(file: str, tree: Path) -> None:
    assert not changes(tree / "chainrule" / file, tree, *TOY)


@pytest.mark.parametrize(
    "file",
    ["models/nade.py", "nn/roughness.py", "density.py", "kernels/nade_numba.py", "kernels/sampling_numba.py",
     "data/toy.py", "data/datamodule.py", "training/module.py", "training/schedules.py", "training/checkpoints.py"],
)  # fmt: skip
def test_an_edit_of_what_computes_makes_new_runs(file: str, tree: Path) -> None:
    assert changes(tree / "chainrule" / file, tree, *TOY)


def test_a_new_model_keeps_finished_runs_finished(tree: Path) -> None:
    assert not changes(tree / "chainrule/models/new.py", tree, *TOY)


@pytest.mark.parametrize(("file", "counts"), [("foo", True), ("layers", True), ("late", True), ("other", False)])
def test_a_model_of_somebody_else_counts_with_what_it_imports(file: str, counts: bool, tree: Path) -> None:
    words = ("data=toy", "model._target_=mine.foo.Foo")
    assert changes(tree / f"mine/{file}.py", tree, *words) == counts


def changes(file: Path, tree: Path, *words: str) -> bool:
    before, content = unedited(tree, *words), file.read_text() if file.exists() else None
    file.write_text((content or "") + "\n# a comment\n")
    try:
        return fingerprint(tree, *words) != before
    finally:
        file.unlink() if content is None else file.write_text(content)


@pytest.mark.parametrize(
    ("words", "counts"),
    [(["optimizer.lr=0.1"], True), (["seed=1"], True), (["data.side=4"], True), (["samples=1"], False),
     (["logger=none"], False), (["paths.runs=x"], False), (["tags=[a]"], False), (["+api_key=x"], False),
     (["trainer.enable_progress_bar=false"], False), (["resume=force"], False)],
)  # fmt: skip
def test_settings_count_where_they_can_change_a_number(words: list[str], counts: bool, tree: Path) -> None:
    assert (fingerprint(tree, *TOY, *words) != unedited(tree, *TOY)) == counts


def test_only_the_code_differs(tree: Path, tmp_path: Path) -> None:
    """It is said; ``resume=force`` goes on with it, and the record says that."""
    main = "from chainrule.cli import main; main()"
    words = ["train", "data=toy", "model=tabular", "logger=none", "samples=1", "trainer.max_epochs=1"]

    def train(*more: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(tree)}
        command = [sys.executable, "-c", main, *words, *more]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert train("hydra.run.dir=r").returncode == 0
    (tmp_path / "r/result.json").unlink()  # as if it had been interrupted
    file = tree / "chainrule/models/tabular.py"
    content = file.read_text()
    file.write_text(content + "\n# a comment\n")
    try:
        refused = train("hydra.run.dir=r")
        assert refused.returncode == 1
        assert "r holds a run that differs only by code: resume=force" in refused.stderr
        done = train("hydra.run.dir=r", "resume=force")
        assert done.returncode == 0, done.stderr
    finally:
        file.write_text(content)
    record = json.loads((tmp_path / "r/result.json").read_text())
    assert record["code_changed"] is True


def test_a_checkout_is_dirty_by_what_computes_and_not_by_records(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", tmp_path, *who, *words], check=True, capture_output=True)

    files = {name: tmp_path / name for name in ("mine/foo.py", "results/r/certificate.json")}
    for file in files.values():
        file.parent.mkdir(parents=True)
        file.write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    model, certificate = files.values()
    certificate.write_text("2")
    assert _git(model, [model])["dirty"] is False
    new = model.with_name("layers.py")
    new.write_text("3")
    assert _git(model, [model])["dirty"] is False
    assert _git(model, [model, new])["dirty"] is True
    new.unlink()
    model.write_text("4")
    assert _git(model, [model])["dirty"] is True
