"""Workflows call targets that exist, on the Pythons that the package names; the docs have no dead link."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.service

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def jobs(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    return found


def commands(path: Path) -> list[str]:
    return [step["run"] for job in jobs(path).values() for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_targets_that_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    called = {target for command in commands(path) for target in re.findall(r"\bmake ([a-z-]+)", command)}
    assert called <= targets, f"no target {sorted(called - targets)} in Makefile"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_hold_only_the_rights_that_they_need(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    uses = [step["uses"] for job in workflow["jobs"].values() for step in job["steps"] if "uses" in step]
    assert uses
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@v\d+", use) for use in uses)


def test_ci_tests_on_every_python_from_the_oldest_that_is_allowed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    matrix = jobs(ROOT / ".github/workflows/ci.yml")["test"]["strategy"]["matrix"]["python"]
    assert project["requires-python"] == f">={matrix[0]}"
    assert [int(version.split(".")[1]) for version in matrix] == list(range(11, 11 + len(matrix)))


def test_the_docs_have_no_dead_link(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert {"index.html", "engine/index.html", "changelog/index.html"} <= {
        str(page.relative_to(tmp_path)) for page in tmp_path.rglob("*.html")
    }
    # The reference is that of the service, drawn by files of the site.
    specification = json.loads((tmp_path / "openapi.json").read_text(encoding="utf-8"))
    assert "post" in specification["paths"]["/v1/predict"]
    (drawn,) = (tmp_path / "api-reference").glob("swagger-*.html")
    page = drawn.read_text(encoding="utf-8")
    assert "openapi.json" in page
    assert not re.findall(r"""(?:src|href)=["']https?://""", page)
