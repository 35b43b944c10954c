"""Each room of the house knows only the rooms and packages that it may."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

APP = Path(__file__).parent.parent / "app"

MAY_KNOW = {
    "weights": {"torch"},
    "models": {"weights", "numpy", "torch", "transformers", "safetensors", "tokenizers", "huggingface_hub"},
    "cache": {"weights", "torch", "safetensors", "redis", "xxhash"},
    "serving": {"models", "cache", "weights", "torch"},
    "experiments": {"serving", "cache", "weights", "redis", "pydantic", "numpy", "scipy", "pyarrow"},
    "search": {
        "serving",
        "cache",
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
    "api": {
        "serving",
        "experiments",
        "search",
        "weights",
        "fastapi",
        "pydantic",
        "starlette",
        "prometheus_client",
        "httptools",
        "uvicorn",
        "opentelemetry",
    },
    "demo": {"models", "weights", "search", "torch", "transformers", "huggingface_hub", "tqdm"},
}
EVERYBODY = {"errors", "names", "client_key", "spans", "blocked_signals"} | set(sys.stdlib_module_names)


def imports(path: Path) -> set[str]:
    """Modules that a file imports; those of the project without the leading `app.`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("app.") for name in found}


@pytest.mark.parametrize(
    "path", [p for p in APP.rglob("*.py") if p.parent != APP], ids=lambda p: str(p.relative_to(APP))
)
def test_a_room_knows_only_what_it_may(path: Path) -> None:
    room = path.relative_to(APP).parts[0]
    allowed = MAY_KNOW[room] | EVERYBODY | {room}
    strangers = {name for name in imports(path) if not any((name + ".").startswith(a + ".") for a in allowed)}
    assert not strangers, f"{room} must not know {sorted(strangers)}"


def test_file_names_are_unique() -> None:
    names = [path.name for path in APP.rglob("*.py") if path.name != "__init__.py"]
    assert len(names) == len(set(names))
