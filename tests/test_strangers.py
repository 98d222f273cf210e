"""A model from outside the package works like one inside; what a run directory names runs only if it is trusted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import finish

MODEL = '''
import torch
from mine.layers import activation
from chainrule.density import AutoregressiveDensity


class Foo(AutoregressiveDensity):
    """Every pixel from the mean of those before it."""

    def __init__(self, *, shape, scale=1.0):
        super().__init__(shape=shape, order="raster")
        self.weight = torch.nn.Parameter(torch.zeros(self.dim) + 0.01 * scale)
        self.bias = torch.nn.Parameter(torch.zeros(self.dim))

    def conditionals(self, z):
        before = torch.cumsum(z, 1) - z
        return self.bias + self.weight * activation(before)
'''
TRAIN = ["train", "--config-dir=configs", "model=foo", "data=toy", "logger=none", "trainer.max_epochs=2", "samples=2"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    (folder / "mine").mkdir()
    (folder / "configs/model").mkdir(parents=True)
    (folder / "mine/foo.py").write_text(MODEL)
    (folder / "mine/layers.py").write_text("import torch\n\nactivation = torch.relu\n")
    (folder / "configs/model/foo.yaml").write_text("_target_: mine.foo.Foo\nscale: 1.0\n")
    return folder


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    code, said = finish(TRAIN, home)
    assert code == 0, said
    (run,) = home.glob("runs/foo-toy-s0-*")
    return run


def test_it_is_trained_and_every_verb_knows_it(home: Path, run: Path) -> None:
    record = json.loads((run / "result.json").read_text())
    assert record["model"] == "foo"
    assert "order" not in record  # its configuration has none
    assert finish(TRAIN, home)[1].count("already finished") == 1
    for words in (["evaluate"], ["sample", "n=4"], ["complete", "n=2"], ["certify", "n=5"]):
        code, said = finish([*words, f"run={run}", "trust=mine.foo"], home)
        assert code == 0, said
    assert "foo" in finish(["tabulate", "runs=runs", "published=false"], home)[1]


def test_its_code_is_part_of_its_fingerprint(home: Path, run: Path) -> None:
    layers = home / "mine/layers.py"
    before = layers.read_text()
    layers.write_text(before.replace("relu", "tanh"))
    try:
        code, said = finish(TRAIN, home)
        assert code == 0, said
        assert "differs only by code" in said
        assert len(list(home.glob("runs/foo-toy-s0-*"))) == 2
    finally:
        layers.write_text(before)


def test_nothing_is_imported_that_is_not_trusted(home: Path, run: Path) -> None:
    code, said = finish(["evaluate", f"run={run}"], home)
    assert code == 1
    assert "mine.foo.Foo is no part of chainrule" in said
    assert "trust=mine.foo" in said
    evil = home / "evil.py"
    evil.write_text("open('executed', 'w')\n")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("mine.foo.Foo", "evil.NADE"))
    try:
        load = f"import chainrule; chainrule.load_model({str(run)!r})"
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        done = subprocess.run([sys.executable, "-c", load], cwd=home, env=environment, capture_output=True, check=False)
        assert b"evil.NADE is no part of chainrule" in done.stderr
        assert finish(["evaluate", f"run={run}"], home)[0] == 1
        assert not (home / "executed").exists()
    finally:
        (run / "config.yaml").write_text(config)


def test_what_was_imported_is_trusted(home: Path, run: Path) -> None:
    load = f"import mine.foo, chainrule; print(chainrule.load_model({str(run)!r}).dim)"
    path = [str(home), *filter(None, sys.path)]
    done = subprocess.run(
        [sys.executable, "-c", load], env=os.environ | {"PYTHONPATH": os.pathsep.join(path)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "9", done.stderr


@pytest.mark.parametrize(
    ("module", "expected"),
    [("import no_such_library\n" + MODEL, "No module named 'no_such_library'"),
     (MODEL.replace("super().__init__(shape=shape, order", "super().__init__(shape=shape, oder"), "oder"),
     (MODEL.replace("- z\n", "\n"), "the model sees what it predicts")],
)  # fmt: skip
def test_its_mistakes_are_told(module: str, expected: str, home: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/foo.py").write_text(module)
    (tmp_path / "mine/layers.py").write_text((home / "mine/layers.py").read_text())
    (tmp_path / "configs/model").mkdir(parents=True)
    (tmp_path / "configs/model/foo.yaml").write_text("_target_: mine.foo.Foo\n")
    code, said = finish(TRAIN, tmp_path)
    assert code == 1
    assert expected in said
    assert not list(tmp_path.rglob("*.ckpt"))


def test_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import chainrule

    monkeypatch.chdir(tmp_path)
    words = ["logger=none", "samples=2", "trainer.max_epochs=1", "trainer.enable_progress_bar=false", "tags=[a]"]
    record = chainrule.train(model="fvsbn", data="toy", overrides=words)
    assert record.tags == ["a"]
    assert record.complete
    assert record.path.name.startswith("fvsbn-toy-s0-")
    assert chainrule.train(model="fvsbn", data="toy", overrides=words).date == record.date
    assert [found.seed for found in chainrule.records("runs")] == [0]
    assert chainrule.load_model(record.path).dim == 9
    start = [*words, f"ckpt_path={record.path}", "trainer.max_epochs=2"]
    assert chainrule.train(model="fvsbn", data="toy", overrides=start).initialized_from == record.checkpoint_sha256
