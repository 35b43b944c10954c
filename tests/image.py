"""`make image`: builds the image and runs it, as a container and as a pod, on a Debian without a Docker engine.

    python -m tests.image

Needs root and Debian's packages below. The base image is a Debian made by mmdebstrap, buildah builds on it in a
chroot, and podman runs the result by runc: read-only, without capabilities or new privileges, under seccomp and a limit
of memory, with a collector of traces that its spans must reach. The pod is the Deployment of k8s/base, which podman
plays. Prints what was done and how long it took, and ends at the first thing that is not as it must be. Images stay, so
that a second run builds only what changed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import httpx  # noqa: E402
import pico  # noqa: E402
import yaml  # noqa: E402
from collector import Collector, collecting  # noqa: E402
from kustomize import ROOT, rendered  # noqa: E402
from servers import free_port  # noqa: E402

PACKAGES = "mmdebstrap buildah podman runc catatonit slirp4netns uidmap"
BASE, IMAGE = "localhost/tween-base:bookworm", "localhost/tween:trial"
SUITE = "bookworm"
CERTIFICATES = Path("/etc/ssl/certs")
READY_SECONDS = 240.0
MEMORY = "2g"

CONTAINERS = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
"""Where podman itself may not raise limits, its own defaults fail; crun does not run under mixed control groups."""

CONFINED = ["--read-only", "--tmpfs=/tmp", "--cap-drop=all", "--security-opt=no-new-privileges", f"--memory={MEMORY}"]

TRY_TO_WRITE = "import pathlib; pathlib.Path('/opt/tween/written').touch()"
INSIDE = """
import os
status = dict(line.split(":", 1) for line in open("/proc/1/status"))
print(os.getuid(), *(status[name].strip() for name in ("CapEff", "NoNewPrivs", "Seccomp")))
"""
CONFINEMENT = ["65532", "0" * 16, "1", "2"]
"""The user, no capabilities, no new privileges, and a filter of system calls, as /proc tells them."""

TRIAL = """
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: tween
resources: [{base}]
configMapGenerator:
  - name: tween-bank
    behavior: replace
    files: [bank.toml]
images:
  - {{ name: tween, newName: localhost/tween, newTag: trial }}
patches:
  - patch: |
      apiVersion: apps/v1
      kind: Deployment
      metadata: {{ name: tween }}
      spec:
        template:
          spec:
            containers:
              - name: tween
                ports: [{{ containerPort: 8000, hostPort: {port} }}]
            volumes:
              - name: models
                persistentVolumeClaim: null
                hostPath: {{ path: {models} }}
"""


def main() -> None:
    missing = [name for name in ("mmdebstrap", "buildah", "podman", "runc", "slirp4netns") if not shutil.which(name)]
    if missing or os.getuid() != 0:
        sys.exit(f"needs root and Debian's packages {PACKAGES}; missing: {', '.join(missing) or 'root'}")
    with tempfile.TemporaryDirectory(prefix="tween-image-") as name:
        folder = Path(name)
        (folder / "containers.conf").write_text(CONTAINERS, encoding="utf-8")
        os.environ["CONTAINERS_CONF"] = str(folder / "containers.conf")
        bank = bank_for_everybody(folder)
        with step("base image"):
            make_base(folder)
        with step("build"):
            build()
        print(f"  {run('podman', 'image', 'inspect', IMAGE, '--format', '{{.Size}}').strip()} bytes")
        with step("container"):
            with collecting() as collector:
                try_container(bank, collector)
        with step("pod"):
            try_pod(folder, bank)


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    print(name, flush=True)
    started = time.monotonic()
    yield
    print(f"  {time.monotonic() - started:.0f} s", flush=True)


def run(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if check and done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout


def bank_for_everybody(folder: Path) -> Path:
    """A bank of tiny models that the image's user may read."""
    folder.chmod(0o755)
    bank = pico.write_bank(folder / "bank", "bert")
    run("chmod", "-R", "a+rX", str(bank))
    return bank


def make_base(folder: Path) -> None:
    """What Docker's library would give: a Debian with a Python."""
    if run("podman", "images", "--quiet", BASE):
        print(f"  {BASE} is there")
        return
    archive = str(folder / "base.tar")
    run("mmdebstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates", SUITE, archive)
    run("podman", "import", "--quiet", archive, BASE)


