"""``chainrule VERB [key=value …]``: Hydra entry points, no logic, and the end of every error."""

from __future__ import annotations

import difflib
import io
import logging
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from chainrule import CONF, __version__
from chainrule.runs.directory import RunDir, is_mistake, message
from chainrule.runs.settings import check_texts, flatten, public_config

if TYPE_CHECKING:
    from rich.console import RenderableType

    from chainrule.training.sweep import Job

log = logging.getLogger(__name__)

# Exit codes of a process that was asked to end, as a shell has them.
STOPPED = {130: "interrupted (Ctrl-C)", 143: "stopped (SIGTERM)"}

PATHS = (
    "run", "runs", "out", "file", "data.file", "observed", "bench", "figures", "ckpt_path",
    "paths.data_dir", "paths.cache_dir", "paths.runs", "hydra.run.dir", "hydra.sweep.dir",
)  # fmt: skip

VALUED = ("-c", "--cfg", "-cd", "--config-dir", "-p", "--package", "-i", "--info")  # options of Hydra's, if without =

mistakes: list[Exception] = []  # that ended a verb


@contextmanager
def verb() -> Iterator[None]:
    """Keeps a mistake for :func:`main`: on its way through Hydra, that would print a line of its own."""
    try:
        yield
    except Exception as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN or not is_mistake(error):
            raise
        mistakes.append(error)


@verb()
def train(cfg: DictConfig) -> float | None:
    """train, select on validation, score the test set once"""
    from rich.syntax import Syntax  # noqa: PLC0415

    from chainrule.reporting import tables  # noqa: PLC0415
    from chainrule.runs.fingerprint import earlier  # noqa: PLC0415
    from chainrule.training.sweep import isolated  # noqa: PLC0415

    job = HydraConfig.get()
    if job.mode == RunMode.RUN and (swept := job.sweeper.get("params")):
        words = " ".join(f"{key}={values}" for key, values in swept.items())
        log.warning("this recipe is a sweep, %s, and one job of it is run here: add -m", words)
    alone = sys.stdout.isatty() and job.mode == RunMode.RUN
    if alone if cfg.print_config is None else cfg.print_config:
        _show(Syntax(OmegaConf.to_yaml(OmegaConf.create(public_config(cfg))), "yaml", background_color="default"))
    with isolated(run := RunDir(Path(job.runtime.output_dir))):
        record = earlier(run, cfg) if run.record.is_file() else None
        if record is None:  # else the seconds that Lightning takes to be imported are saved
            from chainrule.training import train as training  # noqa: PLC0415

            record = training.train(cfg, run.path, list(job.overrides.task))
        _show(tables.summary(record))
        return record.nll["valid"].mean
    return None  # failed


@verb()
def evaluate(cfg: DictConfig) -> None:
    """the NLL of a finished run, recomputed"""
    from chainrule.evaluation import scoring  # noqa: PLC0415

    result = scoring.evaluate(cfg)
    _show(
        f"{result['data']} {result['split']}: {result['mean']:.3f} ± {result['stderr']:.3f} nats "
        f"({result['count']:,} images, sha256 {result['sha256'][:12]}…)"
    )


@verb()
def sample(cfg: DictConfig) -> None:
    """draw images"""
    from chainrule.evaluation import sampling  # noqa: PLC0415

    _show(f"written: {sampling.sample(cfg)}")


@verb()
def complete(cfg: DictConfig) -> None:
    """keep half of some test images, draw the rest"""
    from chainrule.evaluation import sampling  # noqa: PLC0415

    _show(f"written: {sampling.complete(cfg)}")


@verb()
def mix(cfg: DictConfig) -> None:
    """the equal-weight mixture of finished runs"""
    from chainrule.evaluation import mix as mixing  # noqa: PLC0415
    from chainrule.reporting import tables  # noqa: PLC0415

    path, record = mixing.mix(cfg, list(HydraConfig.get().overrides.task))
    _show(tables.summary(record))
    _show(f"written: {path}")


