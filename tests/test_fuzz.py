"""Whatever a key of a configuration or a field of a run's files is set to: one message, or a number that is right.

CHAINRULE_FUZZ=10 tries ten times as many inputs.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import re
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from chainrule import cli
from chainrule.bench.timing import Timer
from chainrule.files import content_of, seal

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

TIMES = int(os.environ.get("CHAINRULE_FUZZ", "1"))
SECONDS = 30  # that one command may take
MEMORY = 4 << 30  # bytes that it may take more than the tests have
TOY = ["data=toy", "logger=none", "trainer.enable_progress_bar=false", "trainer.max_epochs=1", "samples=1"]
SMALL = [*TOY, "data.batch_size=500"]

# Every verb, with words for which it succeeds at once; a and b are finished, certified runs.
VERBS: dict[str, list[str]] = {
    "train": [*SMALL, "model=fvsbn"],
    "evaluate": ["run=a"],
    "sample": ["run=a", "n=4", "out=s.npy"],
    "complete": ["run=a", "n=2", "draws=2", "out=c.npy"],
    "mix": ["runs=a,b", "out=m", "samples=1"],
    "certify": ["run=a", "n=5"],
    "check": ["model=tabular"],
    "compress": ["run=a", "file=f"],
    "decompress": ["run=a", "file=a.bits"],
    "tabulate": ["runs=a,b"],
    "report": ["runs=a,b", "out=r.html"],
    "compare": ["runs=a,b"],
    "search": [*SMALL, "model=fvsbn", "search.trials=1", "hparams_search=fvsbn"],
    "bench": [
        "models=[tabular]", "pixels={tabular: 4}", "growth=false", "seconds=0.01", "rounds=1", "images=2", "batch=2",
    ],
    "claims": ["runs=a,b"],
    "dashboard": ["publish=false"],
}  # fmt: skip
# Choices of groups whose keys are tried besides.
MORE = {
    "train": [
        ["model=tabular"], ["model=nade", "model.hidden=3"], ["model=mlp"], ["model=made", "model.hidden=4"],
        ["model=deep_nade", "model.hidden=4"], ["model=pixelcnn", "model.patch=1", "model.channels=2"],
        ["model=transformer", "model.patch=1", "model.width=4"], ["optimizer=sgd"], ["optimizer=adagrad"],
        ["scheduler=inverse_time"], ["callbacks=[ema,early_stopping]"], ["logger=csv"],
        ["data=arrays", "data.file=i.npz"],
    ],
}  # fmt: skip
HYDRA = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.job.name", "hydra.job.chdir")

LONG = "x" * 5000
VALUES = [
    "null", "true", "nope", "-1", "0", "0.5", "2", "1e30", "-1e30", "nan", "inf", "-inf", "2147483648",
    "-9223372036854775809", "10000000000000000000", "''", LONG, "übung", "'a b'", "'\x1b[31m'", "[]", "[1,2]", "[null]",
    "[[]]", "{}", "{a:1}", "{_target_:pathlib.PurePath}", "pathlib.PurePath", "???", "${nope}", "${oc.env:NO_SUCH}",
    "a,b", "[", "'", "~",
]  # fmt: skip


class Hang(BaseException):
    """A command took too long."""


def expire(number: int, frame: FrameType | None) -> None:
    raise Hang


def run(*words: str, seconds: int = SECONDS) -> tuple[bool, str]:
    """Runs a command in this process: whether it succeeded, and all that it said. Anything else is a fault."""
    os.environ.pop("HYDRA_FULL_ERROR", None)
    said, before, argv = io.StringIO(), signal.signal(signal.SIGALRM, expire), sys.argv
    sys.argv = ["chainrule", *words]
    code: object = 0
    signal.alarm(seconds)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            cli.main()
    except SystemExit as stop:
        code = stop.code
        if isinstance(code, str):
            assert code.startswith("chainrule"), code
            assert code.partition(": ")[2].strip(), "a message that says nothing"
            print(code, file=said)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        sys.argv = argv
    assert not re.search("Traceback|Error executing job", said.getvalue()), said.getvalue()
    return not code, said.getvalue()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with finished, certified runs, a and b, and what the commands read besides; little memory is left."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "disabled")
        patch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # the discard port: refused at once
        patch.setattr(Timer, "_warm_up", lambda self, action: 1)
        patch.setattr(torch.cuda, "is_available", lambda: False)
        np.savez("i.npz", **dict.fromkeys(("train", "valid", "test"), np.eye(4, dtype=np.uint8).reshape(4, 2, 2)))
        for name, model in (("a", ["model=nade", "model.hidden=3"]), ("b", ["model=fvsbn"])):
            assert run("train", *SMALL, *model, f"hydra.run.dir={name}", seconds=600)[0]  # kernels are compiled
            assert run("certify", f"run={name}", "n=5", seconds=600)[0]
        assert run("compress", "run=a", "file=a.bits")[0]
        limits = resource.getrlimit(resource.RLIMIT_AS)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, limits[1]))
        yield folder
        resource.setrlimit(resource.RLIMIT_AS, limits)


@contextlib.contextmanager
def copied(home: Path) -> Iterator[Path]:
    """A copy of the folder, to work in."""
    work = home.with_name("work")
    shutil.copytree(home, work)
    os.chdir(work)
    try:
        yield work
    finally:
        os.chdir(home)
        shutil.rmtree(work)


def fuzz(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return settings(
        max_examples=examples * TIMES, derandomize=True, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )  # fmt: skip


# ---- configurations -----------------------------------------------------------------------------------


def paths(node: object, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in nested dictionaries and lists, be it a value or a part with values."""
    if prefix:
        yield prefix
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from paths(value, (*prefix, key))


