"""Nothing that a machine does to a run changes its numbers: real processes, killed."""

from __future__ import annotations

import csv
import errno
import gc
import json
import math
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from commands import finish, start

from chainrule import files
from chainrule.files import is_intact, is_sealed, remove_parts, seal, write_whole
from chainrule.training.checkpoints import BEST, LAST, PREVIOUS, SealedFiles, resumable

KILLS = int(os.environ.get("CHAINRULE_KILLS", "10"))
TOY = ["data=toy", "data.side=4", "logger=csv", "trainer.enable_progress_bar=false", "samples=4"]
RECIPES = {
    "fvsbn": ["model=fvsbn", "trainer.max_epochs=10"],
    # stops early, on the average of weights that were trained on thinned inputs
    "nade": [
        "model=nade", "model.hidden=8", "model.input_dropout=0.2", "optimizer.lr=0.3", "scheduler=constant",
        "callbacks=[ema,early_stopping]", "callbacks.ema.decay=0.9", "callbacks.early_stopping.patience=1",
    ],
    "mlp": ["model=mlp", "model.hidden=2", "optimizer=sgd", "optimizer.momentum=0.9", "trainer.max_epochs=8"],
}  # fmt: skip

pytestmark = pytest.mark.slow


# ---- what two runs have in common ---------------------------------------------------------------------


def outcome(run: Path) -> dict[str, Any]:
    """All that a run ends with, except for times."""
    record = json.loads((run / "result.json").read_text())
    names = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
    return {
        "record": {key: record[key] for key in ("nll", "bits_per_pixel", "best_epoch", "epochs", "config")},
        "test": np.load(run / "nll_test.npz")["nll"].tobytes(),
        "metrics": rows(run),
        "weights": {name: weights(run / "checkpoints" / name) for name in (BEST, LAST)},
        "files": [name for name in names if not name.startswith("output")],
    }


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "train/images_per_second"} for row in csv.DictReader(file)]


def weights(path: Path) -> dict[str, bytes]:
    """Every bit of a checkpoint's weights: those selected, and with averaging those trained as well."""
    checkpoint = torch.load(path, weights_only=True)
    states = {key: checkpoint[key] for key in ("state_dict", "current_model_state") if key in checkpoint}
    return {f"{key}.{name}": v.numpy().tobytes() for key, state in states.items() for name, v in state.items()}


