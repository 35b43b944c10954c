"""Kubernetes' manifests as `kubectl apply -k` would send them."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
OVERLAYS = sorted(path.name for path in (ROOT / "k8s" / "overlays").iterdir())

Manifest = dict[str, Any]


def tool(name: str) -> str:
    """A program that `pip install -e .[dev]` brings, or the one on PATH."""
    beside_python = Path(sys.executable).parent / name
    found = str(beside_python) if beside_python.exists() else shutil.which(name)
    assert found is not None, f"no {name}: pip install -e '.[dev]' brings it"
    return found


@functools.cache
def rendered(folder: Path) -> str:
    done = subprocess.run(
        [tool("kubectl"), "kustomize", str(folder)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # warnings of what is deprecated
    return done.stdout


def manifests(overlay: str) -> list[Manifest]:
    return [m for m in yaml.safe_load_all(rendered(ROOT / "k8s" / "overlays" / overlay)) if m]


def of_kind(overlay: str, *kinds: str) -> list[Manifest]:
    return [m for m in manifests(overlay) if m["kind"] in kinds]


def pods(overlay: str) -> list[tuple[str, Manifest]]:
    """Name and pod template of whatever makes pods."""
    makers = of_kind(overlay, "Deployment", "StatefulSet", "Job")
    return [(m["metadata"]["name"], m["spec"]["template"]) for m in makers]


def servers(overlay: str) -> list[tuple[str, Manifest]]:
    """The pod templates that run the service."""
    return [(name, pod) for name, pod in pods(overlay) if name.startswith("tween")]


def containers(pod: Manifest) -> list[Manifest]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
