"""What users, disks and strangers get wrong: one message with the value and the cure, and nothing half-written."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from commands import finish

from chainrule import cli
from chainrule.data import mnist
from chainrule.data.download import File
from chainrule.models.fvsbn import FVSBN
from chainrule.runs import provenance

TOY = ["data=toy", "logger=none", "trainer.enable_progress_bar=false", "trainer.max_epochs=1", "samples=1"]
LEFT = {".lock", "train.log", "failure.txt", "config.yaml"}  # what a run that failed may leave
Arrange = Callable[[Path, pytest.MonkeyPatch], object]  # prepares the working folder, which has a finished run in RUN


@dataclass(frozen=True)
class Case:
    """A command and what it must say, as a regular expression; "RUN" in it is a finished run of model=fvsbn."""

    words: list[str]
    said: str
    arrange: Arrange | None = None
    leaves: str = ""  # a file more than LEFT


def training(said: str, *words: str, arrange: Arrange | None = None, leaves: str = "") -> Case:
    data = [word for word in TOY if word.partition("=")[0] not in {given.partition("=")[0] for given in words}]
    return Case(["train", *data, *words], said, arrange, leaves)


def numbers(key: str, said: str, *values: str, more: tuple[str, ...] = ()) -> dict[str, Case]:
    """A number that must be refused in each of several ways, by a message that names its key and what was given."""
    return {f"{key}={value}": training(f"{key} {said}", f"{key}={value}", *more) for value in values}


# ---- what is on the disk ------------------------------------------------------------------------------


def edit_record(**fields: object) -> Arrange:
    def arrange(folder: Path, _: pytest.MonkeyPatch) -> None:
        file = folder / "RUN/result.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return arrange


def edit_config(change: Callable[[dict[str, dict[str, object]]], object]) -> Arrange:
    def arrange(folder: Path, _: pytest.MonkeyPatch) -> None:
        file = folder / "RUN/config.yaml"
        config = yaml.safe_load(file.read_text())
        change(config)
        file.write_text(yaml.safe_dump(config))

    return arrange


def checkpoint(damage: Callable[[Path], object]) -> Arrange:
    return lambda folder, _: damage(folder / "RUN/checkpoints/best.ckpt")


class Malicious:
    """Unpickling it makes a folder."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, ("executed",)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def impossible(model: FVSBN, _: torch.Tensor) -> None:
    model.alpha0.data.fill_(-math.inf)


def edit_state(name: str, change: Callable[[torch.Tensor], object], file: Path) -> None:
    content = torch.load(file, weights_only=True)
    change(content["state_dict"][f"density.{name}"])
    torch.save(content, file)


def fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


IMAGE = b" ".join(b"01"[i % 2 : i % 2 + 1] for i in range(784)) + b"\n"
FILES = dict.fromkeys(("train.amat", "valid.amat", "test.amat"), IMAGE * 3)