def processor(process: ForkServerProcess) -> float:
    """The processor's seconds of a process, which unlike the clock's do not depend on what else is running."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return math.inf
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class Recipe:
    """Words that train something, and what comes out of them when nothing happens."""

    words: list[str]
    folder: Path
    expected: dict[str, Any] = field(init=False)
    seconds: float = field(init=False)  # of the processor, from its config.yaml to its end

    def __post_init__(self) -> None:
        run = self.folder / "undisturbed"
        process = start(self.command(run), self.folder, self.folder / "output.txt")
        self.wait_for(run / "config.yaml")
        started = processor(process)
        while (now := processor(process)) < math.inf:
            self.seconds = now - started
            time.sleep(0.001)
        process.join()
        assert process.exitcode == 0, (self.folder / "output.txt").read_text()
        self.expected = outcome(run)

    def command(self, run: Path, *more: str) -> list[str]:
        return ["train", *TOY, *self.words, f"hydra.run.dir={run}", *more]

    @staticmethod
    def wait_for(path: Path) -> None:
        give_up = time.monotonic() + 120
        while not path.exists():
            assert time.monotonic() < give_up, f"{path} never came to be"
            time.sleep(0.001)

    def end(self, run: Path) -> str:
        """The same command again, to its end, which must be that of the run that nothing happened to."""
        code, said = finish(self.command(run), self.folder)
        assert code == 0, said
        found = outcome(run)
        assert [key for key in found if found[key] != self.expected[key]] == []
        return said

    def die(self, run: Path, fault: Callable[[], None]) -> None:
        """Begins a run that kills itself."""
        process = start(self.command(run), self.folder, self.folder / "output.txt", fault)
        process.join()
        assert process.exitcode == -signal.SIGKILL, (self.folder / "output.txt").read_text()
        assert not (run / "result.json").exists()


@pytest.fixture(scope="module", params=RECIPES)
def recipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return Recipe(RECIPES[request.param], tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def fvsbn(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return Recipe(RECIPES["fvsbn"], tmp_path_factory.mktemp("fvsbn"))


# ---- killed -------------------------------------------------------------------------------------------


def test_every_kill_is_followed_by_an_exact_resume(recipe: Recipe) -> None:
    """CHAINRULE_KILLS=50 kills fifty times in all, at moments that a seed chooses."""
    share = -(-KILLS // len(RECIPES))
    moments = random.Random(0)
    killed = 0
    while killed < share:
        run = recipe.folder / f"kill-{killed}"
        process = start(recipe.command(run), recipe.folder, recipe.folder / "output.txt")
        recipe.wait_for(run / "config.yaml")
        moment = processor(process) + moments.random() * recipe.seconds
        while process.is_alive() and processor(process) < moment:
            time.sleep(0.001)
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:  # else it was faster
            recipe.end(run)
            killed += 1
        shutil.rmtree(run)
    print(f"{killed} kills, {killed} exact resumes")


def die_at(name: str, call: int) -> None:
    """Kills this process just before the given call of ``os.fsync`` or ``Path.replace``: while it writes a file."""
    owner: Any = os if name == "fsync" else Path
    real, calls = getattr(owner, name), 0

    def counted(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    setattr(owner, name, counted)


# config.yaml is written with two syncs and a rename. So is best.ckpt; last.ckpt also renames its predecessor.
@pytest.mark.parametrize(("name", "call"), [("fsync", call) for call in range(3, 9)] + [("replace", 3), ("replace", 5)])
def test_killed_inside_the_writing_of_a_checkpoint(name: str, call: int, fvsbn: Recipe, tmp_path: Path) -> None:
    fvsbn.die(tmp_path / "run", partial(die_at, name, call))
    fvsbn.end(tmp_path / "run")


def test_a_run_that_is_killed_again_and_again_still_ends_the_same(recipe: Recipe, tmp_path: Path) -> None:
    for call in (4, 12, 5, 17):
        recipe.die(tmp_path / "run", partial(die_at, "fsync", call))
    recipe.end(tmp_path / "run")


def test_at_most_one_epoch_is_repeated(fvsbn: Recipe, tmp_path: Path) -> None:
    fvsbn.die(tmp_path / "run", partial(die_at, "fsync", 17))
    before = torch.load(tmp_path / "run/checkpoints" / LAST, weights_only=True)["epoch"]
    begun = len({row["epoch"] for row in rows(tmp_path / "run")})
    assert 2 <= begun - 1 <= before
    assert f"resuming from {tmp_path / 'run/checkpoints' / LAST}" in fvsbn.end(tmp_path / "run")


class Malicious:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, ("executed",)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "torn": lambda file: file.write_bytes(file.read_bytes()[:3000]),
    "empty": lambda file: file.write_bytes(b""),
    "one bit": lambda file: file.write_bytes(flipped(file.read_bytes(), 2500)),
    "gone": lambda file: file.unlink(),
    "foreign": lambda file: torch.save({"state_dict": {}}, file),
    "malicious": lambda file: torch.save(Malicious(), file),
}


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize(
    ("name", "damage"), [*((LAST, damage) for damage in DAMAGES), (BEST, "one bit"), (BEST, "gone")]
)
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_it_used(
    name: str, damage: str, fvsbn: Recipe, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    fvsbn.die(run, partial(die_at, "fsync", 17))
    DAMAGES[damage](run / "checkpoints" / name)
    said = fvsbn.end(run)
    assert (f"{name} is torn or altered" in said) == (damage != "gone")
    assert (f"resuming from {run / 'checkpoints' / PREVIOUS}" in said) == (name == LAST)
    assert ("starts from the beginning" in said) == (name == BEST)
    assert not (tmp_path / "executed").exists()
    assert not (fvsbn.folder / "executed").exists()


def test_a_torn_checkpoint_does_not_take_the_place_of_the_good_one(fvsbn: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "run/checkpoints"
    fvsbn.die(tmp_path / "run", partial(die_at, "fsync", 17))
    DAMAGES["one bit"](folder / LAST)
    good = (folder / PREVIOUS).read_bytes()
    assert resumable(folder) == folder / PREVIOUS
    assert not (folder / LAST).exists()
    SealedFiles().save_checkpoint({"a": 1}, folder / LAST)
    assert (folder / PREVIOUS).read_bytes() == good


# ---- asked to stop ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_asked_to_stop_keeps_its_work_and_leaves_no_record(
    number: signal.Signals, code: int, recipe: Recipe, tmp_path: Path
) -> None:
    run, output = tmp_path / "run", tmp_path / "output.txt"
    process = start(recipe.command(run), recipe.folder, output)
    recipe.wait_for(run / "checkpoints" / LAST)
    os.kill(process.pid or 0, number)
    process.join()
    said = output.read_text()
    assert process.exitcode == code, said
    assert "Traceback" not in said
    assert not (run / "result.json").exists()
    assert "resuming from" in recipe.end(run)


def slow_validation(begun: Path) -> None:
    from chainrule.training.module import DensityModule

    def step(self: DensityModule, x: torch.Tensor, batch_idx: int) -> None:
        begun.touch()
        time.sleep(1)

    DensityModule.validation_step = step  # type: ignore[method-assign]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_what_is_written_down_and_not_trained_can_be_stopped_too(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    words = ["train", *TOY, "model=fvsbn", "trainer.max_epochs=0", "data.eval_batch_size=10", "hydra.run.dir=run"]
    process = start(words, tmp_path, tmp_path / "output.txt", partial(slow_validation, tmp_path / "begun"))
    Recipe.wait_for(tmp_path / "begun")
    os.kill(process.pid or 0, number)
    process.join(60)
    assert process.exitcode == code, (tmp_path / "output.txt").read_text()
    assert not (tmp_path / "run/result.json").exists()
    assert not (tmp_path / "run/failure.txt").exists()


def slow_scores(begun: Path) -> None:
    """Training is over, and the test images are being scored."""
    from chainrule.training import train as experiment

    experiment.nll_and_pixels = lambda *_: (begun.touch(), time.sleep(60))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_asked_to_stop_after_its_training_does(
    number: signal.Signals, code: int, fvsbn: Recipe, tmp_path: Path
) -> None:
    run, output = tmp_path / "run", tmp_path / "output.txt"
    process = start(fvsbn.command(run), fvsbn.folder, output, partial(slow_scores, tmp_path / "begun"))
    fvsbn.wait_for(tmp_path / "begun")
    os.kill(process.pid or 0, number)
    process.join(30)
    assert process.exitcode == code
    *log, last = output.read_text().splitlines()
    assert [" INFO " in line for line in log] == [True] * 3  # what it trains, what it scores, and no traceback
    assert last.endswith("rerun the same command to resume")
    fvsbn.end(run)


def test_one_run_at_a_time_in_a_directory(fvsbn: Recipe, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(fvsbn.command(run), fvsbn.folder, tmp_path / "output.txt", partial(slow_epochs, 0.2))
    fvsbn.wait_for(run / "config.yaml")
    code, said = finish(fvsbn.command(run), fvsbn.folder)
    assert code == 1
    assert "in use by another run" in said
    process.join()
    assert process.exitcode == 0
    assert outcome(run) == fvsbn.expected


def slow_epochs(seconds: float) -> None:
    from chainrule.training.module import DensityModule

    real = DensityModule.on_train_epoch_start
    DensityModule.on_train_epoch_start = lambda self: (time.sleep(seconds), real(self))[1]  # type: ignore[method-assign]


def test_a_finished_run_is_not_trained_again(fvsbn: Recipe, tmp_path: Path) -> None:
    fvsbn.end(tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.ckpt")}
    assert "already finished" in fvsbn.end(tmp_path / "run")
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.ckpt")} == before


# ---- a full disk --------------------------------------------------------------------------------------


def small_files(limit: int) -> None:
    """No file may become longer, which the system reports as it reports a full disk: when writing."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def full_from(call: int) -> None:
    """The disk is full from this call of ``os.fsync`` on."""
    real, calls = os.fsync, 0

    def fail(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    os.fsync = fail


@pytest.mark.parametrize("fault", [partial(small_files, 4000), partial(full_from, 3), partial(full_from, 11)])
def test_a_full_disk_is_one_message_and_the_run_goes_on_when_there_is_room(
    fault: Callable[[], None], fvsbn: Recipe, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    code, said = finish(fvsbn.command(run), fvsbn.folder, fault)
    assert code == 1
    assert "Make room" in said
    assert "Traceback" not in said
    assert not (run / "result.json").exists()
    assert not list(run.rglob("*.part"))
    fvsbn.end(run)
    assert not (run / "failure.txt").exists()


def test_a_full_disk_leaves_no_torn_samples(fvsbn: Recipe, tmp_path: Path) -> None:
    fvsbn.end(tmp_path / "run")
    for out in ("x.npy", "x.png"):
        words = ["sample", f"run={tmp_path}/run", "n=1000", f"out={tmp_path}/{out}"]
        code, said = finish(words, tmp_path, partial(small_files, 400))
        assert code == 1
        assert f"{out}: " in said
        assert "Make room, or write to another folder" in said
        assert not (tmp_path / out).exists()
        assert not list(tmp_path.rglob("*.part"))


# ---- numbers that go bad ------------------------------------------------------------------------------


def poison(step: int, what: str) -> None:
    """Makes the loss or a gradient of one step, counted from 1, not finite."""
    from chainrule.training.callbacks import StopOnNonFinite
    from chainrule.training.module import DensityModule

    loss, update = DensityModule.training_step, StopOnNonFinite.on_before_optimizer_step

    def bad_loss(self: DensityModule, x: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return loss(self, x, batch_idx) * (torch.inf if self.global_step + 1 == step else 1)

    def bad_gradient(self: StopOnNonFinite, trainer: L.Trainer, module: DensityModule, optimizer: object) -> None:
        if module.global_step + 1 == step:
            next(p for p in module.parameters() if p.grad is not None).grad.view(-1)[0] = torch.nan
        update(self, trainer, module, optimizer)

    if what == "NLL":
        DensityModule.training_step = bad_loss  # type: ignore[method-assign]
    else:
        StopOnNonFinite.on_before_optimizer_step = bad_gradient  # type: ignore[method-assign]


def poison_weights(step: int) -> None:
    """Makes the weights not finite after a step whose loss and gradient were."""
    from chainrule.training.module import DensityModule

    after = DensityModule.on_train_batch_end

    def bad_weights(self: DensityModule, *arguments: Any) -> None:  # noqa: ANN401
        after(self, *arguments)
        if self.global_step == step:
            with torch.no_grad():
                next(self.parameters()).fill_(torch.nan)

    DensityModule.on_train_batch_end = bad_weights  # type: ignore[method-assign]


def test_weights_that_go_bad_in_the_last_step_of_an_epoch_are_seen_in_time(fvsbn: Recipe, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, said = finish(fvsbn.command(run), fvsbn.folder, partial(poison_weights, 30))
    assert code == 1
    assert "the validation NLL is not finite at step 30, in epoch 2," in said
    assert not (run / "result.json").exists()
    kept = [torch.load(path, weights_only=True) for path in (run / "checkpoints").glob("*.ckpt")]
    assert len(kept) >= 2
    assert all(bool(v.isfinite().all()) for c in kept for v in c["state_dict"].values())
    fvsbn.end(run)


@pytest.mark.parametrize("step", [1, 27, 60])
@pytest.mark.parametrize("what", ["NLL", "gradient"])
def test_a_number_that_goes_bad_stops_the_run_and_keeps_the_last_good_checkpoint(
    what: str, step: int, fvsbn: Recipe, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    code, said = finish(fvsbn.command(run), fvsbn.folder, partial(poison, step, what))
    assert code == 1
    assert f"the training {what} is not finite at step {step}, in epoch {(step - 1) // 10}," in said
    assert "learning rate of 0.00" in said
    assert "Lower optimizer.lr" in said
    assert not (run / "result.json").exists()
    assert f"at step {step}," in (run / "failure.txt").read_text()
    assert "Traceback" not in (run / "failure.txt").read_text()
    assert "Traceback" in (run / "train.log").read_text()
    kept = [torch.load(path, weights_only=True) for path in (run / "checkpoints").glob("*.ckpt")]
    assert (len(kept) == 0) == (step == 1)
    assert all(bool(v.isfinite().all()) for c in kept for v in c["state_dict"].values())
    fvsbn.end(run)  # without the poison it goes on


# ---- side by side, and many ---------------------------------------------------------------------------


def test_two_runs_write_to_the_same_parent_at_once(fvsbn: Recipe, tmp_path: Path) -> None:
    words = ["train", *TOY, *fvsbn.words, "paths.runs=runs"]
    processes = [start([*words, f"seed={i}"], tmp_path, tmp_path / f"output-{i}.txt") for i in range(2)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 2
    (first,) = tmp_path.glob("runs/fvsbn-toy-s0-*")
    assert outcome(first) == fvsbn.expected


def watch(file: Path) -> None:
    """Notes this process's memory and open files after every run."""
    from chainrule.training import train as experiment

    real = experiment.train

    def noted(*arguments: Any) -> dict[str, Any]:  # noqa: ANN401
        record = real(*arguments)
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        with file.open("a") as out:
            gc.collect()
            out.write(f"{resident} {len(list(Path('/proc/self/fd').iterdir()))} {len(gc.get_objects())}\n")
        return record

    experiment.train = noted


def test_a_long_sweep_grows_neither_in_memory_nor_in_open_files(tmp_path: Path) -> None:
    """CHAINRULE_RUNS=200 trains two hundred."""
    count = int(os.environ.get("CHAINRULE_RUNS", "20"))
    words = ["train", "-m", "data=toy", "data.side=2", "data.batch_size=500", "model=fvsbn", "trainer.max_epochs=1"]
    words += ["logger=none", "samples=1", "trainer.enable_progress_bar=false", f"seed=range({count})"]
    code, said = finish(words, tmp_path, partial(watch, tmp_path / "watched"))
    assert code == 0, said
    assert len(list(tmp_path.rglob("result.json"))) == count
    memory, handles, objects = np.loadtxt(tmp_path / "watched").T
    assert len(memory) == count
    print(f"{memory[[5, -1]] / 2**20} MB and {handles[[5, -1]]} open files after six runs and after {count}")
    assert handles[-1] <= handles[5]
    assert (objects[-1] - objects[5]) / (count - 6) < 20  # a configuration alone would be hundreds
    assert memory[-1] - memory[5] < 2**20 * (10 + count / 10)


# ---- files --------------------------------------------------------------------------------------------


def archive(path: Path) -> bytes:
    torch.save({"a": torch.arange(100)}, path)
    return path.read_bytes()


def test_a_sealed_checkpoint_is_still_a_checkpoint_and_every_bit_of_it_counts(tmp_path: Path) -> None:
    plain = archive(tmp_path / "plain")
    content = seal(plain)
    (tmp_path / "sealed").write_bytes(content)
    assert torch.equal(torch.load(tmp_path / "sealed", weights_only=True)["a"], torch.arange(100))
    assert is_intact(content)
    assert not is_sealed(plain)
    assert not any(is_intact(flipped(content, place)) for place in range(0, len(content), 7))
    assert not any(is_intact(content[:length]) for length in range(0, len(content), 7))


def test_the_newest_good_checkpoint_is_chosen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = seal(archive(tmp_path / "plain"))
    assert resumable(tmp_path) is None
    for name in (PREVIOUS, LAST, BEST):
        (tmp_path / name).write_bytes(content)
    assert resumable(tmp_path) == tmp_path / LAST
    assert not caplog.records
    (tmp_path / LAST).write_bytes(content[:-1])
    assert resumable(tmp_path) == tmp_path / PREVIOUS
    assert "last.ckpt is torn or altered" in caplog.text
    (tmp_path / PREVIOUS).write_bytes(content[1:])
    assert resumable(tmp_path) is None


def test_a_file_keeps_its_predecessor_where_it_is_asked_to(tmp_path: Path) -> None:
    for content in (b"a", b"b", b"c"):
        write_whole(tmp_path / "new", content, previous=tmp_path / "old")
    assert ((tmp_path / "new").read_bytes(), (tmp_path / "old").read_bytes()) == (b"c", b"b")


def test_a_drive_that_cannot_sync_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(handle: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", fsync)
    write_whole(tmp_path / "a", b"a")
    assert (tmp_path / "a").read_bytes() == b"a"


def test_what_a_killed_writer_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_sync", lambda folder: None)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/.last.ckpt.0123abcd.part").write_bytes(b"half")
    write_whole(tmp_path / "a.part", b"not ours to remove")
    remove_parts(tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.part"]
