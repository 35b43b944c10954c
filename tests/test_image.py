"""What the image is made of: Dockerfile, lock, and the compose file around it. `make image` builds and runs it."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib

import pytest
import yaml
from kustomize import ROOT, tool
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from app.settings import Settings, variable

pytestmark = pytest.mark.service

LOCKS = ("requirements.lock", "requirements-cuda.lock")
PINNED = re.compile(r"^([a-z0-9][a-z0-9._-]*)==(\S+)(?: ; (.*?))? \\$", re.MULTILINE)


def locked(name: str) -> dict[str, set[str]]:
    """Versions by package."""
    versions: dict[str, set[str]] = {}
    for package, version, _ in PINNED.findall((ROOT / name).read_text(encoding="utf-8")):
        versions.setdefault(canonicalize_name(package), set()).add(version)
    return versions


def test_the_dockerfile_has_no_faults_that_a_linter_knows() -> None:
    done = subprocess.run(
        [tool("hadolint"), str(ROOT / "Dockerfile")], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_package_has_hashes_and_no_address_is_in_the_file(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "://" not in text
    blocks = re.split(r"\n(?=[a-z0-9])", text)
    assert all(block.count("--hash=sha256:") > 0 for block in blocks)
    assert len(blocks) == len(PINNED.findall(text))


def test_the_lock_holds_what_the_project_needs() -> None:
    """Fails when a dependency is added or moved: `make lock` brings the lock up to date."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    versions = locked(LOCKS[0]) | locked(LOCKS[1])
    for line in [*project["dependencies"], *extras["demo"], *extras["sweep"], *extras["otel"]]:
        needed = Requirement(line)
        have = versions.get(canonicalize_name(needed.name), set())
        assert have and all(version in needed.specifier for version in have), f"make lock: {line}, locked: {have}"


def test_torch_is_the_same_everywhere() -> None:
    (version,) = locked("requirements-cuda.lock")["torch"]
    assert f'ARG TORCH="torch=={version}"' in (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert f"TORCH ?= torch=={version}" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "torch" not in locked("requirements.lock")


def test_the_image_sets_settings_that_exist() -> None:
    named = set(re.findall(r"\bTWEEN_\w+", (ROOT / "Dockerfile").read_text(encoding="utf-8")))
    assert named <= {variable(field) for field in Settings.model_fields}


def test_the_builder_gets_what_is_copied_and_nothing_else() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    named = {name for line in copied for name in line.split()}
    assert {"requirements*.lock" if name in LOCKS else name for name in named} == let_in


def composed(*options: str) -> dict[str, dict[str, dict[str, object]]]:
    command = [tool("docker-compose"), "--file", str(ROOT / "docker-compose.yml"), *options]
    done = subprocess.run(
        [*command, "config", "--format", "json"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    found: dict[str, dict[str, dict[str, object]]] = json.loads(done.stdout)
    return found


def test_compose_takes_the_file() -> None:
    services = composed()["services"]
    assert set(services) == {"tween", "redis", "prometheus", "grafana"}
    assert set(composed("--profile", "traces")["services"]) == {*services, "collector"}


def test_composed_services_are_confined_and_listen_on_this_machine_alone() -> None:
    for name, service in composed("--profile", "traces")["services"].items():
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"]
        for port in service.get("ports", []):
            assert port["host_ip"] == "127.0.0.1"


def test_composed_services_mount_files_that_exist() -> None:
    for service in composed("--profile", "traces")["services"].values():
        for volume in service.get("volumes", []):
            if volume["type"] == "bind":
                assert (ROOT / volume["source"]).is_file()


def test_the_composed_service_sets_settings_that_exist() -> None:
    environment = composed()["services"]["tween"]["environment"]
    names = {name for name in environment if not name.startswith("OTEL_")}
    assert names <= {variable(field) for field in Settings.model_fields}


def test_traces_go_where_the_composed_collector_takes_them() -> None:
    """The service speaks OTLP over HTTP, which has a port of its own."""
    told = yaml.safe_load((ROOT / "compose" / "collector.yml").read_text(encoding="utf-8"))
    port = told["receivers"]["otlp"]["protocols"]["http"]["endpoint"].rpartition(":")[2]
    for name in ("docker-compose.yml", "docs/deploy.md", "docs/runbook.md", "docs/settings.md"):
        named = re.findall(r"http://collector:(\d+)", (ROOT / name).read_text(encoding="utf-8"))
        assert set(named) == {port}, name
