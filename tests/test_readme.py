"""Every command and every name in the README works."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import finish
from zoo import MODELS, ROOT

from chainrule import cli
from chainrule.reporting import compare, tables

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.partition("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
STATIC = ROOT.parent / "shared/data"  # of the project's own machines
# The same command on data that needs no download, for as short a time as it can take.
SHORT = ["data=toy", "logger=csv", "trainer.max_epochs=1", "trainer.enable_progress_bar=false"]


def shortened(words: list[str], run: Path) -> list[str]:
    words = [word.replace("runs/RUN", str(run)).replace("runs=results", f"runs={ROOT / 'results'}") for word in words]
    if words[0] == "train":
        words = [word for word in words if not word.startswith(("data=", "experiment="))] + SHORT
    return ["data=toy" if word.startswith("data=") else word for word in words]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run, runs/RUN, and with those of our records that have weights."""
    folder = tmp_path_factory.mktemp("readme")
    for best in (ROOT / "results").glob("*/checkpoints/best.ckpt"):
        shutil.copytree(best.parents[1], folder / best.parents[1].relative_to(ROOT))
    words = ["train", "model=nade", "model.hidden=4", *SHORT, "hydra.run.dir=runs/RUN"]
    command = [str(Path(sys.executable).with_name("chainrule")), *words]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("chainrule ")])
def test_chainrule(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shortened(shlex.split(command)[1:], folder / "runs/RUN")
    if words[0] == "bench":
        pytest.skip("a test of its own runs the bench")
    if words[:2] == ["certify", "run=results/pixelcnn-static-s0"]:
        if not STATIC.is_dir():
            pytest.skip(f"the files of data=static are not in {STATIC}")
        words += ["n=10", f"paths.data_dir={STATIC}"]
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["chainrule", *words])
    cli.main()


def test_the_tables_are_those_of_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # paths are as seen from here
    page = (ROOT / "docs/results.md").read_text()
    assert tables.tabulate("results", "markdown") in page
    names = re.findall(r"^\| ([a-z\\_]+-static-s\d) \|", page, re.MULTILINE)
    runs = [f"results/{name}".replace("\\", "") for name in names]
    assert len(runs) == 7
    assert compare.table(compare.compare(runs), "markdown") in page


def test_the_table_of_the_readme_is_a_part_of_it() -> None:
    rows = re.findall(r"^\|.* (?:yes|no) \|$", README, re.MULTILINE)
    assert len(rows) > 5
    assert set(rows) <= set((ROOT / "docs/results.md").read_text().splitlines())


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 160


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("scripts/run")])
def test_scripts_run_from_another_folder(command: str, tmp_path: Path) -> None:
    words = shortened(["train", *shlex.split(command)[1:]], tmp_path)[1:]
    done = subprocess.run([ROOT / "scripts/run", *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "test NLL" in done.stdout
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_the_other_commands_are_known() -> None:
    others = [c for c in COMMANDS if not c.startswith(("chainrule ", "scripts/run"))]
    scripts = {"scripts/test", "scripts/claims", "scripts/paper_table"}
    assert set(others) <= scripts | {"source .venv/bin/activate"}
    assert all(os.access(ROOT / script, os.X_OK) for script in scripts)


def test_what_is_named_exists() -> None:
    files = re.findall(r"\]\(((?!http)[^)#]+)\)", README)
    assert files
    assert [file for file in files if not (ROOT / file).exists()] == []
    groups = {group: {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")} for group in ("model", "data")}
    for group, names in groups.items():
        assert set(re.findall(rf"{group}=([a-z_]+)", README)) - {"foo"} <= names  # foo is the reader's own
    assert all(f"`{name}`" in README.replace("](", "` ](").replace("[`", "`") for name in MODELS)


def test_the_python_example(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)  # the example is ours
    assert tuple(names["x"].shape) == (16, 9)  # type: ignore[attr-defined]
    assert tuple(names["nats"].shape) == (16,)  # type: ignore[attr-defined]


def test_the_page_about_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for example in re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL):
        exec(compile(example, "python.md", "exec"), names)  # the examples are ours
    assert len(names["rows"]) == 1  # type: ignore[arg-type]
    assert tuple(names["completed"].shape) == (16, 9)  # type: ignore[attr-defined]
    assert names["loss"].item() > 0  # type: ignore[attr-defined]


def test_the_first_result_is_within_two_screens() -> None:
    assert README.index("![samples]") < len("".join(README.splitlines(keepends=True)[:80]))


@pytest.mark.slow
def test_a_model_of_ones_own_is_what_its_page_says(tmp_path: Path) -> None:
    page = (ROOT / "docs/models.md").read_text()
    for language, file in (("python", "mine/foo.py"), ("yaml", "conf/model/foo.yaml")):
        (content,) = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(content)
    (block,) = re.findall(r"```text\n(chainrule.*?)```", page, re.DOTALL)
    for line in block.strip().splitlines():
        words = shlex.split(line.partition("#")[0])[1:]
        words += SHORT[1:] if words[0] == "train" else []
        code, said = finish(words, tmp_path)
        assert code == 0, said
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("foo-toy-s0-")
    assert "trust=mine.foo" in finish(["sample", f"run={run}"], tmp_path)[1]
    assert finish(["sample", f"run={run}", "trust=mine.foo"], tmp_path)[0] == 0