@verb()
def certify(cfg: DictConfig) -> None:
    """checks that a run's number is a normalized likelihood; certificate.json"""
    from chainrule.evaluation import certify as proving  # noqa: PLC0415

    if not proving.certify(cfg, _show):
        sys.exit(1)


@verb()
def check(cfg: DictConfig) -> None:
    """checks that a model is a normalized, causal density"""
    from chainrule import testing  # noqa: PLC0415
    from chainrule.density import AutoregressiveDensity  # noqa: PLC0415
    from chainrule.runs.load import class_named  # noqa: PLC0415

    model = class_named(str(cfg.model._target_), AutoregressiveDensity)  # type: ignore[type-abstract]
    given = [override.partition("=")[0].strip("+~") for override in HydraConfig.get().overrides.task]
    own = {key: cfg.model[key] for key in model.small if key in cfg.model and f"model.{key}" in given}
    small = {key: value for key, value in model.small.items() if key in cfg.model or key == "shape"}
    try:
        done = testing.check(partial(hydra.utils.instantiate, cfg.model, _convert_="all"), **(small | own))
    except (AssertionError, ValueError, InstantiationException) as error:
        sizes = ", ".join(f"{key}={value}" for key, value in (small | own).items())
        raise ValueError(
            f"{message(error)}\nwhat is checked is small: {sizes}. Other values: model.KEY=VALUE"
        ) from error
    _show(f"{model.__name__}: {len(done)} checks passed")


@verb()
def compress(cfg: DictConfig) -> None:
    """the test images, or your own, in one file without loss"""
    from chainrule.evaluation import coding  # noqa: PLC0415

    _show(coding.compress(cfg))


@verb()
def decompress(cfg: DictConfig) -> None:
    """the images in it"""
    from chainrule.evaluation import coding  # noqa: PLC0415

    path, count = coding.decompress(cfg)
    _show(f"written: {path} ({count:,} images)")


@verb()
def tabulate(cfg: DictConfig) -> None:
    """a table of all finished runs below a folder"""
    from chainrule.reporting import tables  # noqa: PLC0415

    options = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(options, dict)
    _show(tables.tabulate(_runs(cfg), **{str(key): value for key, value in options.items() if key != "runs"}))


@verb()
def report(cfg: DictConfig) -> None:
    """all about them as one HTML file: table, curves, samples, configurations"""
    from chainrule.reporting.report import write_report  # noqa: PLC0415

    for file in write_report(_runs(cfg), cfg.out, cfg.bench, cfg.published, cfg.figures):
        _show(f"written: {file}")


@verb()
def compare(cfg: DictConfig) -> None:
    """paired differences of test NLL, image by image"""
    from chainrule.reporting import compare as comparing  # noqa: PLC0415

    _show(comparing.table(comparing.compare(_runs(cfg)), format=cfg.format))


@verb()
def search(cfg: DictConfig) -> None:
    """good settings, found on the validation images"""
    from chainrule.training.sweep import require  # noqa: PLC0415

    require("search")
    from chainrule.training import search as searching  # noqa: PLC0415

    job = HydraConfig.get()
    words = searching.train_overrides(job.runtime.choices, job.overrides.task)
    found = searching.Search(cfg, Path(job.runtime.output_dir), words)
    found.run()
    _show(searching.summary(found))
    for best in found.ranking()[:1]:
        _show(f"the best: {shlex.join(['chainrule', 'train', *found.command(best)])}")
        _show(f"as an experiment: {searching.write_recipe(found, best)}")


@verb()
def bench(cfg: DictConfig) -> None:
    """what training and sampling cost on this machine"""
    from chainrule.bench import run, table  # noqa: PLC0415

    job = HydraConfig.get()
    _show(table.render(run.bench(cfg, job.runtime.output_dir, list(job.overrides.task))))


@verb()
def claims(cfg: DictConfig) -> None:
    """what the text says of the models, measured on finished runs"""
    from chainrule.bench import claims as study  # noqa: PLC0415

    _runs(cfg)
    _show(study.claims(cfg))


