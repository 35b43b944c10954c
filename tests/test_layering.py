"""The house: which room knows which, how full a folder may be, and that a name means one thing."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

APP = Path(__file__).parent.parent / "app"
FILES = sorted(path for path in APP.rglob("*.py") if path.name != "__init__.py")

# From the lowest room to the highest: each knows rooms above it in this table, and these packages.
MAY_KNOW = {
    "weights": {"torch"},
    "models": {"weights", "numpy", "torch", "transformers", "safetensors", "tokenizers", "huggingface_hub"},
    "cluster": {"redis"},
    "cache": {"cluster", "weights", "torch", "safetensors", "redis", "xxhash"},
    "serving": {"models", "cluster", "cache", "weights", "torch"},
    "experiments": {"serving", "cluster", "cache", "weights", "redis", "pydantic", "numpy", "scipy", "pyarrow"},
    "sweep": {
        "serving",
        "cluster",
        "models",
        "weights",
        "torch",
        "transformers",
        "numpy",
        "scipy",
        "matplotlib",
        "optuna",
        "pyarrow",
        "taskiq",
        "taskiq_redis",
        "tqdm",
        "wandb",
    },
    "segments": {"sweep", "serving", "cluster", "models", "weights", "numpy", "scipy", "torch", "matplotlib", "tqdm"},
    "predictor": {"segments", "experiments", "serving", "models", "weights"},
    "api": {
        "predictor",
        "segments",
        "sweep",
        "experiments",
        "serving",
        "cluster",
        "weights",
        "fastapi",
        "pydantic",
        "starlette",
        "prometheus_client",
        "httptools",
        "uvicorn",
        "opentelemetry",
    },
    "demo": {"models", "weights", "sweep", "torch", "transformers", "huggingface_hub", "tqdm"},
}
AT_THE_TOP = {"main", "bootstrap", "settings", "cli", "__main__"}
"""What joins the rooms, and so knows all of them."""
EVERYBODY = {"errors", "names", "client_key", "spans", "blocked_signals"} | set(sys.stdlib_module_names)
MOST_FILES = 20


def imports(path: Path) -> set[str]:
    """Modules that a file imports, at any depth and for types alone too; those of the project without `app.`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("app.") for name in found}


def module(path: Path) -> str:
    return ".".join(path.relative_to(APP).with_suffix("").parts)


def room(path: Path) -> str:
    return module(path).split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=module)
def test_a_room_knows_only_what_it_may(path: Path) -> None:
    if room(path) in AT_THE_TOP | {"errors", "names", "client_key", "spans", "blocked_signals"}:
        return
    allowed = MAY_KNOW[room(path)] | EVERYBODY | {room(path)}
    strangers = {name for name in imports(path) if not any((name + ".").startswith(a + ".") for a in allowed)}
    assert not strangers, f"{room(path)} must not know {sorted(strangers)}"


def test_a_room_knows_only_rooms_below_it() -> None:
    below: set[str] = set()
    for name, known in MAY_KNOW.items():
        assert known & MAY_KNOW.keys() <= below, f"{name} knows rooms above it"
        below.add(name)


def test_no_imports_run_in_a_circle() -> None:
    modules = {module(path) for path in FILES}
    graph: dict[str, set[str]] = {}
    for path in FILES:
        named = {name if name in modules else name.rpartition(".")[0] for name in imports(path)}
        graph[module(path)] = (named & modules) - {module(path)}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_file_names_are_unique() -> None:
    assert not [name for name, count in Counter(path.name for path in FILES).items() if count > 1]


def test_public_class_names_are_unique() -> None:
    names = Counter(
        node.name
        for path in FILES
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert not [name for name, count in names.items() if count > 1]


def test_no_folder_is_too_full() -> None:
    folders = Counter(path.parent for path in FILES)
    assert not {str(folder): count for folder, count in folders.items() if count > MOST_FILES}
