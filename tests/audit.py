"""`make audit`: known vulnerabilities, licences, the bill of materials of an image, and the policy of its manifests.

    python -m tests.audit BIN CHECKOV

BIN holds pip-audit, pip-licenses and cyclonedx-py; CHECKOV is the program of that name. Both live in environments of
their own: they pin versions that the service does not want. What is looked at are the packages of both lock files,
licences as they are installed beside this Python, and what `kubectl apply -k` would send.
Each part is run whatever became of the one before, and the exit status is 1 if any of them is not as it must be.
A package whose advisories nobody could be asked for counts as not audited, and is never passed over in silence.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from kustomize import OVERLAYS, rendered  # noqa: E402

ROOT = Path(__file__).parent.parent
LOCKS = ("requirements.lock", "requirements-cuda.lock")
BILL = ROOT / "build" / "sbom.json"

PERMISSIVE = {
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CNRI-Python",
    "ISC",
    "MIT",
    "MIT-CMU",
    "PSF-2.0",
    "Zlib",
}
"""Licences, by their SPDX names, that any package may have."""
OTHER_WORDS = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0 License": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Python Software Foundation License": "PSF-2.0",
}
"""What packages write instead of the SPDX name."""
EXCEPTIONS = {
    "tqdm": "MPL-2.0 AND MIT",  # copyleft by file: its own files are used as they are
    "certifi": "Mozilla Public License 2.0 (MPL 2.0)",  # the same, and its files are a list of certificates
}
"""Packages with another licence that was looked at, and that licence: a new one is looked at again."""
ELSEWHERE = {
    "async-timeout": "Python before 3.11.3",
    "colorama": "Windows",
    "httpx2-jsfetch": "browsers",
    **dict.fromkeys(("cuda-bindings", "cuda-pathfinder", "cuda-toolkit", "triton"), "GPUs"),
}
"""Packages that not every machine installs, whose licences are not judged; nvidia-* are more, under NVIDIA's own."""

ACCEPTED = {
    "CKV_K8S_15": "tags are versions, so there is no need to pull them again and again",
    "CKV_K8S_35": "REDIS_URL and the keys are settings, and settings are variables",
    "CKV_K8S_43": "the digest is known to whoever pushes the image",
    "CKV_DOCKER_7": "the last stage is another name of an earlier one",
}
"""Findings of checkov that stay, and why."""


def main() -> int:
    tools, checkov = Path(sys.argv[1]), Path(sys.argv[2])
    complaints = [*vulnerabilities(tools), *licences(tools), *bill_of_materials(tools), *policy(checkov)]
    print("\n".join(f"audit: {complaint}" for complaint in complaints) or "audit: all of it is as it must be")
    return 1 if complaints else 0


def vulnerabilities(tools: Path) -> list[str]:
    """Ask the advisory service of PyPI about every locked version."""
    found = []
    for lock in LOCKS:
        command = [tools / "python", "-m", "pip_audit", "--disable-pip", "--require-hashes", "--format", "json"]
        run = subprocess.run([*command, "-r", ROOT / lock], capture_output=True, text=True)
        try:
            packages = json.loads(run.stdout)["dependencies"]
        except (json.JSONDecodeError, KeyError):
            last = run.stderr.strip().splitlines()[-1:] or ["no reason given"]
            found.append(f"{lock}: NOT AUDITED, the advisory service was not reached ({last[0]})")
            continue
        found += judged(lock, packages)
        print(f"{lock}: {sum('vulns' in package for package in packages)} of {len(packages)} packages audited")
    return found


def judged(lock: str, packages: Iterable[Mapping[str, Any]]) -> list[str]:
    """What is wrong with the packages of pip-audit's report."""
    skipped = [package["name"] for package in packages if "vulns" not in package]
    told = [f"{lock}: {len(skipped)} packages NOT AUDITED, no advisories were found for: {', '.join(skipped)}"]
    return (told if skipped else []) + [
        f"{package['name']} {package['version']}: {vulnerability['id']}, fixed in {vulnerability['fix_versions']}"
        for package in packages
        for vulnerability in package.get("vulns", [])
    ]