@cache
def keys(verb: str, more: tuple[str, ...] = ()) -> list[str]:
    """Every dotted key that a verb knows, with these words more."""
    with initialize_config_dir(str(cli.CONF), version_base="1.3"):
        cfg = OmegaConf.to_container(compose(verb, cli._checked(verb, command(verb, *more)[1:])))
    return [*(".".join(map(str, path)) for path in paths(cfg)), *HYDRA]


def inputs() -> st.SearchStrategy[tuple[list[str], str, str]]:
    """A command, and a key and a value of it that nobody has thought of."""
    text = st.text(st.characters(exclude_characters="/.~\\", exclude_categories=["Cs"]), max_size=20)
    quoted = text.map(lambda t: "'" + t.replace("'", "\\'") + "'")
    values = st.one_of(st.sampled_from(VALUES), st.sampled_from(VALUES), quoted, text, st.floats().map(str))
    commands = st.sampled_from([(verb, ()) for verb in VERBS] + [(verb, tuple(w)) for verb in MORE for w in MORE[verb]])
    return commands.flatmap(
        lambda c: st.tuples(st.just(command(c[0], *c[1])), st.deferred(lambda: st.sampled_from(keys(*c))), values)
    )


def command(verb: str, *more: str) -> list[str]:
    """A command of :data:`VERBS` with words more, in the place of those with the same keys."""
    given = {word.partition("=")[0].lstrip("~") for word in more}
    return [verb, *(word for word in VERBS[verb] if word.partition("=")[0] not in given), *more]


def numbers(folder: Path) -> dict[str, float]:
    """The test NLL of every run below a folder, by the name of its directory."""
    found = {}
    for file in folder.rglob("result.json"):
        found[file.parent.name] = json.loads(file.read_text())["nll"]["test"]["mean"]
    return found


known: dict[str, float] = {}  # what was trained in a directory of a name


def try_key(home: Path, words: list[str], key: str, value: str) -> bool:
    """Whether a command succeeds with it; every fault is an error."""
    with copied(home) as work:
        before = numbers(home)
        kept = [word for word in words if word.partition("=")[0] != key]
        good, said = run(*kept, f"~{key}" if value == "~" else f"{key}={value}")
        if words[0] != "mix":  # what is there already stays as it is
            after = numbers(work)
            assert {name: after.get(name) for name in before} == before
            for name in after.keys() - before.keys():
                if re.search("-[0-9a-f]{8}$", name):  # a directory has the name of its number
                    assert known.setdefault(name, after[name]) == after[name], name
        if good and words[0] in ("evaluate", "certify") and not key.startswith(("split", "run")):
            assert f"{before['a']:.3f}" in said or "data" in key
        return good


