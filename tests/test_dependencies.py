"""The versions that scripts/setup installs have no known vulnerability, as far as anybody can be asked."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from zoo import ROOT

AUDIT = ["pip_audit", "-r", str(ROOT / "constraints.txt"), "--no-deps", "--disable-pip", "--progress-spinner=off"]


def vulnerable(dependencies: list[dict[str, Any]]) -> list[str]:
    return [f"{d['name']} {d['version']}: {v['id']}" for d in dependencies for v in d.get("vulns", [])]


def test_no_pinned_version_is_known_to_be_vulnerable() -> None:
    command = [sys.executable, "-m", *AUDIT, "--format=json", "--timeout=5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    try:
        dependencies = json.loads(done.stdout)["dependencies"]
    except ValueError:
        pytest.skip(f"pip-audit's database cannot be reached: {done.stderr.strip()[-200:]}")
    asked = [dependency for dependency in dependencies if "skip_reason" not in dependency]
    assert vulnerable(asked) == []
    if not asked:
        pytest.skip("pip-audit's database cannot be reached: not one version could be looked up")


def test_a_vulnerability_would_be_named() -> None:
    found = [{"name": "a", "version": "1", "vulns": [{"id": "CVE-1"}]}, {"name": "b", "version": "2", "vulns": []}]
    assert vulnerable(found) == ["a 1: CVE-1"]