@verb()
def dashboard(cfg: DictConfig) -> None:
    """a W&B workspace for all runs of a project"""
    from chainrule.training.sweep import require  # noqa: PLC0415

    require("dashboard")
    from chainrule.reporting import workspace  # noqa: PLC0415

    _show(f"workspace: {workspace.dashboard(cfg)}")


VERBS: dict[str, Callable[[DictConfig], float | None]] = {
    verb.__name__: verb
    for verb in (
        train, evaluate, sample, complete, mix, certify, check, compress, decompress,
        tabulate, report, compare, search, bench, claims, dashboard,
    )
}  # fmt: skip


def main() -> None:
    """The ``chainrule`` command."""
    name, *overrides = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "help", "--version", "list"):
        _show(choices(overrides) if name == "list" else f"chainrule {__version__}" if name == "--version" else usage())
        return
    if name in ("-sc", "--shell-completion"):
        name, overrides = _completed_verb(), ["-sc", *overrides]
    if name not in VERBS:
        sys.exit(f"chainrule: no command {name!r}; there are {', '.join([*VERBS, 'list'])}. See chainrule --help")
    if {"-h", "--help"} & set(overrides):
        _show(keys(name, overrides))
        return
    _prepare()
    traceback_wanted = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands every error on: they are reported here
    code: str | int | None = None
    try:
        sys.argv = [sys.argv[0], *_checked(name, overrides)]
        with _stoppable():
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(VERBS[name])()
        if mistakes:
            raise mistakes[0]
    except (KeyboardInterrupt, SystemExit) as stop:
        code = 130 if isinstance(stop, KeyboardInterrupt) else stop.code
        if code in STOPPED:
            print(f"chainrule {name}: {STOPPED[code]}; rerun the same command to resume", file=sys.stderr)
    except Exception as error:
        if traceback_wanted or not (is_mistake(error) or _jobs()):
            raise
        said = _misspelt(name, sys.argv[1:], error) or message(error)
        code = f"chainrule {name}: {'the launcher stopped: ' * bool(_jobs())}{said}"
        written = error if isinstance(error, OSError) else error.__cause__
        if not mistakes and isinstance(written, OSError) and written.errno:  # Hydra's folder, or its log file
            cure = "Results cannot be written there: choose another folder, as in paths.runs=FOLDER"
            code = f"chainrule {name}: {message(written)}. {cure}"
    if (jobs := _jobs()) is not None:
        code = _end(jobs, code)
    with suppress(OSError):  # whoever was to read it may be gone
        sys.stdout.flush()
    if code:
        sys.exit(code)


def _completed_verb() -> str:
    """The verb on the command line that TAB was pressed in, taken out of it: Hydra completes what follows."""
    program, *words = os.environ.get("COMP_LINE", "chainrule train ").split(" ")
    if len(words) < 2 or words[0] not in VERBS:
        print(" ".join(VERBS))
        raise SystemExit
    os.environ["COMP_LINE"] = " ".join([program, *words[1:]])
    return words[0]


def _prepare() -> None:
    """Makes the environment of a process one in which nothing but the configuration decides."""
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed
            setattr(sys, stream, Path(os.devnull).open("w"))  # noqa: SIM115
        elif isinstance(found := getattr(sys, stream), io.TextIOWrapper):
            found.reconfigure(errors="replace")  # a Latin-1 terminal
    logging.raiseExceptions = False  # a full disk is reported once, and not by every line of the log
    os.environ["MPLBACKEND"] = "agg"  # not a notebook's
    # OpenMP's threads wait for the next loop by spinning. On cores that others use as well, a long spin keeps
    # the thread that everybody waits for off its core, and a step takes ten times as long; a short one costs nothing.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    mistakes.clear()
    if "chainrule.training.sweep" in sys.modules:
        sys.modules["chainrule.training.sweep"].Sweep.jobs = None
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # models of the user's own