def licences(tools: Path) -> list[str]:
    """Compare the licence of every locked package with what is allowed."""
    command = [tools / "python", "-m", "piplicenses", "--python", sys.executable, "--from", "mixed", "--with-system"]
    run = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, check=True)
    installed = {normal(package["Name"]): package["License"] for package in json.loads(run.stdout)}
    names = sorted(name for lock in LOCKS for name in locked((ROOT / lock).read_text()))
    absent = [name for name in names if name not in installed]
    print(f"licences: {len(names) - len(absent)} read, {len(absent)} packages are not for this machine: {absent}")
    return [f"{name}: is not installed, so its licence was not read" for name in absent if not for_others(name)] + [
        f"{name}: licence {installed[name]!r} is neither allowed nor an exception"
        for name in names
        if name in installed and not for_others(name) and not allowed(name, installed[name])
    ]


def allowed(name: str, licence: str) -> bool:
    """Whether a package may have this licence: every part that is joined by AND, one of those that are joined by OR."""
    if EXCEPTIONS.get(name) == licence:
        return True
    every = [part.split(" OR ") for part in re.split(r" AND |; ", licence)]
    return all(any(OTHER_WORDS.get(one, one) in PERMISSIVE for one in options) for options in every)


def for_others(name: str) -> bool:
    return name in ELSEWHERE or name.startswith("nvidia-")


def locked(lock: str) -> list[str]:
    """The names in a lock file."""
    return [normal(name) for name in re.findall(r"^([A-Za-z0-9._-]+)==", lock, re.MULTILINE)]


def normal(name: str) -> str:
    """A package's name, as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def bill_of_materials(tools: Path) -> list[str]:
    """Write the packages of the image with their hashes, as CycloneDX."""
    BILL.parent.mkdir(exist_ok=True)
    together = BILL.with_name("sbom.lock")
    together.write_text("".join((ROOT / lock).read_text() for lock in LOCKS))
    command = [tools / "cyclonedx-py", "requirements", together, "--pyproject", ROOT / "pyproject.toml"]
    run = subprocess.run([*command, "--output-reproducible", "-o", BILL], capture_output=True, text=True)
    together.unlink()
    if run.returncode:
        return [f"no bill of materials: {run.stderr.strip()}"]
    print(f"bill of materials: {len(json.loads(BILL.read_text())['components'])} packages in {BILL.relative_to(ROOT)}")
    return []


def policy(checkov: Path) -> list[str]:
    """What checkov finds in the manifests of every overlay and in the Dockerfile."""
    with tempfile.TemporaryDirectory() as folder:
        for overlay in OVERLAYS:
            (Path(folder) / f"{overlay}.yaml").write_text(rendered(ROOT / "k8s" / "overlays" / overlay))
        (Path(folder) / "Dockerfile").write_bytes((ROOT / "Dockerfile").read_bytes())
        command = [checkov, "--directory", folder, "--framework", "kubernetes", "dockerfile", "--skip-download"]
        options = ["--quiet", "--compact", "--output", "json", "--skip-check", ",".join(ACCEPTED)]
        run = subprocess.run([*command, *options], capture_output=True, text=True)
    try:
        reports = {report["check_type"]: report for report in json.loads(run.stdout)}
        passed = {name: reports[name]["summary"]["passed"] for name in ("kubernetes", "dockerfile")}
    except (json.JSONDecodeError, KeyError, TypeError):
        return [f"policy: NOT CHECKED ({(run.stderr.strip().splitlines() or ['no reason given'])[-1]})"]
    print(f"policy: {passed['kubernetes']} checks of manifests passed, {passed['dockerfile']} of the Dockerfile")
    return [
        f"{one['resource']}: {one['check_id']} {one['check_name']}"
        for report in reports.values()
        for one in report["results"]["failed_checks"]
    ]


if __name__ == "__main__":
    sys.exit(main())
