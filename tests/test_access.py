"""Keys and limits over HTTP: who is let in, several pods that count together, and no secret told. Roles are in
test_roles.py."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from conftest import Service, running
from servers import server, until

from app.api.auth.api_keys import ApiKeys, new_key
from app.errors import BadSettings
from app.models.bank import BankSpec

pytestmark = pytest.mark.patient("a call that a busy machine delays must not count as Redis away")

SHOP, ENTRY = new_key("shop", "predict")
BOSS, BOSS_ENTRY = new_key("boss", "manage")
CALLS = (("GET", "/v1/bank"), ("PUT", "/v1/aliases/a"), ("GET", "/v1/none"), ("GET", "/metrics"))
ASK = {"texts": "thanks", "recipe": "angry@0.4"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(ENTRY + BOSS_ENTRY)
    return path


@pytest.fixture(scope="module")
def service(spec: BankSpec, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    path.write_text(ENTRY + BOSS_ENTRY)
    with running(spec, api_keys=path, redis_url=redis_url, redis_namespace="access", memory_tier_mib=16) as made:
        yield made


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_who_has_a_key_predicts(service: Service) -> None:
    for headers in (bearer(SHOP), {"X-API-Key": SHOP}, bearer(BOSS), {"authorization": f"bearer {SHOP}"}):
        assert service.client.post("/v1/predict", json=ASK, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer"}, bearer("tween_wrong"), bearer(SHOP + "a"), {"Authorization": f"Basic {SHOP}"}],
    ids=["none", "empty", "unknown", "longer", "another scheme"],
)
def test_who_has_none_is_told_how_to_come(service: Service, headers: dict[str, str]) -> None:
    reply = service.client.post("/v1/predict", json=ASK, headers=headers)
    assert reply.status_code == 401 and reply.headers["www-authenticate"] == "Bearer"
    assert reply.json()["type"] == "urn:tween:no-key" and SHOP not in reply.text


def test_probes_and_documentation_are_open(service: Service) -> None:
    for path in ("/livez", "/readyz", "/metrics", "/docs", "/openapi.json"):
        assert service.client.get(path).status_code == 200


def test_a_manager_is_the_actor_of_what_he_does(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tween.audit")
    headers = {**bearer(BOSS), "From": "somebody else"}
    reply = service.client.put("/v1/aliases/prod", json={"recipe": "angry@0.4"}, headers=headers)
    assert reply.status_code == 201 and reply.json()["by"] == "boss"
    refused = service.client.delete("/v1/aliases/prod", headers=bearer(SHOP))
    assert refused.status_code == 403 and 'error="insufficient_scope"' in refused.headers["www-authenticate"]
    assert [record.getMessage() for record in caplog.records if record.name == "tween.audit"] == [
        "boss PUT /v1/aliases/prod: 201",
        "shop DELETE /v1/aliases/prod: refused",
    ]


def test_the_audit_log_does_not_keep_the_name_of_a_unit_that_is_erased(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for key in (SHOP, BOSS):
        service.client.delete("/v1/experiments/tone/units/jane-doe", headers=bearer(key))
    shown = "DELETE /v1/experiments/{name}/units/{unit:path}"
    assert [record.getMessage() for record in caplog.records if record.name == "tween.audit"] == [
        f"shop {shown}: refused",
        f"boss {shown}: 404",
    ]
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert not [message for message in ours if "jane" in message]


def test_no_key_stands_in_a_log_or_a_reply(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    told = ""
    for key in (SHOP, BOSS, "tween_canary"):
        for method, path in CALLS:
            told += service.client.request(method, path, headers=bearer(key)).text
    told += caplog.text
    for secret in (SHOP, BOSS, "tween_canary", ENTRY.split('sha256 = "')[1][:64]):
        assert secret not in told


def test_a_new_file_of_keys_is_in_force_without_a_restart(file: Path) -> None:
    now = [0.0]
    keys = ApiKeys(file, clock=lambda: now[0])
    other, entry = new_key("shop", "predict")
    assert keys.find(SHOP) is not None and keys.find(other) is None
    file.write_text(ENTRY + entry)
    now[0] += 2
    assert keys.find(SHOP) is not None and keys.find(other) is not None  # both, while keys are changed
    file.write_text("this is no file of keys")
    now[0] += 2
    assert keys.find(other) is not None  # the last good one stays
    replaced = file.with_suffix(".new")
    replaced.write_text(entry)
    replaced.replace(file)  # as Kubernetes replaces a Secret
    now[0] += 2
    assert keys.find(SHOP) is None and keys.find(other) is not None


def test_a_key_ends_when_it_says(tmp_path: Path) -> None:
    past, future = tmp_path / "past.toml", tmp_path / "future.toml"
    past.write_text(ENTRY + "expires = 2020-01-01T00:00:00Z\n")
    future.write_text(ENTRY + "expires = 2999-01-01T00:00:00Z\n")
    assert ApiKeys(past).find(SHOP) is None and ApiKeys(future).find(SHOP) is not None


def test_keys_may_be_json(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    digest = ENTRY.split('sha256 = "')[1][:64]
    path.write_text(json.dumps({"keys": [{"name": "shop", "role": "predict", "sha256": digest}]}))
    found = ApiKeys(path).find(SHOP)
    assert found is not None and found.name == "shop"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("keys = 5", "keys"),
        ('[[keys]]\nname = "a b"\nrole = "predict"\nsha256 = "' + "0" * 64 + '"', "keys.0.name"),
        ('[[keys]]\nname = "a"\nrole = "root"\nsha256 = "' + "0" * 64 + '"', "keys.0.role"),
        (f'[[keys]]\nname = "a"\nrole = "predict"\nsha256 = "{SHOP}"', "keys.0.sha256"),
        ("[[", "neither TOML"),
    ],
    ids=["no table", "a name with a space", "no such role", "a key and not its digest", "no TOML"],
)
def test_a_wrong_file_of_keys_is_refused_at_the_start(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(BadSettings, match=says) as refusal:
        ApiKeys(path)
    assert SHOP not in str(refusal.value)


def test_two_pods_count_one_limit(serve: Callable, spec: BankSpec, file: Path, redis: object) -> None:
    file.write_text(ENTRY + "per_day = 6\n")
    pods = [serve(spec, api_keys=file).client for _ in range(2)]
    replies = [pods[number % 2].post("/v1/predict", json=ASK, headers=bearer(SHOP)) for number in range(10)]
    assert [reply.status_code for reply in replies].count(200) <= 6
    last = replies[-1]
    assert last.status_code == 429 and last.json()["type"] == "urn:tween:limit-reached"
    assert int(last.headers["retry-after"]) > 0 and last.headers["ratelimit-policy"] == '"day";q=6;w=86400'
    assert last.headers["ratelimit"] == '"day";r=0'


def test_a_rate_lets_through_what_it_says(serve: Callable, spec: BankSpec, file: Path, redis: object) -> None:
    file.write_text(ENTRY + "per_second = 2\n" + BOSS_ENTRY)
    client = serve(spec, api_keys=file).client
    started, let_in = time.monotonic(), 0
    while time.monotonic() - started < 2:
        reply = client.post("/v1/predict", json=ASK, headers=bearer(SHOP))
        let_in += reply.status_code == 200
        assert reply.headers["ratelimit-policy"] == '"second";q=2;w=1'
    assert 2 <= let_in <= 2 + 2 * (time.monotonic() - started) + 1
    assert client.post("/v1/predict", json=ASK, headers=bearer(BOSS)).status_code == 200


def test_while_redis_is_away_a_pod_counts_alone(serve: Callable, spec: BankSpec, file: Path, tmp_path: Path) -> None:
    file.write_text(ENTRY + "per_second = 0.2\nper_day = 1000\n")
    with server(tmp_path) as away:
        client: httpx.Client = serve(spec, api_keys=file, redis_url=away.url).client
        assert client.post("/v1/predict", json=ASK, headers=bearer(SHOP)).status_code == 200
        away.kill()
        statuses = [client.post("/v1/predict", json=ASK, headers=bearer(SHOP)).status_code for _ in range(4)]
        assert set(statuses) == {200, 429}
        until(lambda: client.post("/v1/predict", json=ASK, headers=bearer(SHOP)).status_code == 200)


def test_without_keys_all_is_open_and_the_log_says_so(
    serve: Callable, spec: BankSpec, caplog: pytest.LogCaptureFixture
) -> None:
    service = serve(spec, host="0.0.0.0")
    assert service.client.post("/v1/predict", json=ASK).status_code == 200
    assert "no TWEEN_API_KEYS: whoever reaches 0.0.0.0 may do everything" in caplog.text


def test_pages_of_other_origins_may_call_where_they_are_named(serve: Callable, spec: BankSpec) -> None:
    origin = {"Origin": "https://shop.example"}
    assert "access-control-allow-origin" not in serve(spec).client.get("/livez", headers=origin).headers
    named = serve(spec, cors_origins="https://shop.example, https://other.example").client
    assert named.get("/livez", headers=origin).headers["access-control-allow-origin"] == "https://shop.example"
    stranger = named.get("/livez", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in stranger.headers
    asking = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    assert named.options("/v1/predict", headers=asking).status_code == 200