def _checked(name: str, overrides: Sequence[str]) -> list[str]:
    """The command line for Hydra: options first, paths quoted.

    Raises:
        ValueError: a flag or a choice that cannot work here.
    """
    for word in overrides:
        if re.match("--config-(path|name)|-c[pn]", word):  # the jobs of a sweep are found in ours
            raise ValueError(
                "--config-path and --config-name replace chainrule's own configuration: leave them out, and add "
                "configurations of yours with --config-dir=FOLDER (its experiment/mine.yaml is then experiment=mine)"
            )
        if word.startswith("hydra/launcher="):  # without its packages Hydra does not even know the choice
            from chainrule.training.sweep import require  # noqa: PLC0415

            require(word.partition("=")[2])
    paths = (*PATHS, "images") if name == "compress" else PATHS  # to bench it is a number
    keys = [word.partition("=")[0] for word in overrides]
    if twice := [key for key in ("run", "runs") if keys.count(key) > 1]:
        raise ValueError(f"{twice[0]}= is given {keys.count(twice[0])} times: give it once, as in runs=DIR,DIR")
    options = [w for w, before in zip(overrides, ["", *overrides], strict=False) if w[:1] == "-" or before in VALUED]
    return [*options, *(_quoted(word, paths) for word in overrides if word not in options)]


def _quoted(word: str, paths: Sequence[str]) -> str:
    """Paths as people type them: quoted for Hydra's grammar, so that spaces, = and commas are only letters.

    A ~ is the home folder: shells leave it as it is after a =, and Hydra makes a folder of that name.

    Raises:
        ValueError: the path is empty, or the home folder of somebody who is not known here.
    """
    key, equals, value = word.partition("=")
    if not equals or key.lstrip("+") not in paths or value[:1] in ("'", '"', "[") or value == "null":
        return word
    if not value:
        raise ValueError(f"{key}= is empty: is a variable not set? Give a path")
    several = key == "runs" and not os.path.lexists(os.path.expanduser(value))  # noqa: PTH111
    parts = [os.path.expanduser(part) for part in (value.split(",") if several else [value])]  # noqa: PTH111
    if unknown := [part for part in parts if part.startswith("~")]:
        raise ValueError(f"{key}={unknown[0]}: there is no such user here; give the whole path")
    quoted = ["'" + part.replace("'", "\\'") + "'" for part in parts]
    return f"{key}=[{','.join(quoted)}]" if key == "runs" else f"{key}={quoted[0]}"


def _misspelt(name: str, overrides: Sequence[str], error: Exception) -> str:
    """Of a key that there is not: those that look like it. Hydra's own cure is a + before it, whatever was meant."""
    refused = re.match(r"Could not override '(.+?)'", str(error))
    if not refused:
        return ""
    groups = [word for word in overrides if (CONF / word.partition("=")[0]).is_dir()]
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            known = flatten(cast(dict[str, Any], OmegaConf.to_container(hydra.compose(name, groups))))
    except Exception:
        return ""
    key = refused[1]
    names = {".".join(k.split(".")[:n]) for k, _ in known for n in range(1, k.count(".") + 2)}
    names = {known for known in names if not key.startswith(f"{known}.")}
    close = difflib.get_close_matches(key, names, 3) or sorted(n for n in names if n.endswith("." + key))
    asked = f"did you mean {' or '.join(close)}? " if close else ""
    taken = f"+{key}=… gives one that is not listed" * ("." in key)
    return f"there is no key {key!r} here: {asked}`chainrule {name} --help` lists them. {taken}".strip()


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM as an exception, SystemExit(143), also where Lightning is not there to catch it."""

    def stop(number: int, frame: FrameType | None) -> None:
        if signal.getsignal(signal.SIGTERM) is stop:  # in a training Lightning's own stands before: it knows when
            raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _jobs() -> list[Job] | None:
    """The jobs of the sweep that the command runs; None: it runs none."""
    sweep = sys.modules.get("chainrule.training.sweep")
    return sweep.Sweep.jobs if sweep else None


def _end(jobs: list[Job], code: str | int | None) -> str | int | None:
    """Shows what became of a sweep's jobs; returns the exit code."""
    from chainrule.training.sweep import summary  # noqa: PLC0415

    if "ray" in sys.modules:  # its workers would go on talking
        sys.modules["ray"].shutdown()
    if not jobs:
        return code or "chainrule train: a sweep of no jobs: one of its values is an empty range"
    table, all_finished = summary(jobs)
    _show(table)
    return code or int(not all_finished)


