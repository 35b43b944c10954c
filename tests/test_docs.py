"""Every file, test, setting, target and module that README and docs/ name exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from app.client_key import VARIABLE as CALLERS_KEY
from app.settings import Settings, variable

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted((ROOT / "docs").glob("*.md"))

# What is set for tests alone, and a pattern of test files.
FOR_TESTS = {"TWEEN_FUZZ_EXAMPLES"}
CODE_FILE = re.compile(r"`((?:[\w.-]+/)*[\w.-]+\.py)`")
PATH = re.compile(r"`((?:app|tests|k8s|compose|docs)/[\w./-]*)`")


@cache
def sources() -> dict[str, Path]:
    return {path.name: path for room in ("app", "tests") for path in (ROOT / room).rglob("*.py")}


def exists(name: str) -> bool:
    """A path from the root or from app/, or the name of a file."""
    return (ROOT / name).exists() or (ROOT / "app" / name).exists() or ("/" not in name and name in sources())


def stale(text: str) -> Iterator[str]:
    """What the text names and is not there."""
    yield from (name for name in {*CODE_FILE.findall(text), *PATH.findall(text)} if not exists(name))
    for file, test in re.findall(r"\b(test_\w+)::(test_\w+)", text):
        path = sources().get(f"{file}.py")
        if path is None or not re.search(rf"^(async )?def {test}\(", path.read_text(encoding="utf-8"), re.MULTILINE):
            yield f"{file}::{test}"
    known = {variable(field) for field in Settings.model_fields} | {CALLERS_KEY} | FOR_TESTS
    yield from set(re.findall(r"\bTWEEN_[A-Z0-9_]*[A-Z0-9]\b", text)) - known
    for module in re.findall(r"python -m ((?:app|tests)[\w.]*\w)", text):
        path = ROOT / module.replace(".", "/")
        if not (path.with_suffix(".py").exists() or (path / "__main__.py").exists()):
            yield f"python -m {module}"
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    yield from (f"make {target}" for target in re.findall(r"`make ([a-z-]+)", text) if target not in targets)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists(page: Path) -> None:
    assert not sorted(stale(page.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "text",
    [
        "`app/nothing.py`",
        "`serving/nothing.py`",
        "`nothing.py`",
        "`k8s/nothing`",
        "test_docs::test_nothing",
        "`TWEEN_NOTHING`",
        "`python -m tests.bench.nothing`",
        "`make nothing`",
    ],
)
def test_what_does_not_exist_is_found(text: str) -> None:
    assert list(stale(text))


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200
