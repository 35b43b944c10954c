"""What `make audit` makes of what its tools say; it is run by itself, because it asks a service."""

from __future__ import annotations

import pytest
from audit import EXCEPTIONS, LOCKS, ROOT, allowed, for_others, judged, locked


@pytest.mark.parametrize(
    ("licence", "fine"),
    [
        ("MIT", True),
        ("Apache-2.0 OR GPL-3.0", True),
        ("Apache Software License; MIT License", True),
        ("Apache-2.0 AND Apache-2.0 WITH LLVM-exception AND BSD-2-Clause", True),
        ("MIT AND GPL-3.0", False),
        ("ISC License (ISCL)", True),
        ("(MIT OR GPL-3.0) AND GPL-3.0", False),
        ("UNKNOWN", False),
        ("MPL-2.0 AND MIT", False),
    ],
)
def test_a_licence_is_allowed_by_its_parts(licence: str, fine: bool) -> None:
    assert allowed("a-package", licence) == fine


def test_an_exception_is_for_one_package_and_one_licence() -> None:
    for name, licence in EXCEPTIONS.items():
        assert allowed(name, licence) and not allowed(name, "GPL-3.0") and not allowed("another", licence)


def test_what_could_not_be_audited_is_told() -> None:
    clean = {"name": "good", "version": "1", "vulns": []}
    bad = {"name": "bad", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}
    assert judged("a.lock", [clean]) == []
    (told,) = judged("a.lock", [clean, {"name": "odd", "skip_reason": "not found"}])
    assert "1 packages NOT AUDITED" in told and "odd" in told
    assert judged("a.lock", [bad]) == ["bad 2: CVE-1, fixed in ['3']"]


def test_both_locks_are_read() -> None:
    names = [name for lock in LOCKS for name in locked((ROOT / lock).read_text())]
    assert {"fastapi", "prometheus-client", "torch", "nvidia-nccl-cu13"} <= set(names)
    assert for_others("nvidia-nccl-cu13") and not for_others("fastapi")