def usage() -> str:
    """What verbs there are."""
    verbs = "\n".join(f"  chainrule {name:<11} {verb.__doc__}" for name, verb in VERBS.items())
    return f"""chainrule: exact-likelihood autoregressive models of binary images

{verbs}
  chainrule {"list":<11} models, data and experiments there are: [models|data|experiments]

`chainrule VERB --help` says which keys a verb knows; `chainrule train -m model=fvsbn,nade seed=0,1,2`
runs a sweep."""


LISTS = {"models": "model", "data": "data", "experiments": "experiment"}


def choices(words: Sequence[str]) -> str:
    """The models, data sets and experiments there are: name, and first sentence of the comment in its file.

    Args:
        words: which of ``LISTS``, none for all; ``--config-dir=FOLDER`` adds one's own.
    """
    folders = [CONF, *(Path(word.partition("=")[2]) for word in words if word.startswith("--config-dir="))]
    wanted = [word for word in words if not word.startswith("--config-dir=")] or list(LISTS)
    if unknown := [word for word in wanted if word not in LISTS]:
        sys.exit(f"chainrule list: no {unknown[0]!r}; there are {', '.join(LISTS)}")
    lines = []
    for kind in wanted:
        lines.append(f"{kind} ({LISTS[kind]}=)")
        files = {file.stem: file for folder in folders for file in (folder / LISTS[kind]).glob("*.yaml")}
        width = max(map(len, files), default=0)
        for name, file in sorted(files.items()):
            comment = re.match(r"(?:# @package.*\n)?((?:#.*\n)*)", file.read_text(encoding="utf-8"))
            said = " ".join(line.removeprefix("#").strip() for line in comment[1].splitlines()) if comment else ""
            first = re.split(r"(?<=\.)\s", said)[0].rstrip(".")
            lines.append(f"  {name:<{width}}  {first}")
    return "\n".join(lines)


def keys(name: str, overrides: Sequence[str] = ()) -> str:
    """The keys of a verb as its configuration explains them, the choices of its groups, and the keys of those taken."""
    defaults = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))).get("defaults", [])
    shown = []
    for file in (name, "base") if "base" in defaults else (name,):
        hidden = False
        for line in (CONF / f"{file}.yaml").read_text(encoding="utf-8").splitlines():
            hidden = line.startswith(("defaults:", "hydra:")) or (hidden and line.startswith((" ", "-", "#")))
            shown += [] if hidden or (file == "base" and line.startswith("#")) else [line.removeprefix("# ")]
    chosen = {str(group): taken for entry in defaults if not isinstance(entry, str) for group, taken in entry.items()}
    choices = {group: sorted(file.stem for file in (CONF / group).glob("*.yaml")) for group in chosen}
    shown += [f"{group}: {', '.join(names)}" for group, names in choices.items() if names]
    words = dict(word.partition("=")[::2] for word in overrides)
    for group, taken in chosen.items():
        path = CONF / group / f"{words.get(group, taken)}.yaml"
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            body = [f"  {line}" for line in lines if not re.match(r"#|$|defaults:|\s*(_|- override)", line)]
            shown += ["", f"{group}={path.stem}", *body]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(shown)) + "\n\n--cfg job shows the whole configuration."


def _runs(cfg: DictConfig) -> list[str]:
    if OmegaConf.is_missing(cfg, "runs") or not cfg.runs:
        raise ValueError("say where the runs are: runs=DIR, or runs=DIR,DIR")
    check_texts(cfg)
    return [cfg.runs] if isinstance(cfg.runs, str) else list(cfg.runs)


def _show(what: RenderableType) -> None:
    text = what
    if not isinstance(what, str):
        from rich.console import Console  # noqa: PLC0415

        with (console := Console()).capture() as captured:  # Rich itself leaves the process when nobody reads
            console.print(what)
        text = captured.get().removesuffix("\n")
    with suppress(OSError, ValueError):  # the work is done, whether it can be shown or not
        print(text, flush=True)
