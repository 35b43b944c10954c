"""The command `tween` as a user runs it: a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pico
import pytest
from faults import fill, tiny_disk
from fleet import Absent
from servers import until

from app import __version__
from app.api.auth.api_keys import ApiKeys

Start = Callable[..., "subprocess.Popen[str]"]


def environment(**extra: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TWEEN_")}
    inherited.pop("REDIS_URL", None)
    return inherited | {"TWEEN_DRAIN_S": "0"} | extra


def tween(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment(**extra), check=False)


@pytest.fixture
def start() -> Iterator[Start]:
    running: list[subprocess.Popen[str]] = []

    def run(*arguments: str, **extra: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "app", *arguments]
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment(**extra)
        )
        running.append(process)
        return process

    yield run
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


@contextmanager
def ready(process: subprocess.Popen[str], port: int) -> Iterator[httpx.Client]:
    """A client of the service, once it is ready."""
    deadline = time.monotonic() + 180
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        while time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()[1]
            try:
                if client.get("/readyz").status_code == 200:
                    yield client
                    return
            except httpx.TransportError:
                time.sleep(0.05)
    raise AssertionError("the service did not become ready")


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


def test_version_and_help() -> None:
    assert tween("--version").stdout.strip() == f"tween {__version__}"
    help_text = tween("--help").stdout
    assert "serve" in help_text and "demo" in help_text


def test_a_new_key_is_printed_with_its_entry(tmp_path: Path) -> None:
    printed = tween("key", "new", "shop", "--role", "manage").stdout
    key, entry = re.search(r"tween_\S+", printed), printed.partition("[[keys]]")
    (tmp_path / "keys.toml").write_text("".join(entry[1:]))
    found = ApiKeys(tmp_path / "keys.toml").find(key.group()) if key else None
    assert found is not None and (found.name, found.role) == ("shop", "manage")
    assert "is no name for a key" in tween("key", "new", "my shop").stderr


def test_serve_answers_with_a_private_redis_and_ends_on_sigterm(start: Start, folders: Path, port: int) -> None:
    process = start(
        "serve",
        "--base",
        str(folders / "base"),
        "--variant",
        f"angry={folders / 'angry'}",
        "--port",
        str(port),
    )
    with ready(process, port) as client:
        assert client.get("/readyz").json()["redis"] == "ok"
        reply = client.post("/v1/predict", json={"texts": "thanks", "recipe": {"t": 0.4}}).json()
        assert reply["recipe"] == "angry@0.4" and reply["source"] == "built"
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=300)
    socket_path = re.search(r"on (/\S+redis\.sock)", log)
    assert process.returncode == 0 and "Traceback" not in log
    assert socket_path is not None and not Path(socket_path.group(1)).exists()


def test_serve_reads_a_bank_file_from_the_environment(start: Start, folders: Path, port: int, redis_url: str) -> None:
    process = start("serve", TWEEN_BANK=str(folders / "bank.toml"), TWEEN_PORT=str(port), REDIS_URL=redis_url)
    with ready(process, port) as client:
        assert [variant["name"] for variant in client.get("/v1/bank").json()["variants"]] == ["angry", "polite"]


def test_serve_from_redis_needs_nothing_but_redis(start: Start, folders: Path, port: int, redis_url: str) -> None:
    usual = {"REDIS_URL": redis_url, "TWEEN_MEMORY_TIER_MIB": "8"}
    builder = start("serve", "--bank", str(folders / "bank.toml"), "--port", str(port), **usual)
    with ready(builder, port) as client:
        # A busy machine may be too slow for Redis at first.
        until(lambda: "redis" in client.post("/v1/blends", json={"recipe": "polite@0.4"}).json()["tiers"])
    builder.send_signal(signal.SIGTERM)
    builder.communicate(timeout=300)
    small = start("serve", "--from-redis", "--port", str(port), **usual)
    with ready(small, port) as client:
        assert client.post("/v1/predict", json={"texts": "ok", "recipe": "polite@0.4"}).json()["source"] == "redis"


REFUSED = [
    (["serve"], {}, "nothing to serve"),
    (["serve", "--variant", "a=b"], {}, "--variant needs --base"),
    (["serve", "--base", "x", "--variant", "a"], {}, "write NAME=FOLDER"),
    (["serve", "--base", "x", "--bank", "y"], {}, "either --bank or --base"),
    (["serve", "--from-redis"], {}, "--from-redis needs REDIS_URL"),
    (["serve", "--from-redis", "--base", "x"], {"REDIS_URL": "{redis}"}, "give no --bank, --base or --variant with it"),
    (["serve", "--bank", "y", "--from-redis"], {"REDIS_URL": "{redis}"}, "give no --bank, --base or --variant with it"),
    (["serve", "--from-redis", "{f}"], {"REDIS_URL": "{redis}"}, "Redis holds no bank ffffffffffffffff in namespace"),
    (["serve", "--from-redis"], {"REDIS_URL": "redis://127.0.0.1:1"}, "Redis does not answer (ConnectionError)"),
    (["serve", "--bank", "/nowhere/bank.toml"], {}, "cannot be read"),
    (["serve", "--base", "/nowhere/model"], {}, "base: there is no folder /nowhere/model"),
    (["serve", "--base", "x"], {"TWEEN_PRT": "1"}, "TWEEN_PRT is not a setting; settings: "),
    (["serve", "--base", "{base}"], {"TWEEN_DEVICE": "abacus"}, "no device 'abacus'"),
    (["serve", "--base", "{base}"], {"REDIS_URL": "http://cache"}, "REDIS_URL cannot be read"),
    (["serve", "--base", "{base}"], {"TWEEN_DEFAULT_RECIPE": "odd@1"}, "no variant 'odd'; loaded: base"),
]


@pytest.mark.parametrize(("arguments", "extra", "sentence"), REFUSED, ids=[case[2][:30] for case in REFUSED])
def test_what_cannot_be_served_is_one_sentence_and_status_2(
    folders: Path, port: int, redis_url: str, arguments: list[str], extra: dict[str, str], sentence: str
) -> None:
    filled = [argument.format(base=folders / "base", f="f" * 64) for argument in arguments]
    environ = {name: value.format(redis=redis_url) for name, value in extra.items()}
    done = tween(*filled, **{"TWEEN_PORT": str(port), "TWEEN_LOG_LEVEL": "error", **environ})
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("tween: ") and sentence in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_a_port_that_is_taken_is_said(folders: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = tween("serve", "--base", str(folders / "base"), "--port", str(taken.getsockname()[1]))
    assert done.returncode != 0 and "address already in use" in done.stderr


def test_a_full_disk_is_one_sentence(folders: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.csv"
    rows = [f"{pico.WORDS[number % 30]} order,{pico.LABELS[number % 3]}" for number in range(30)]
    texts.write_text("\n".join(["text,label", *rows]))
    arguments = ["sweep", str(texts), "--bank", str(folders / "bank.toml"), "--variant", "angry"]
    with contextlib.ExitStack() as stack:
        try:
            disk = stack.enter_context(tiny_disk(tmp_path / "disk"))
        except Absent as reason:
            pytest.skip(str(reason))
        (disk / "out").mkdir()
        fill(disk)
        done = tween(*arguments, "--out", str(disk / "out"), HOME=str(tmp_path))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert re.search("^tween: .*: No space left on device$", done.stderr, re.MULTILINE)


def test_fetch_names_each_member_and_the_folder_that_serves_it(folders: Path) -> None:
    done = tween("fetch", "--bank", str(folders / "bank.toml"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [part for m in ("base", "angry", "polite") for part in (m, str(folders / m))]


def test_fetch_says_what_it_cannot_find(tmp_path: Path) -> None:
    bank = tmp_path / "bank.toml"
    bank.write_text('base = "org/model"\n', encoding="utf-8")
    done = tween("fetch", "--bank", str(bank), HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hub"))
    assert done.returncode == 2
    assert done.stderr.startswith("tween: base: there is no folder org/model, and the hub does not give it either")
    assert tween("fetch").stderr.startswith("tween: nothing to fetch")
