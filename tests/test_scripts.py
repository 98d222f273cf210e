"""The shell scripts, where something is missing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from zoo import ROOT

TOOLS = ("bash", "dirname", "cat", "cksum", "rm")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A fresh checkout, as far as the scripts look at it, beside a folder bin with nothing but the tools."""
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(str(shutil.which(tool)))
    shutil.copytree(ROOT / "scripts", tmp_path / "checkout/scripts")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / "checkout")
    return tmp_path


def run(checkout: Path, script: str) -> subprocess.CompletedProcess[str]:
    path = {"PATH": str(checkout / "bin")}
    command = [str(checkout / "checkout/scripts" / script)]
    return subprocess.run(["bash", *command], env=path, cwd=checkout, capture_output=True, text=True, check=False)


def python(checkout: Path, script: str) -> None:
    file = checkout / "bin/python3"
    file.write_text(f"#!/usr/bin/env bash\n{script}\n")
    file.chmod(0o755)


@pytest.mark.parametrize("script", ["run", "test"])
def test_no_python(checkout: Path, script: str) -> None:
    done = run(checkout, script)
    assert done.returncode == 1
    assert "needs Python 3.11, 3.12 or 3.13; python3 here is: missing" in done.stderr


def test_an_old_python(checkout: Path) -> None:
    python(checkout, 'if [ "$1" = --version ]; then echo Python 3.9.2; else exit 1; fi')
    done = run(checkout, "run")
    assert done.returncode == 1
    assert "needs Python 3.11, 3.12 or 3.13; python3 here is: Python 3.9.2" in done.stderr
    assert not (checkout / "checkout/.venv").exists()


def test_no_venv_module(checkout: Path) -> None:
    python(checkout, 'case "$*" in --version) echo Python 3.12.1;; *venv*) exit 1;; *) exit 0;; esac')
    done = run(checkout, "run")
    assert done.returncode == 1
    assert "apt install python3-venv" in done.stderr
    assert not (checkout / "checkout/.venv").exists()


def test_both_scripts_share_their_preparation() -> None:
    assert all("prepare " in (ROOT / "scripts" / name).read_text() for name in ("run", "test"))
    assert "scripts/test" in (ROOT / ".ci/run").read_text()
