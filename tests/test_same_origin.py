"""Without keys: what a page of another site may have a browser do to a service on this machine, which is nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Service, running
from test_access import BOSS, BOSS_ENTRY, bearer
from test_roles import TABLE, filled

from app.models.bank import BankSpec

pytestmark = pytest.mark.patient("a call that a busy machine delays must not count as Redis away")

SHOP = "https://shop.example"
ASK = {"texts": "thanks", "recipe": "angry@0.4"}
FOREIGN = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "http://127.0.0.1"},
    {"Origin": "http://[", "Sec-Fetch-Site": ""},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
]
"""What a browser says of a page that is not the service's own."""


@pytest.fixture(scope="module")
def service(spec: BankSpec, redis_url: str) -> Iterator[Service]:
    options = {"cors_origins": SHOP, "allowed_hosts": "tween, *.tween.svc", "memory_tier_mib": 16}
    with running(spec, redis_url=redis_url, redis_namespace="origins", **options) as made:
        yield made


@pytest.fixture
def own(service: Service) -> str:
    return str(service.client.base_url).rstrip("/")


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_a_page_of_another_site_changes_nothing(service: Service, headers: dict[str, str]) -> None:
    for t in (0.4, 0.6):
        service.client.put("/v1/aliases/prod", json={"recipe": f"angry@{t}"}).raise_for_status()
    before = service.client.get("/v1/aliases/prod").json()
    for method, path in (("POST", "/v1/aliases/prod/rollback"), ("DELETE", "/v1/aliases/prod"), ("POST", "/v1/sweeps")):
        reply = service.client.request(method, path, headers=headers)
        assert reply.status_code == 403 and reply.json()["type"] == "urn:tween:cross-origin", (method, path)
        assert "TWEEN_CORS_ORIGINS" in reply.json()["detail"] and "evil" not in reply.text
    assert service.client.get("/v1/aliases/prod", headers=headers).json() == before  # reading is CORS's to refuse


def test_every_call_that_may_change_something_asks_where_it_comes_from(service: Service) -> None:
    for method, template in TABLE:
        reply = service.client.request(method, filled(template), headers=FOREIGN[0])
        assert (reply.status_code == 403) == (method not in ("GET", "HEAD")), (method, template)


def test_programs_its_own_pages_and_named_origins_are_answered(service: Service, own: str) -> None:
    for headers in (
        {},
        {"Origin": own},
        {"Origin": own, "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": SHOP},
        {"Origin": SHOP, "Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://tween", "Host": "tween:80"},
        {"Origin": "https://tween", "Host": "tween"},
    ):
        assert service.client.post("/v1/predict", json=ASK, headers=headers).status_code == 200, headers


@pytest.mark.parametrize("kind", ["text/plain", "text/plain;charset=UTF-8", "multipart/form-data", None])
def test_a_body_that_needs_no_preflight_orders_no_sweep(service: Service, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    content = b"text,label\n" + b"thanks,positive\nawful,negative\n" * 20
    reply = service.client.post("/v1/sweeps?variant=angry", content=content, headers=headers)
    assert reply.status_code == 415 and "text/csv" in reply.json()["detail"]
    assert service.client.get("/v1/sweeps").json() == {"sweeps": []}


STRANGERS = ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "tween.evil", "svc"]
STRANGERS += ["tween.svc", "xtween", "evil.example.", "[evil.example]", "[", "]", "::", "a b", "127.0.0.1x", "@", "*"]


@pytest.mark.parametrize("host", STRANGERS)
def test_a_name_that_is_not_the_services_is_not_answered(service: Service, host: str) -> None:
    """DNS rebinding: the name of another site leads to this machine, and its page is of the same origin."""
    headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    for method, template in TABLE:
        reply = service.client.request(method, filled(template), headers=headers)
        assert reply.status_code == 421, (method, template)
    reply = service.client.post("/v1/predict", json=ASK, headers=headers)
    assert reply.status_code == 421 and reply.json()["type"] == "urn:tween:unknown-host"
    assert "TWEEN_ALLOWED_HOSTS" in reply.json()["detail"]


HOSTS = ["127.0.0.1", "localhost", "LOCALHOST:8000", "a.localhost", "[::1]:8000", "10.1.2.3:8000", "[fd00::7]", "tween"]
HOSTS += ["tween:8000", "tween.", "a.tween.svc", "a.b.tween.svc:80"]


@pytest.mark.parametrize("host", HOSTS)
def test_addresses_loopback_and_named_hosts_are_answered(service: Service, host: str) -> None:
    """An address cannot be rebound: probes ask a pod by its own, and a container's port by that of the machine."""
    for path in ("/readyz", "/v1/bank", "/metrics"):
        assert service.client.get(path, headers={"Host": host}).status_code == 200, path


def test_any_host_and_origin_are_answered_where_the_settings_say_so(spec: BankSpec, serve: Callable) -> None:
    client = serve(spec, allowed_hosts="*", cors_origins="*").client
    for host in STRANGERS:
        reply = client.post("/v1/predict", json=ASK, headers={"Host": host, **FOREIGN[0]})
        assert reply.status_code == 200, host


def test_with_keys_the_key_says_who_calls(spec: BankSpec, serve: Callable, tmp_path: Path) -> None:
    """A page has no key, so that names behind which a service with keys stands need not be told to it."""
    (tmp_path / "keys.toml").write_text(BOSS_ENTRY)
    client = serve(spec, api_keys=tmp_path / "keys.toml").client
    for host in STRANGERS:
        headers = {"Host": host, **FOREIGN[0]}
        assert client.post("/v1/predict", json=ASK, headers={**headers, **bearer(BOSS)}).status_code == 200, host
        assert client.get("/v1/none", headers={**headers, **bearer(BOSS)}).status_code == 404, host
        assert client.post("/v1/predict", json=ASK, headers=headers).status_code == 401, host


def test_the_host_that_it_listens_on_is_its_own(spec: BankSpec, serve: Callable) -> None:
    client = serve(spec, host="localhost").client
    assert client.get("/v1/bank").status_code == 200
    assert client.get("/v1/bank", headers={"Host": "localhost"}).status_code == 200