def images(change: Callable[[bytes], bytes | None]) -> Arrange:
    """Three files of images, the last one changed."""

    def arrange(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        found = FILES | {"test.amat": change(FILES["test.amat"])}
        files = tuple(File(n, len(c), hashlib.sha256(c).hexdigest()) for n, c in FILES.items())
        monkeypatch.setattr(mnist, "STATIC", files)
        monkeypatch.setattr(mnist, "STATIC_ADDRESS", "http://127.0.0.1:9/")  # the discard port: refused at once
        for name, content in found.items():
            if content is not None:
                (folder / name).write_bytes(content)

    return arrange


def touch(name: str) -> Arrange:
    return lambda folder, _: (folder / name).touch()


STATIC = ("data=static", "paths.data_dir=.", "paths.cache_dir=cache")

CASES = {
    # words
    "no such command": Case(["trian"], "no command 'trian'.*train"),
    "unknown key": training("no key 'sed' here: did you mean .*seed", "sed=1"),
    "unknown model": training(r"Could not find 'model/nad'[\s\S]*nade", "model=nad"),
    "unknown data": training(r"Could not find 'data/mnist'[\s\S]*seeded", "data=mnist"),
    "unknown order": training("unknown order 'zigzag': choose one of raster", "model.order=zigzag"),
    "unknown kernel": training("model.kernel must be one of auto, numba", "model.kernel=fast"),
    "unknown argument": training("unexpected keyword argument 'depth'", "+model.depth=3"),
    "group set to null": training("logger=none", "logger=null"),
    "a list without its end": training(r"input '\[ema'", "callbacks=[ema"),
    "two values without a sweep": training("--multirun", "seed=1,2"),
    "neither auto nor never": training("resume must be auto or never or force, got 'yes'", "resume='yes'"),
    # numbers: negative, zero, not a number, huge, mistyped
    **numbers("optimizer.lr", "must be a number from 1e-12 to 100", "-1", "0", "nan", "1e30", "fast", "true"),
    **numbers("optimizer.weight_decay", "must be a number from 0 to 100", "-1", "nan"),
    **numbers("optimizer.momentum", "must be a number from 0 to 0.9999", "1", more=("optimizer=sgd",)),
    **numbers("seed", "must be a whole number from 0", "-1", "1.5", "4294967296"),
    **numbers("samples", "must be a whole number from 1 to 10,000", "0", "10001"),
    **numbers("trainer.max_epochs", "must be a whole number from 0", "-1", "1.5", "nan", "1000001", "all"),
    **numbers("trainer.gradient_clip_val", "must be a number from 1e-12", "0", "nan"),
    **numbers("trainer.devices", "must be a whole number from 1 to 64", "0", "-1", "100000", "all"),
    **numbers("data.batch_size", "must be a whole number", "0", "nan", "1e300", "all"),
    **numbers("data.eval_batch_size", "must be a whole number", "-1"),
    **numbers("data.side", "must be a whole number from 2 to 8", "0", "nan", "1000000"),
    **numbers("model.hidden", "must be a whole number from 1 to 100,000", "0", "-1", "1.5", "nan",
              "1000000000", "lots"),
    "mlp: model.hidden=1000000": training("model.hidden must be .* to 1,000", "model.hidden=1000000", "model=mlp"),
    **numbers("model.block", "must be a whole number of at least 1", "0", more=("model=fvsbn",)),
    **numbers("model.init_scale", "must be a number from 0 to 1,000,000", "-1", "nan", "inf"),
    **numbers("model.input_dropout", "must be a number from 0 to 0.99", "1", "nan"),
    **numbers("model.smoothing", "must be a number from 0 to 1,000,000", "-1", more=("model=tabular",)),
    **numbers("callbacks.ema.decay", "must be a number from 0 to 1", "1.5", more=("callbacks=[ema]",)),
    **numbers("callbacks.early_stopping.patience", "must be a whole number", "0",
              more=("callbacks=[early_stopping]",)),
    **numbers("scheduler.final", "is a fraction of the learning rate, 0 to 1", "2", "lots"),
    **{f"scheduler.tau={value}": training(f"scheduler.tau, in steps, must be above 0, got {value}",
                                          "scheduler=inverse_time", f"scheduler.tau={value}")
       for value in ("0", "nan", "slow")},
    "optimizer.betas": training(r"optimizer or scheduler: .*str.*conf/", "+optimizer.betas=[fast,0.9]"),
    "search.trials=ten": Case(["search", "data=toy", "search.trials=ten"],
                              "search.trials must be a whole number from 1 to .*, got 'ten'", leaves="search.log"),
    "search.trials=0": Case(["search", "data=toy", "search.trials=0"], "search.trials must be a whole number",
                            leaves="search.log"),
    "table too large": training(r"2\^49 − 1.*data\.side=4", "model=tabular", "data.side=7"),
    "MNIST of an odd size": training("data.side must be 28 or 14 or 7 or 4", "data=seeded", "data.side=5"),
    "no GPU": training("no CUDA device available: use trainer.accelerator=cpu", "trainer.accelerator=gpu"),
    "no such accelerator": training("trainer.accelerator must be auto or cpu or .*, got 'abacus'",
                                    "trainer.accelerator=abacus"),
    "no such precision": training("Precision '8-bits' is invalid. Allowed", "trainer.precision=8-bits"),
    "diverged": training(r"not finite at step \d, in epoch 0.*learning rate of.*Lower", "+optimizer.eps=0"),
    "an image of probability 0": training(
        "best.ckpt: alpha0 is not finite: the training diverged",
        "model=fvsbn", "trainer.max_epochs=0", leaves="best.ckpt",
        arrange=lambda _, patch: patch.setattr(FVSBN, "initialize", impossible)),
    # files of images
    "images missing": training(r"not complete in [\s\S]*: test.amat.\n.*paths.data_dir=FOLDER", *STATIC,
                               arrange=images(lambda _: None)),
    "images truncated": training("test.amat is truncated: .* bytes instead of", *STATIC,
                                 arrange=images(lambda c: c[:-10])),
    "images empty": training("test.amat is truncated: 0 bytes instead of", *STATIC, arrange=images(lambda _: b"")),
    "images too long": training("test.amat has .* bytes; at most", *STATIC, arrange=images(lambda c: c + c)),
    "images altered": training("test.amat is corrupt: SHA-256", *STATIC, arrange=images(lambda c: c[::-1])),
    "images compressed by another program": training(
        "test.amat is truncated", *STATIC, arrange=images(gzip.compress)),
    "no file of one's own": training("data.file cannot be read.*x.npz.*savez", "data=arrays", "data.file=x.npz"),
    "a file without images": training("my.npz is no .npz file of images, .*savez", "data=arrays", "data.file=my.npz",
                                      arrange=touch("my.npz")),
    "no such data folder": training("not complete in nowhere", *STATIC, "paths.data_dir=nowhere",
                                    arrange=images(lambda c: c)),
    # run directories
    "no run": Case(["evaluate"], "missing: run"),
    "no such run": Case(["sample", "run=nowhere"], "nowhere is not a run directory: .*chainrule train"),
    "a run that is a file": Case(["sample", "run=RUN/result.json"], "is not a run directory: .* directory: RUN"),
    "a folder of runs": Case(["sample", "run=."], "is not a run directory: .* such as RUN"),
    "a record alone": Case(["sample", "run=RUN"], "record of a run, .* chainrule train .*model=fvsbn",
                           lambda folder, _: (folder / "RUN/config.yaml").unlink()),
    "no orders": training("orders must be grid, .*, got 0", "orders=0"),
    "an order twice": training("orders must be .* each once, got", "orders=[raster,raster]"),
    "orders that the model has not": training("orders=4: model.order must be one of .*, got 'random-0'",
                                              "orders=4", "model=pixelcnn", "model.patch=1"),
    "no column": Case(["tabulate", "runs=RUN", "columns=[nll,foo]"], "columns: no 'foo'; there are .*nll"),
    "no such split": Case(["evaluate", "run=RUN", "split=dev"], "split must be train or valid or test, got 'dev'"),
    "images of another size": Case(["evaluate", "run=RUN", "data=toy", "data.side=4"],
                                   "of 3×3 images, and those of toy are 4×4: give .*data.side=3"),
    "no such picture format": Case(["sample", "run=RUN", "out=x.gif"], "out must end in .png or .npy, got x.gif"),
    "no images": Case(["sample", "run=RUN", "n=0"], "n must be a whole number from 1 to .*, got 0"),
    "too many images": Case(["sample", "run=RUN", "n=100000000"], "n must be a whole number from 1 to"),
    "nowhere to write": Case(["sample", "run=RUN", "out=RUN/config.yaml/x.png"], "RUN/config.yaml"),
    "keep more than all": Case(["complete", "run=RUN", "keep=1.5"], "keep must be a number from 0 to 1, got 1.5"),
    "no runs": Case(["tabulate"], "runs=DIR"),
    "nobody's home": Case(["tabulate", "runs=RUN,~nobody-of-that-name/x"],
                          "runs=~nobody-of-that-name/x: there is no such user here"),
    "runs twice": Case(["tabulate", "runs=a", "runs=b"], "runs= is given 2 times: give it once, as in runs=DIR,DIR"),
    "no such runs": Case(["tabulate", "runs=nowhere"], "nowhere"),
    "no such table format": Case(["tabulate", "runs=RUN", "format=word"], "unknown format 'word'"),
    "a record of a newer program": Case(["tabulate", "runs=RUN"], r"result.json.*schema.*99", edit_record(schema=99)),
    "a record that is no JSON": Case(["tabulate", "runs=RUN"], "result.json",
                                     lambda folder, _: (folder / "RUN/result.json").write_text("{")),
    "another run in the directory": training(
        "RUN holds another run, with other settings.*another hydra.run.dir", "hydra.run.dir=RUN"),
    "the same run, not to be resumed": training(
        "RUN holds a run already", "model=fvsbn", "resume=never", "hydra.run.dir=RUN"),
    # checkpoints
    "a checkpoint that is gone": Case(["sample", "run=RUN"], "best.ckpt does not exist", checkpoint(Path.unlink)),
    "a torn checkpoint": Case(["sample", "run=RUN"], "best.ckpt is damaged, or no checkpoint",
                              checkpoint(lambda file: file.write_bytes(file.read_bytes()[:1000]))),
    "an empty checkpoint": Case(["sample", "run=RUN"], "best.ckpt is damaged",
                                checkpoint(lambda file: file.write_bytes(b""))),
    "one bit of a checkpoint": Case(["sample", "run=RUN"], "best.ckpt.*checksum does not match", checkpoint(flip)),
    "a foreign checkpoint": Case(["sample", "run=RUN"], "best.ckpt is damaged, or no checkpoint of chainrule",
                                 checkpoint(lambda file: torch.save({"weights": torch.zeros(3)}, file))),
    "a malicious checkpoint": Case(["evaluate", "run=RUN"], "best.ckpt is damaged, or no checkpoint of chainrule",
                                   checkpoint(lambda f: torch.save({"state_dict": Malicious()}, f))),
    "a checkpoint of another model": Case(
        ["sample", "run=RUN"], "best.ckpt does not fit the model of",
        edit_config(lambda c: c.update(model={"_target_": "chainrule.models.nade.NADE"}))),
    # configurations of strangers
    "a model that is a command": Case(["sample", "run=RUN"], "_target_: os.system cannot be built here",
                                      edit_config(lambda c: c.update(model={"_target_": "os.system"}))),
    "a model that is a process": Case(
        ["sample", "run=RUN"], "_target_: subprocess.Popen is no BinaryDensity",
        edit_config(lambda c: c.update(model={"_target_": "subprocess.Popen", "args": ["mkdir", "executed"]}))),
    "a command inside a model": Case(
        ["sample", "run=RUN"], "order must be a name or a list of the pixels",
        edit_config(lambda c: c["model"].update(order={"_target_": "os.mkdir", "path": "executed"}))),
    "data that are a process": Case(
        ["evaluate", "run=RUN"], "_target_: subprocess.Popen is no Images",
        edit_config(lambda c: c.update(data={"_target_": "subprocess.Popen", "args": ["mkdir", "executed"]}))),
    "a configuration that is a list": Case(["sample", "run=RUN"], "config.yaml holds no mapping",
                                           lambda folder, _: (folder / "RUN/config.yaml").write_text("- 1\n")),
    "a configuration that is no YAML": Case(["sample", "run=RUN"], "config.yaml is damaged",
                                            lambda folder, _: (folder / "RUN/config.yaml").write_text("{a: [")),
    "a model that is a number": Case(["sample", "run=RUN"], "config.yaml: model is not what a run has, got 5",
                                     edit_config(lambda c: c.update(model=5))),
    "data that are a word": Case(["evaluate", "run=RUN"], "config.yaml: data is not what a run has, got 'x'",
                                 edit_config(lambda c: c.update(data="x"))),
    "members that are numbers": Case(["sample", "run=RUN"], "config.yaml: members is not what a run has",
                                     edit_config(lambda c: c.update(members=[1, 2]))),
    "a configuration of aliases": Case(
        ["sample", "run=RUN"], "config.yaml has aliases",
        lambda folder, _: (folder / "RUN/config.yaml").write_text("a: &a [1]\nb: [*a, *a]\n")),
    "a configuration without an end": Case(["sample", "run=RUN"], "not its configuration and weights",
                                           lambda folder, _: fifo(folder / "RUN/config.yaml")),
    "a configuration of a gigabyte": Case(["sample", "run=RUN"], "config.yaml has .* bytes; at most",
                                          lambda folder, _: os.truncate(folder / "RUN/config.yaml", 2**30)),
    "an order that is no permutation": Case(["evaluate", "run=RUN"], "its order of the pixels is no permutation",
                                            checkpoint(partial(edit_state, "order", torch.Tensor.zero_))),
    "weights that are not finite": Case(["evaluate", "run=RUN"], "best.ckpt: alpha0 is not finite",
                                        checkpoint(partial(edit_state, "alpha0", lambda w: w.fill_(math.nan)))),
    # what Lightning would take, and then die of, hang in, or leave aside
    "no end of epochs": training("trainer.max_epochs is needed", "trainer.max_epochs=null"),
    "no number of epochs": training("trainer.max_epochs is needed", "~trainer.max_epochs"),
    "no number of samples": training("samples is needed", "samples=null"),
    "no seed": Case(["sample", "run=RUN", "seed=null"], "seed is needed"),
    "no validation": training("limit_val_batches=0: the best epoch is chosen", "+trainer.limit_val_batches=0"),
    "several machines": training("trainer.num_nodes must be 1, got 3", "+trainer.num_nodes=3"),
    "two processes without a strategy": training("needs trainer=ddp", "trainer.devices=2"),
    "another strategy": training("trainer.strategy must be auto or ddp_spawn, got 'ddp'", "+trainer.strategy=ddp"),
    "a trainer that is none": training("is no Trainer", "trainer._target_=pathlib.Path"),
    "a callback that is none": training("callbacks.x is no callback", "+callbacks.x._target_=pathlib.PurePath"),
    "a metric that nobody measures": training(
        "EarlyStopping monitors 'val/loss': there are", "callbacks=[early_stopping]",
        "callbacks.early_stopping.monitor=val/loss"),
    "one beta too few": training(r"optimizer or scheduler: .*betas=\[0.9\].*conf/", "optimizer.betas=[0.9]"),
    "no such profiler": training("trainer: .*profiler", "+trainer.profiler=slow"),
    "weights from nowhere": training("nowhere is not a run directory", "ckpt_path=nowhere"),
    "weights of another model": training("its weights do not fit this model", "ckpt_path=RUN", "data.side=4"),
    "an empty variable": training("paths.runs= is empty: is a variable not set", "paths.runs="),
    # output folders
    "a file where runs go": training("runs/.*Not a directory.*Results cannot be written.*another folder",
                                     "paths.runs=runs", arrange=touch("runs")),
    "a file where this run goes": training("r: File exists.*Results cannot be written.*another folder",
                                           "hydra.run.dir=r", arrange=touch("r")),
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, by the command itself."""
    folder = tmp_path_factory.mktemp("trained")
    code, said = finish(["train", *TOY, "model=fvsbn", "hydra.run.dir=RUN"], folder)
    assert code == 0, said
    return folder / "RUN"


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_message_and_leaves_nothing_half_written(
    case: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mistake = CASES[case]
    shutil.copytree(trained, tmp_path / "RUN")
    monkeypatch.chdir(tmp_path)
    if mistake.arrange:
        mistake.arrange(tmp_path, monkeypatch)
    before = snapshot(tmp_path)
    monkeypatch.setattr(sys, "argv", ["chainrule", *mistake.words])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert isinstance(stop.value.code, str)  # Python writes it to stderr, and exits with 1
    assert re.search(mistake.said, stop.value.code), stop.value.code
    assert stop.value.code.startswith("chainrule")
    printed = capsys.readouterr()
    assert not re.search("Traceback|Error executing job", printed.out + printed.err)
    after = snapshot(tmp_path)
    assert {name: after.get(name) for name in before} == before
    assert {Path(name).name for name in after.keys() - before.keys()} <= LEFT | {mistake.leaves}
    assert not (tmp_path / "executed").exists()


def test_too_many_threads(tmp_path: Path) -> None:
    code, said = finish(["train", *TOY], tmp_path, partial(torch.set_num_threads, 1000))
    assert code == 1
    assert re.search(r"1000 threads are too many for \d+ cores: set OMP_NUM_THREADS=\d+", said)


def one_library_too_few() -> None:
    provenance.LIBRARIES = (*provenance.LIBRARIES, "no-such-library")


def test_a_missing_library_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    code, said = finish(["train", *TOY], tmp_path, one_library_too_few)
    assert code == 1
    assert "no-such-library is not installed" in said
    assert "Traceback" not in said
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_traceback_is_there_for_who_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["chainrule", "train", *TOY, "optimizer.lr=-1"])
    with pytest.raises(ValueError, match=r"optimizer\.lr must be"):
        cli.main()


def test_a_record_holds_no_secret_and_no_place_outside_the_run(tmp_path: Path) -> None:
    secret, home = "0123456789abcdef", str(tmp_path / "home of alice")
    words = [f"paths.data_dir={home}/data", f"paths.runs={home}", f"hydra.run.dir={home}/RUN", f"+api_key={secret}"]
    code, said = finish(["train", *TOY, "model=fvsbn", *words], tmp_path)
    assert code == 0, said
    record = (tmp_path / "home of alice/RUN/result.json").read_text()
    assert secret not in record
    assert "alice" not in record
    assert json.loads(record)["overrides"] == [*TOY, "model=fvsbn"]
    for name in ("train.log", "config.yaml"):
        assert secret not in (tmp_path / "home of alice/RUN" / name).read_text()
