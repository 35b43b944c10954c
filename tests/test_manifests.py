"""The manifests fit the schemas of Kubernetes and the service itself."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from kustomize import OVERLAYS, ROOT, containers, manifests, of_kind, pods, servers
from redis import Redis
from redis.exceptions import AuthenticationError
from servers import free_port, until

from app import __main__ as command_line
from app import __version__
from app.api.auth.same_origin import SameOrigin
from app.api.http_server.drain_server import FINISH_SECONDS
from app.bootstrap import by_commas
from app.cluster.embedded_redis import find_server
from app.experiments.experiment import read_experiments
from app.main import create_app
from app.models.bank import BankSpec
from app.settings import Settings, variable

pytestmark = pytest.mark.service

KUBERNETES = ("1.32", "1.37")
"""The oldest version that runs these (a sleep as preStop), and the newest whose schemas are at hand."""

FOREIGN = {"ServiceMonitor", "PrometheusRule"}
"""Kinds that operators bring, whose schemas are not among Kubernetes' own."""

OF_LIBRARIES = {"HF_HOME", "HF_HUB_OFFLINE", "HF_TOKEN"}


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_manifests_fit_the_schemas_of_kubernetes(overlay: str, version: str) -> None:
    for manifest in manifests(overlay):
        if manifest["kind"] not in FOREIGN:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_a_misspelt_field_does_not_fit() -> None:
    """What the test above relies on: without `strict` this passes."""
    deployment = json.loads(json.dumps(of_kind("cpu", "Deployment")[0]))
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    container["livenesProbe"] = container.pop("livenessProbe")
    with pytest.raises(kubernetes_validate.ValidationError, match="livenesProbe"):
        kubernetes_validate.validate(deployment, KUBERNETES[0], strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_variable_is_a_setting_with_a_value_that_it_takes(overlay: str) -> None:
    maps = {m["metadata"]["name"]: m["data"] for m in of_kind(overlay, "ConfigMap")}
    for name, pod in servers(overlay):
        for container in containers(pod):
            given = {entry["name"]: entry.get("value") for entry in container.get("env", [])}
            for source in container.get("envFrom", []):
                given |= maps[source["configMapRef"]["name"]]
            strangers = set(given) - {variable(field) for field in Settings.model_fields} - OF_LIBRARIES
            assert not strangers, f"{name} sets {strangers}"
            Settings.from_environment({key: value for key, value in given.items() if value is not None})


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_arguments_are_those_of_the_command_line(overlay: str) -> None:
    for _, pod in servers(overlay):
        for container in containers(pod):
            command_line._parser().parse_args(container["args"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_probes_ask_what_the_service_answers_on_its_port(overlay: str) -> None:
    app = create_app(Settings(), BankSpec.from_options("nowhere", []), on_failure=lambda error: None)
    paths = set(app.openapi()["paths"])
    for _, pod in servers(overlay):
        (container,) = pod["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports == {"http": Settings().port}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = container[probe]["httpGet"]
            assert asked["path"] in paths and asked["port"] in ports
        # Redis away or a long queue make a pod slower; being restarted would make it slower still.
        assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
        assert container["startupProbe"]["httpGet"]["path"] == "/readyz"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_answer_by_the_names_and_addresses_that_a_cluster_gives_them(overlay: str) -> None:
    (settings,) = {m["data"]["TWEEN_ALLOWED_HOSTS"] for m in of_kind(overlay, "ConfigMap") if "TWEEN" in str(m["data"])}
    door = SameOrigin(create_app, by_commas(settings), [])  # type: ignore[arg-type]  # nothing is called
    services = [m["metadata"] for m in of_kind(overlay, "Service") if m["metadata"]["name"].startswith("tween")]
    assert services
    for service in services:
        for suffix in ("", ".tween", ".tween.svc", ".tween.svc.cluster.local"):
            assert door.answers_to(service["name"] + suffix), suffix
    assert door.answers_to("10.0.0.7") and door.answers_to("fd00::7")  # as probes and Prometheus ask
    assert not door.answers_to("tween.example.com")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_has_the_time_to_drain(overlay: str) -> None:
    needed = Settings().drain_s + FINISH_SECONDS
    for name, pod in servers(overlay):
        (container,) = pod["spec"]["containers"]
        before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pod["spec"]["terminationGracePeriodSeconds"] >= before + needed, name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_meet_the_pods_that_they_mean(overlay: str) -> None:
    labels = {name: pod["metadata"]["labels"] for name, pod in pods(overlay)}

    def met(selector: dict[str, str]) -> set[str]:
        return {name for name, has in labels.items() if selector.items() <= has.items()}

    for maker in of_kind(overlay, "Deployment", "StatefulSet"):
        assert met(maker["spec"]["selector"]["matchLabels"]) == {maker["metadata"]["name"]}
    for service in of_kind(overlay, "Service"):
        assert met(service["spec"]["selector"]) == {service["metadata"]["name"]}
    for budget in of_kind(overlay, "PodDisruptionBudget"):
        assert met(budget["spec"]["selector"]["matchLabels"]) == {budget["metadata"]["name"]}
    for policy in of_kind(overlay, "NetworkPolicy"):
        selector = policy["spec"]["podSelector"].get("matchLabels", {})
        assert met(selector), f"{policy['metadata']['name']} is about nobody"
        for peer in (peer for rule in policy["spec"].get("ingress") or [] for peer in rule.get("from", [])):
            if "podSelector" in peer:
                assert met(peer["podSelector"].get("matchLabels", {}))
    for scaler in of_kind(overlay, "HorizontalPodAutoscaler"):
        assert scaler["spec"]["scaleTargetRef"]["name"] in labels
    for _, pod in servers(overlay):
        spreads = pod["spec"]["topologySpreadConstraints"]
        assert {spread["topologyKey"] for spread in spreads} == {
            "topology.kubernetes.io/zone",
            "kubernetes.io/hostname",
        }
        assert all(
            spread["labelSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items() for spread in spreads
        )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_pods_mount_is_there(overlay: str) -> None:
    maps = {m["metadata"]["name"] for m in of_kind(overlay, "ConfigMap")}
    claims = {m["metadata"]["name"] for m in of_kind(overlay, "PersistentVolumeClaim")}
    for maker in of_kind(overlay, "Deployment", "StatefulSet"):
        pod = maker["spec"]["template"]
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        claimed = {claim["metadata"]["name"] for claim in maker["spec"].get("volumeClaimTemplates", [])}
        for volume in volumes.values():
            assert volume.get("configMap", {}).get("name", None) in maps | {None}
            assert volume.get("persistentVolumeClaim", {}).get("claimName", None) in claims | {None}
        for container in containers(pod):
            assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes) | claimed


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_bank_files_can_be_read(overlay: str, tmp_path: Path) -> None:
    for number, data in enumerate(m["data"] for m in of_kind(overlay, "ConfigMap") if "bank.toml" in m["data"]):
        file = tmp_path / f"{number}.toml"
        file.write_text(data["bank.toml"], encoding="utf-8")
        assert BankSpec.from_toml(file).variants


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_images_are_of_this_version(overlay: str) -> None:
    for _, pod in servers(overlay):
        for container in containers(pod):
            name, _, tag = container["image"].rpartition(":")
            assert name.rpartition("/")[2] == "tween" and tag.partition("-")[0] == __version__


def test_the_file_of_experiments_can_be_read(tmp_path: Path) -> None:
    (pod,) = [pod for _, pod in servers("production")]
    (container,) = pod["spec"]["containers"]
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    (data,) = [m["data"] for m in of_kind("production", "ConfigMap") if "experiments.toml" in m["data"]]
    (setting,) = [
        m["data"]["TWEEN_EXPERIMENTS"] for m in of_kind("production", "ConfigMap") if "TWEEN_EXPERIMENTS" in m["data"]
    ]
    assert setting == "/experiments/experiments.toml" and "/experiments" in mounted
    (tmp_path / "experiments.toml").write_text(data["experiments.toml"], encoding="utf-8")
    assert read_experiments(tmp_path / "experiments.toml")


def test_a_reader_needs_no_models_and_the_gpu_is_asked_for() -> None:
    (reader,) = [pod for name, pod in servers("fleet") if name == "tween-readers"]
    (container,) = reader["spec"]["containers"]
    assert "--from-redis" in container["args"]
    assert {volume["name"] for volume in reader["spec"]["volumes"]} == {"tmp"}
    assert not reader["spec"].get("initContainers")

    ((_, gpu),) = servers("gpu")
    (container,) = gpu["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1" and container["image"].endswith("-cuda")


def test_redis_starts_as_it_is_told(tmp_path: Path) -> None:
    """With its password, and so that what has no time to live stays: neither evicted nor lost with the process."""
    (stateful,) = of_kind("cpu", "StatefulSet")
    shell, option, script = stateful["spec"]["template"]["spec"]["containers"][0]["command"]
    server, port = find_server(), free_port()
    assert server is not None
    config = (ROOT / "k8s/components/redis/redis.conf").read_text(encoding="utf-8")
    (tmp_path / "redis.conf").write_text(
        config.replace("dir /data", f"dir {tmp_path}") + f"port {port}\n", encoding="utf-8"
    )
    script = script.replace("/config/redis.conf", str(tmp_path / "redis.conf")).replace("redis-server", server)
    process = subprocess.Popen(
        [shell, option, script], env={**os.environ, "REDISCLI_AUTH": "hunter2"}, stdout=subprocess.DEVNULL
    )
    try:
        with Redis(port=port, password="hunter2", decode_responses=True) as client:
            until(client.ping)
            assert client.config_get("appendonly") == {"appendonly": "yes"}
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "volatile-lru"}
        with Redis(port=port) as stranger, pytest.raises(AuthenticationError):
            stranger.ping()
        assert b"hunter2" not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    finally:
        process.terminate()  # reaches Redis itself, because the shell has become it
        assert process.wait(timeout=300) == 0


@pytest.mark.parametrize("path", sorted((ROOT / "k8s" / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_examples_name_what_exists(path: Path) -> None:
    for manifest in yaml.safe_load_all(path.read_text(encoding="utf-8")):
        if manifest["kind"] == "Application":
            assert (ROOT / manifest["spec"]["source"]["path"] / "kustomization.yaml").is_file()
        for container in manifest["spec"].get("predictor", {}).get("containers", []):
            command_line._parser().parse_args(container["args"])
            known = {variable(field) for field in Settings.model_fields} | OF_LIBRARIES
            assert {entry["name"] for entry in container.get("env", [])} <= known