def test_every_verb_is_here() -> None:
    assert set(VERBS) == set(cli.VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_succeeds_as_it_is(verb: str, home: Path) -> None:
    with copied(home):
        assert run(verb, *VERBS[verb])[0]


def test_any_key_of_a_configuration(home: Path) -> None:
    tried = dict.fromkeys((True, False), 0)

    @fuzz(40)
    @given(inputs())
    def property_(drawn: tuple[list[str], str, str]) -> None:
        tried[try_key(home, *drawn)] += 1

    property_()
    print(f"{tried[True]} commands succeeded, {tried[False]} were refused by a message")


# ---- files of a run -----------------------------------------------------------------------------------

GONE, OTHER = object(), object()
FIELDS = [
    None, True, -1, 0, 0.5, 2, 1e300, -1e300, math.nan, math.inf, 10**30, "", LONG, "übung", "\x1b[31m", "=1+1", "a\nb",
    [], {}, [1], [[]], {"a": 1}, {"_target_": "pathlib.PurePath"}, GONE, OTHER, OTHER, OTHER,
]  # fmt: skip
PROVED = (
    "model", "variant", "test_nll", "stderr", "seeds", "bits_per_pixel", "parameters", "effective_parameters",
    "valid_nll", "train_nll", "order", "data", "height", "width", "test_sha256",
)  # fmt: skip


def other(value: object) -> object:
    """Something that could stand there as well."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return value * 1.01 + 0.01
        case str():
            return value[::-1] + "0"
        case list():
            return value[::-1] * 2
        case _:
            return {}


def changed(content: Any, path: tuple[Any, ...], value: object) -> bool:  # noqa: ANN401
    """Changes what is at a path in place; whether it is another content now."""
    before = json.dumps(content, sort_keys=True)
    *parents, last = path
    node = content
    for key in parents:
        node = node[key]
    if value is GONE:
        del node[last]
    else:
        node[last] = other(node[last]) if value is OTHER else value
    return json.dumps(content, sort_keys=True) != before


def edit_json(file: Path, draw: Callable[[Any], Any]) -> bool:
    content = json.loads(file.read_text())
    edited = changed(content, draw(st.sampled_from(list(paths(content)))), draw(st.sampled_from(FIELDS)))
    file.write_text(json.dumps(content))
    return edited


def edit_yaml(file: Path, draw: Callable[[Any], Any]) -> bool:
    head = "".join(line for line in file.read_text().splitlines(keepends=True) if line.startswith("#"))
    content = yaml.safe_load(file.read_text())
    edited = changed(content, draw(st.sampled_from(list(paths(content)))), draw(st.sampled_from(FIELDS)))
    file.write_text(head + yaml.safe_dump(content))
    return edited


ARRAYS: list[Callable[[np.ndarray], Any]] = [
    lambda x: x[::-1], lambda x: x * 1.5, lambda x: x * math.nan, lambda x: x[:-1], lambda x: x[:0], lambda x: x[None],
    lambda x: x.astype(str), lambda x: x.astype(complex), lambda x: x.astype(object), lambda x: x.astype(np.float16),
    lambda x: np.float64(1), lambda x: x + 1e308, lambda x: x.astype("datetime64[s]"), lambda x: np.roll(x, 1),
]  # fmt: skip


def edit_npz(file: Path, draw: Callable[[Any], Any]) -> bool:
    with np.load(file) as archive:
        content = dict(archive)
    name = draw(st.sampled_from(sorted(content)))
    before = content[name].copy()
    content[draw(st.sampled_from([name, name, "other"]))] = draw(st.sampled_from(ARRAYS))(content.pop(name))
    np.savez(file, **content)
    return name == "nll" and not np.array_equal(before, content.get(name, 0))


TENSORS: list[Callable[[Any], Any]] = [
    lambda x: x + 1, lambda x: x * 0, lambda x: x * math.nan, lambda x: x[:0], lambda x: x[None], lambda x: x.double(),
    lambda x: x.half(), lambda x: x.int(), lambda x: x.to(torch.complex64), lambda x: x.bool(), lambda x: x.flip(0),
    lambda x: x.to_sparse(), lambda x: x.tolist(), lambda x: x.to("meta"),
    lambda x: torch.quantize_per_tensor(x.float(), 1, 0, torch.qint8),
]  # fmt: skip


def edit_checkpoint(file: Path, draw: Callable[[Any], Any]) -> bool:
    content = torch.load(file, weights_only=True)
    places = [("state_dict",), ("image_shape",), *paths({"state_dict": content["state_dict"]})]
    places += [("image_shape", 0), ("image_shape", 1), *(path for path in paths(content) if path[0] != "state_dict")]
    *parents, last = draw(st.sampled_from(places))
    node = content
    for key in parents:
        node = node[key]
    value = node[last]
    if isinstance(value, torch.Tensor):
        node[last] = draw(st.sampled_from(TENSORS))(value)
    else:
        field = draw(st.sampled_from([*FIELDS, 2**20, 2**40, [2**20, 2**20], [9, 1], [-3, -3], [1.5, 6]]))
        if field is GONE:
            del node[last]
        else:
            node[last] = other(value) if field is OTHER else field
    archive = content_of(lambda f: torch.save(content, f))
    file.write_bytes(seal(archive) if draw(st.booleans()) else archive)
    return True


def edit_bytes(file: Path, draw: Callable[[Any], Any]) -> bool:
    content = bytearray(file.read_bytes())
    place = draw(st.integers(0, len(content) - 1))
    if draw(st.booleans()):
        del content[place:]
    else:
        content[place] ^= draw(st.integers(1, 255))
    file.write_bytes(bytes(content))
    return False


FILES: dict[str, tuple[str, Callable[[Path, Callable[[Any], Any]], bool]]] = {
    "record": ("result.json", edit_json),
    "certificate": ("certificate.json", edit_json),
    "config": ("config.yaml", edit_yaml),
    "nll": ("nll_test.npz", edit_npz),
    "checkpoint": ("checkpoints/best.ckpt", edit_checkpoint),
    **{f"bytes of {name}": (name, edit_bytes) for name in
       ("result.json", "certificate.json", "config.yaml", "nll_test.npz", "checkpoints/best.ckpt", "samples.png")},
}  # fmt: skip
TABULATE = ("tabulate", "runs=a,b", "format=csv", "per=run")


def rows() -> dict[str, dict[str, str]] | None:
    """What the table says of each run; None: a message instead of it."""
    good, said = run(*TABULATE)
    return {row["run"]: row for row in csv.DictReader(io.StringIO(said))} if good else None


@cache
def undisturbed() -> tuple[dict[str, dict[str, str]], str, str]:
    """What the table, ``evaluate`` and ``compare`` say before anything is changed."""
    return rows() or {}, run("evaluate", "run=a")[1], run("compare", "runs=a,b")[1]


def try_file(home: Path, name: str, draw: Callable[[Any], Any]) -> None:
    """Changes a file of run a; every fault is an error."""
    file, edit = FILES[name]
    with copied(home) as work:
        before, evaluated, compared = undisturbed()
        edited = edit(work / "a" / file, draw)
        after = rows()
        if after and "a" in after:
            same = all(after["a"].get(key) == value for key, value in before["a"].items())
            assert after["a"]["certified"] != "yes" or (same and not (edited and name != "certificate"))
        good, said = run("evaluate", "run=a")
        assert not good or said == evaluated
        good, said = run("compare", "runs=a,b")
        assert not good or said == compared or re.search("not certified|warning", said)
        if draw(st.integers(0, 9)) == 0:
            run("report", "runs=a,b", "out=r.html")
            run("sample", "run=a", "n=2", "out=s.npy")
            run("mix", "runs=a,b", "out=m", "samples=1")
            if run("certify", "run=a", "n=5")[0] and (after := rows()):
                assert {key: after["a"].get(key) for key in PROVED} == {key: before["a"][key] for key in PROVED}


@pytest.mark.parametrize("name", FILES)
def test_any_field_of_a_run_s_files(name: str, home: Path) -> None:
    @fuzz(3)
    @given(st.data())
    def property_(data: st.DataObject) -> None:
        try_file(home, name, data.draw)

    property_()