def build() -> None:
    """As `docker build --target serve .`; what pip knows of mirrors, certificates and wheels on disk holds here too."""
    options = ["--isolation=chroot", "--network=host", "--format=docker", "--layers", f"--build-arg=BASE={BASE}"]
    if CERTIFICATES.is_dir():
        options.append(f"--volume={CERTIFICATES}:{CERTIFICATES}:ro")
        options.append(f"--build-arg=PIP_CERT={CERTIFICATES}/ca-certificates.crt")
    wheels = os.environ.get("PIP_FIND_LINKS", "")
    if wheels and list(Path(wheels).glob("torch-*+cpu-*.whl")):
        options += [f"--volume={wheels}:{wheels}:ro", f"--build-arg=PIP_FIND_LINKS={wheels}"]
        options.append("--build-arg=TORCH_FROM=--no-index")
    print(run("buildah", "build", *options, "--target=serve", f"--tag={IMAGE}", ".")[-300:])


def try_container(bank: Path, collector: Collector) -> None:
    port = free_port()
    name = f"tween-trial-{port}"
    options = [f"--name={name}", "--network=host", f"--env=TWEEN_PORT={port}", f"--volume={bank}:/bank:ro"]
    traced = f"--env=OTEL_EXPORTER_OTLP_ENDPOINT={collector.url}"
    run("podman", "run", "--detach", *CONFINED, *options, traced, IMAGE)
    try:
        with serving(port, name) as client:
            predict(client)
            is_confined(name)
            run("podman", "healthcheck", "run", name)
        run("podman", "stop", "--time=45", name)
        status = run("podman", "inspect", name, "--format", "{{.State.ExitCode}} {{.State.OOMKilled}}").strip()
        expect(status == "0 false", f"ends by SIGTERM with status 0: {status}")
        names = {span.name for span in collector.spans}
        expect({"POST /v1/predict", "forward"} <= names, f"spans have come by then: {sorted(names)}")
    finally:
        run("podman", "rm", "--force", "--time=0", name, check=False)


def try_pod(folder: Path, bank: Path) -> None:
    """The Deployment with its ConfigMaps; only image, bank, host port and the volume of models are the trial's."""
    port = free_port()
    text = (bank / "bank.toml").read_text(encoding="utf-8").replace('= "', '= "/models/')
    (folder / "bank.toml").write_text(text, encoding="utf-8")
    base = os.path.relpath(ROOT / "k8s" / "base", folder)
    overlay = TRIAL.format(base=base, port=port, models=bank)
    (folder / "kustomization.yaml").write_text(overlay, encoding="utf-8")
    played = [m for m in yaml.safe_load_all(rendered(folder)) if m["kind"] in ("ConfigMap", "Deployment")]
    file = folder / "pod.yaml"
    file.write_text(yaml.safe_dump_all(played), encoding="utf-8")
    run("podman", "play", "kube", "--replace", "--network=slirp4netns", str(file))
    try:
        with serving(port, "tween-pod-0-tween") as client:
            predict(client)
            is_confined("tween-pod-0-tween")
    finally:
        run("podman", "play", "kube", "--down", str(file), check=False)


@contextlib.contextmanager
def serving(port: int, container: str) -> Iterator[httpx.Client]:
    """A client, once the service is ready."""
    deadline = time.monotonic() + READY_SECONDS
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if client.get("/readyz").status_code == 200:
                    break
            time.sleep(0.2)
        else:
            sys.exit(f"not ready within {READY_SECONDS} s:\n{run('podman', 'logs', container)}")
        yield client


def predict(client: httpx.Client) -> None:
    reply = client.post("/v1/predict", json={"texts": "they never answer", "recipe": "angry@0.4"})
    expect(reply.status_code == 200 and reply.json()["recipe"] == "angry@0.4", f"predicts: {reply.text[:90]}")


def is_confined(container: str) -> None:
    inside = run("podman", "exec", container, "python3", "-c", INSIDE).split()
    expect(inside == CONFINEMENT, f"user, capabilities, new privileges, seccomp: {inside}")
    run("podman", "exec", container, "python3", "-c", TRY_TO_WRITE, check=False)
    expect("written" not in run("podman", "exec", container, "ls", "/opt/tween"), "the root takes no writes")
    run("podman", "exec", container, "python3", "-c", "open('/tmp/written', 'w')")


def expect(true: bool, what: str) -> None:
    print(f"  {'ok' if true else 'FAILED'}: {what}")
    if not true:
        sys.exit(1)


if __name__ == "__main__":
    main()
