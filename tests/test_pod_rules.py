"""What a cluster's policies ask of every pod, rule by rule; checkov (`make audit`) asks more, and takes 96 packages."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest
from kustomize import OVERLAYS, ROOT, Manifest, containers, of_kind, pods

OUTSIDE = {"hostNetwork", "hostPID", "hostIPC"}
SECRET = re.compile("PASSWORD|TOKEN|SECRET|KEY|AUTH|REDIS_URL")
"""Variables whose values are secrets, wherever they stand."""


def probed(pod: Manifest) -> bool:
    """A Job ends by itself, and so does a container that runs before the others."""
    return pod["spec"].get("restartPolicy", "Always") != "Always" or all(
        {"livenessProbe", "readinessProbe"} <= set(container) for container in pod["spec"]["containers"]
    )


def every(true: Callable[[Manifest], bool]) -> Callable[[Manifest], bool]:
    """A rule for each container of a pod."""
    return lambda pod: all(true(container) for container in containers(pod))


RULES: dict[str, Callable[[Manifest], bool]] = {
    "no user is root": lambda pod: (
        pod["spec"]["securityContext"]["runAsNonRoot"] is True and pod["spec"]["securityContext"]["runAsUser"] > 0
    ),
    "system calls are filtered": lambda pod: (
        pod["spec"]["securityContext"].get("seccompProfile") == {"type": "RuntimeDefault"}
    ),
    "the service account's token stays outside": lambda pod: pod["spec"].get("automountServiceAccountToken") is False,
    "services' addresses are not in the environment": lambda pod: pod["spec"].get("enableServiceLinks") is False,
    "no namespace of the host": lambda pod: not OUTSIDE & set(pod["spec"]),
    "no folder of the host": lambda pod: not any("hostPath" in volume for volume in pod["spec"].get("volumes", [])),
    "the root file system takes no writes": every(lambda c: c["securityContext"].get("readOnlyRootFilesystem") is True),
    "no process gains rights": every(
        lambda c: (
            c["securityContext"].get("allowPrivilegeEscalation") is False and not c["securityContext"].get("privileged")
        )
    ),
    "no capabilities": every(lambda c: c["securityContext"].get("capabilities") == {"drop": ["ALL"]}),
    "bounds of memory and processors": every(
        lambda c: all({"memory", "cpu"} <= set(c["resources"].get(kind, {})) for kind in ("requests", "limits"))
    ),
    "probes": probed,
    "an image of one version": every(lambda c: re.search(r":(?!latest$)[^/:]+$|@sha256:", c["image"]) is not None),
    "secrets come from Secrets": every(
        lambda c: not any(SECRET.search(entry["name"]) and "value" in entry for entry in c.get("env", []))
    ),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_keeps_every_rule(overlay: str, rule: str) -> None:
    broken = [name for name, pod in pods(overlay) if not RULES[rule](pod)]
    assert pods(overlay) and not broken


def faults() -> dict[str, Callable[[Manifest, Manifest], object]]:
    """For each rule a change of a pod and its container that breaks it."""
    return {
        "no user is root": lambda spec, c: spec["securityContext"].update(runAsUser=0),
        "system calls are filtered": lambda spec, c: spec["securityContext"].pop("seccompProfile"),
        "the service account's token stays outside": lambda spec, c: spec.pop("automountServiceAccountToken"),
        "services' addresses are not in the environment": lambda spec, c: spec.pop("enableServiceLinks"),
        "no namespace of the host": lambda spec, c: spec.update(hostNetwork=True),
        "no folder of the host": lambda spec, c: spec["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
        "the root file system takes no writes": lambda spec, c: c["securityContext"].pop("readOnlyRootFilesystem"),
        "no process gains rights": lambda spec, c: c["securityContext"].pop("allowPrivilegeEscalation"),
        "no capabilities": lambda spec, c: c["securityContext"]["capabilities"].update(add=["NET_ADMIN"]),
        "bounds of memory and processors": lambda spec, c: c["resources"]["limits"].pop("cpu"),
        "probes": lambda spec, c: c.pop("livenessProbe"),
        "an image of one version": lambda spec, c: c.update(image="registry.example.com:5000/tween"),
        "secrets come from Secrets": lambda spec, c: c["env"].append({"name": "HF_TOKEN", "value": "hunter2"}),
    }


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_finds_a_pod_that_breaks_it(rule: str) -> None:
    pod = copy.deepcopy(pods("cpu")[0][1])
    assert RULES[rule](pod)
    faults()[rule](pod["spec"], pod["spec"]["containers"][0])
    assert not RULES[rule](pod)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_namespace_demands_restricted_pods_and_no_network_by_default(overlay: str) -> None:
    (namespace,) = of_kind(overlay, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    policies = [policy["spec"] for policy in of_kind(overlay, "NetworkPolicy")]
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in policies
    for name, pod in pods(overlay):
        labels = pod["metadata"]["labels"].items()
        own = [p for p in policies if p["podSelector"] and p["podSelector"]["matchLabels"].items() <= labels]
        assert {kind for policy in own for kind in policy["policyTypes"]} == {"Ingress", "Egress"}, name


def test_the_image_runs_as_a_user_with_a_number_above_0() -> None:
    (user,) = set(re.findall(r"^USER +(.+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE))
    assert int(user.partition(":")[0]) > 0
