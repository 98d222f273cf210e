"""What real use broke: strange folders, somebody else's cache, completion at TAB, files of absurd size."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch
from commands import finish
from PIL import Image

from chainrule import cli
from chainrule.data import Toy
from chainrule.data.datamodule import Splits
from chainrule.evaluation import coding
from chainrule.kernels.threads import compiled
from chainrule.runs.directory import discover

TOY = ["data=toy", "model=fvsbn", "logger=none", "trainer.enable_progress_bar=false", "samples=1"]
STRANGE = "übung, und=mehr? it's [1] {2} 50% $x #a"

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process, in an empty folder, and returns what it printed; errors are SystemExit."""

    def call(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["chainrule", *words])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        cli.main()
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    return call


# ---- folders as people name them ------------------------------------------------------------------------


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """A folder whose name has everything in it that some grammar takes for its own, with configurations in it."""
    folder = tmp_path / STRANGE
    (folder / "configs/experiment").mkdir(parents=True)
    (folder / "configs/experiment/mine.yaml").write_text("# @package _global_\ntrainer: {max_epochs: 1}\n")
    (folder / "configs/hparams_search").mkdir()
    (folder / "configs/hparams_search/mine.yaml").write_text(
        "# @package _global_\ntrainer: {max_epochs: 1}\nsearch: {space: {model.smoothness: 'interval(0, 1)'}}\n"
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("words", [["train"], ["train", "-m", "seed=0,1"]])
def test_a_training_in_a_strange_folder(words: list[str], strange: Path) -> None:
    runs = strange / f"runs, {STRANGE}"
    command = [*words, *TOY, f"--config-dir={strange}/configs", "experiment=mine", f"paths.runs={runs}"]
    jobs = 1 + ("-m" in words)
    for again in (False, True):
        code, said = finish(command, strange)
        assert code == 0, said
        assert said.count("already finished") == again * jobs
        assert "-m" not in words or "2 finished" in said
        assert len(list(runs.glob("fvsbn-toy-s*/result.json"))) == jobs
    assert {path.name for path in strange.iterdir()} == {"configs", runs.name}


@pytest.mark.slow
def test_a_search_in_a_strange_folder(strange: Path) -> None:
    runs = strange / f"runs, {STRANGE}"
    words = ["search", *TOY, f"--config-dir={strange}/configs", "hparams_search=mine", f"paths.runs={runs}"]
    for trials in (1, 2):
        code, said = finish([*words, f"search.trials={trials}"], strange)
        assert code == 0, said
        assert f"{trials} finished" in said
    assert finish(["train", f"--config-dir={strange}/configs", *TOY, "experiment=nope"], strange)[0] == 1
    (study,) = runs.glob("search-*/study.db")
    assert {path.name for path in strange.iterdir()} == {"configs", runs.name}
    code, said = finish(["train", f"--config-dir={study.parent}", *TOY, "experiment=best"], strange)
    assert code == 0, said


@pytest.mark.slow
def test_tables_of_a_strange_folder(strange: Path) -> None:
    runs = strange / f"runs, {STRANGE}"
    assert finish(["train", *TOY, "trainer.max_epochs=1", f"hydra.run.dir={runs}/a"], strange)[0] == 0
    for words in (["tabulate"], ["report"], ["report", f"out={strange}/{STRANGE}.html"]):
        for folder in (runs, runs.relative_to(strange)):
            code, said = finish([*words, f"runs={folder}"], strange)
            assert code == 0, said
    for words in (
        ["evaluate"],
        ["sample", "n=2"],
        ["complete", "n=2"],
        ["certify", "n=2"],
        ["compress", f"file={runs}/f"],
    ):
        code, said = finish([*words, f"run={runs}/a"], strange)
        assert code == 0, said
    assert len(discover(runs)[0]) == 1


def test_a_sweep_of_no_jobs_leaves_nothing(run: Run, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="a sweep of no jobs"):
        run("train", "-m", *TOY, "seed=range(0)", "+api_key=SECRET")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# ---- somebody else's cache ------------------------------------------------------------------------------


def doubled(x: float) -> float:
    return 2 * x


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for numba's cache."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("content", [b"", b"no pickle", b"\x80"])
@pytest.mark.parametrize("kind", ["nbi", "nbc"])
def test_a_cache_of_numba_s_that_is_damaged_is_made_again(kind: str, content: bytes, cache: Path) -> None:
    assert compiled(doubled)(2.0) == 4
    (file,) = cache.rglob(f"*.{kind}")
    file.write_bytes(content)
    assert compiled(doubled)(2.0) == 4
    again = compiled(doubled)
    assert again(2.0) == 4
    assert sum(again.stats.cache_hits.values()) == 1


def test_a_full_disk_below_numba_s_cache_does_not_matter(cache: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        assert compiled(doubled)(2.0) == 4
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(cache.rglob("*.nbc"))


# ---- TAB ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [("chainrule tab", {"tabulate"}), ("chainrule train mod", {"model=", "model."}),
     ("chainrule train -m model=na", {"model=nade"}), ("chainrule tabulate form", {"format="}),
     ("chainrule nothing of ours", {"train"})],
)  # fmt: skip
def test_completion(
    line: str, words: set[str], run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    said = ""
    with suppress(SystemExit):  # after a list of verbs
        said = run("-sc", "query=bash")
    assert words <= set((said + capsys.readouterr().out).split())


def test_completion_can_be_installed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMP_LINE", "x")
    monkeypatch.delenv("COMP_LINE")
    assert "complete -o nospace" in run("--shell-completion", "install=bash")


# ---- files of absurd size, and of strange kinds ---------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run, and a file that it has compressed."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in (["train", *TOY, "trainer.max_epochs=1", "hydra.run.dir=a"], ["compress", "run=a", "file=f"]):
            patch.setattr(sys, "argv", ["chainrule", *words])
            patch.delenv("HYDRA_FULL_ERROR", raising=False)
            cli.main()
    return folder


def rewrite(file: Path, **changes: Any) -> None:  # noqa: ANN401
    torch.save(torch.load(file, weights_only=True) | changes, file)


def many_images(file: Path) -> None:
    """A compressed file that says it has 2⁶⁰ images, with a checksum that is right."""
    content = file.read_bytes()[: -coding.CHECKSUM]
    fields = list(coding.HEADER.unpack_from(content))
    fields[4] = 2**60
    content = coding.HEADER.pack(*fields) + content[coding.HEADER.size :]
    file.write_bytes(content + hashlib.sha256(content).digest())


def long_array(file: Path) -> None:
    """An array whose header says that it has 2⁵⁵ images."""
    np.save(file, np.zeros((1, 9), np.uint8))
    content = file.read_bytes()
    file.write_bytes(content.replace(b"(1, 9), }" + b" " * 20, b"(36028797018963968, 9), }" + b" " * 4))


def picture_bomb(file: Path) -> None:
    Image.new("1", (30_000, 30_000)).save(file)


BEST = "a/checkpoints/best.ckpt"
ABSURD: dict[str, tuple[Callable[[], object], list[str], str]] = {
    **{f"a checkpoint of a terabyte: {verb}": (
        lambda: os.truncate(BEST, 2**40), [verb, "run=a"], "best.ckpt has 1,099,511,627,776 bytes; at most",
    ) for verb in ("evaluate", "sample", "certify")},
    "a checkpoint of large images": (
        lambda: rewrite(Path(BEST), image_shape=[2**40, 2**40]), ["evaluate", "run=a"],
        "its model is none of 1099511627776×",
    ),
    "a checkpoint of no images": (
        lambda: rewrite(Path(BEST), image_shape=[-3, -3]), ["evaluate", "run=a"], "image_shape must be a whole number",
    ),
    "a compressed file that never ends": (
        lambda: os.mkfifo("p"), ["decompress", "run=a", "file=p"], "p is not a regular file",
    ),
    "a compressed file of 2^60 images": (
        lambda: many_images(Path("f")), ["decompress", "run=a", "file=f"],
        "says that it has 1,152,921,504,606,846,976 images",
    ),
    "images that never end": (
        lambda: os.mkfifo("p.npy"), ["compress", "run=a", "file=g", "images=p.npy"], "p.npy is not a regular file",
    ),
    "an array of 2^55 images": (
        lambda: long_array(Path("l.npy")), ["compress", "run=a", "file=g", "images=l.npy"],
        "l.npy holds no array of images",
    ),
    "a picture of a gigapixel": (
        lambda: picture_bomb(Path("b.png")), ["complete", "run=a", "observed=b.png"], "b.png ",
    ),
    "a picture that is none": (
        lambda: Path("b.png").write_bytes(b"no"), ["complete", "run=a", "observed=b.png"], "b.png is no PNG picture",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ABSURD)
def test_a_file_of_absurd_size_is_one_message(case: str, trained: Path, tmp_path: Path, run: Run) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    arrange, words, said = ABSURD[case]
    arrange()
    with pytest.raises(SystemExit) as stop:
        run(*words)
    assert said in str(stop.value.code)


# ---- a number that changed in silence -------------------------------------------------------------------


def shifted(file: Path) -> None:
    content = torch.load(file, weights_only=True)
    content["state_dict"]["density.alpha0"] += 1
    torch.save(content, file)


def edit_config(old: str, new: str) -> None:
    config = Path("a/config.yaml").read_text()
    assert old in config
    Path("a/config.yaml").write_text(config.replace(old, new))


CHANGED: dict[str, tuple[Callable[[], object], str]] = {
    "weights": (lambda: shifted(Path(BEST)), "checkpoints/best.ckpt has changed after result.json was written"),
    "model": (lambda: edit_config("smoothness: 0.0", "smoothness: 1.0"), "model in config.yaml has changed after"),
    "images": (lambda: edit_config("chainrule.data.Toy", "test_real_use.Fewer"), "the images have changed after"),
}


class Fewer(Toy):
    """Toy images, one of them left out."""

    def splits(self) -> Splits:
        whole = super().splits()
        return Splits(whole.train, whole.valid, whole.test[1:])


@pytest.mark.parametrize("case", CHANGED)
def test_what_was_changed_is_not_evaluated_as_if_it_were_the_run(
    case: str, trained: Path, tmp_path: Path, run: Run
) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    assert "toy test: " in run("evaluate", "run=a")
    arrange, said = CHANGED[case]
    arrange()
    with pytest.raises(SystemExit) as stop:
        run("evaluate", "run=a")
    assert said in str(stop.value.code)


def test_a_comparison_says_what_is_not_certified(trained: Path, tmp_path: Path, run: Run) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    run("certify", "run=a", "n=2")
    shutil.copytree("a", "b")
    nll = dict(np.load("b/nll_test.npz"))
    np.savez("b/nll_test.npz", **nll | {"nll": np.roll(nll["nll"], 1)})  # mean and standard error are what they were
    said = run("compare", "runs=a,b")
    assert "not certified: b, nll_test.npz has changed since it was certified" in said
    assert "not certified: a" not in said


# ---- keys that are no such thing ------------------------------------------------------------------------

WRONG = {
    "evaluate run=a split=[1]": "split must be a name or a path, got [1]",
    "evaluate run=a split=all": "split must be train or valid or test, got 'all'",
    "evaluate run=null": "run is needed",
    "sample run=[a] n=2": "run must be a name or a path",
    "compress run=a file=null": "file is needed",
    "tabulate runs=null": "say where the runs are",
    "tabulate runs=[1]": "runs must be a list of words",
    "tabulate runs=a sort=null": "sort must be a column, got None",
    "tabulate runs=a columns=5": "columns must be a list of names",
    "tabulate runs=a names=x": "names must be text for text",
    "report runs=a out=null": "out must end in .html, got None",
    "dashboard publish=false out=null": "out must end in .json, got None",
    "evaluate run=a paths=null": "paths must have keys of its own, got None",
    "mix runs=[0.5,a]": "runs must be a list of words",
    "bench models=nan": "models must be a list of names, got nan",
    "bench width=0.5": "width must say something of each model, got 0.5",
    "bench optimizer.betas=[{},1] models=[tabular] growth=false": "optimizer: ",
    "bench seed=nope": "seed must be a whole number",
    "claims runs=a claims=[0.5]": "each must be a claim, a rule and its models, got 0.5",
    "claims runs=a claims=[{model:fvsbn}]": "rule must be one of",
    "check model=fvsbn model._target_=pathlib.Path": "is no AutoregressiveDensity",
    "evaluate run=a ~growth_n.0": "Could not",
}


@pytest.mark.parametrize("words", WRONG)
def test_a_key_of_a_wrong_type_is_one_message(words: str, trained: Path, tmp_path: Path, run: Run) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    with pytest.raises(SystemExit) as stop:
        run(*words.split())
    assert WRONG[words] in str(stop.value.code)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tags=a"], "tags must be a list of words"),
        (["tags=[1]"], "tags must be a list of words"),
        (["~data._target_"], "data._target_=None makes no images"),
        (["optimizer._partial_=nope"], "_partial_ flag must be a bool"),
        (["optimizer=[null]"], "NoneType"),
        (["trainer.num_sanity_val_steps=[]"], "trainer.num_sanity_val_steps must be a whole number"),
        (["paths.runs=null"], "chainrule train: paths.runs is empty: name a folder"),
        (["orders=1e30"], "orders must be grid, a number from 2 to 1000"),
        (["orders=10000000000000000000"], "orders must be grid, a number from 2 to 1000"),
        (["~model._target_"], "model._target_=None is no model"),
    ],
)
def test_a_training_of_what_is_none_is_one_message(words: list[str], said: str, run: Run, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        run("train", *TOY, *words)
    assert said in str(stop.value.code)
    assert not list(tmp_path.rglob("*.ckpt"))
