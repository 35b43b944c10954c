"""The HTTP contract, over a real uvicorn and a real Redis."""

from __future__ import annotations

import gc
import json
import math
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pico
import pytest
import torch
from conftest import Service, running
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from servers import until
from transformers import AutoModelForSequenceClassification

from app.models.bank import Bank, BankSpec

pytestmark = pytest.mark.patient("a call that a busy machine delays must not count as Redis away")

TEXTS = ["the refund came fast, great!", "they never answer. awful"]


@pytest.fixture
def service(serve: Callable[..., Service], spec: BankSpec, redis: Redis) -> Service:
    return serve(spec)


@pytest.fixture
def client(service: Service) -> httpx.Client:
    return service.client


def predict(client: httpx.Client, **body: object) -> dict[str, object]:
    reply = client.post("/v1/predict", json=body)
    assert reply.status_code == 200, reply.text
    result: dict[str, object] = reply.json()
    return result


def problem(reply: httpx.Response, status: int) -> str:
    """The detail of a well-formed problem of that status."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    body = reply.json()
    assert set(body) == {"type", "title", "status", "detail", "instance"} and body["status"] == status
    assert reply.headers["x-request-id"]
    return str(body["detail"])


# -- predictions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["base", "angry@0.4", "angry@1", "angry@0.3+polite@0.2", "angry..polite@0.5"])
def test_predictions_are_those_of_transformers_on_the_blended_checkpoint(
    client: httpx.Client, folders: Path, recipe: str
) -> None:
    reply = predict(client, texts=TEXTS, recipe=recipe)
    weights = {"base": 1 - sum(reply["predictions"][0]["t"].values()), **reply["predictions"][0]["t"]}
    model = pico.reference(folders, {name: weight for name, weight in weights.items() if weight})
    for text, prediction in zip(TEXTS, reply["predictions"], strict=True):
        with torch.inference_mode():
            expected = model(**pico.tokenizer()(text, return_tensors="pt")).logits[0].softmax(0)
        got = [prediction["probabilities"][label] for label in pico.LABELS]
        assert got == pytest.approx(expected.tolist(), abs=1e-5)
        assert prediction["label"] == pico.LABELS[int(expected.argmax())]
        assert prediction["probability"] == max(got)
        assert list(prediction["probabilities"].values()) == sorted(got, reverse=True)


def test_different_t_give_different_answers(client: httpx.Client) -> None:
    seen = {json.dumps(predict(client, texts="ok", recipe=f"angry@{t}")["predictions"]) for t in (0, 0.4, 1)}
    assert len(seen) == 3


def test_one_text_a_list_and_pairs(client: httpx.Client, folders: Path) -> None:
    assert len(predict(client, texts=TEXTS[0])["predictions"]) == 1
    pair = ["is it late?", "yes it is"]
    mixed = predict(client, texts=[TEXTS[0], pair], recipe="angry")["predictions"]
    model = AutoModelForSequenceClassification.from_pretrained(folders / "angry")
    with torch.inference_mode():
        expected = model(**pico.tokenizer()(*pair, return_tensors="pt")).logits[0].softmax(0)
    assert [mixed[1]["probabilities"][label] for label in pico.LABELS] == pytest.approx(expected.tolist(), abs=1e-5)


def test_functions_and_top_k(client: httpx.Client) -> None:
    scores = {
        name: predict(client, texts="ok", recipe="angry", function=name)["predictions"][0]["probabilities"]
        for name in ("softmax", "sigmoid", "none")
    }
    for label, logit in scores["none"].items():
        assert scores["sigmoid"][label] == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-6)
        total = sum(math.exp(value) for value in scores["none"].values())
        assert scores["softmax"][label] == pytest.approx(math.exp(logit) / total, abs=1e-6)
    best = predict(client, texts="ok", recipe="angry", top_k=1)["predictions"][0]
    assert best["probabilities"] == {best["label"]: best["probability"]}


def test_a_recipe_for_every_text(client: httpx.Client) -> None:
    recipes = ["angry@0.4", {"variant": "polite", "t": 0.7}, "base", "angry@0.4", "angry..polite@0.5"]
    texts = [*TEXTS, "ok", TEXTS[0], "late"]
    reply = predict(client, texts=texts, recipe=recipes)
    assert reply["recipe"] == ["angry@0.4", "polite@0.7", "base", "angry@0.4", "angry@0.5+polite@0.5"]
    assert len(set(reply["key"])) == 4 and reply["key"][0] == reply["key"][3]
    for text, recipe, prediction in zip(texts, reply["recipe"], reply["predictions"], strict=True):
        (alone,) = predict(client, texts=text, recipe=recipe)["predictions"]
        assert prediction["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)
        assert prediction["t"] == alone["t"]
    assert predict(client, texts=["ok"], recipe=["angry@0.4"])["recipe"] == ["angry@0.4"]


def test_more_recipes_than_slots_in_one_call(serve: Callable[..., Service], spec: BankSpec) -> None:
    client = serve(spec, memory_tier_mib=1).client
    recipes = [f"angry@{i / 300}+polite@{1 - i / 300}" for i in range(1, 300)]
    reply = predict(client, texts=["late order"] * len(recipes), recipe=recipes)
    assert len({json.dumps(prediction["probabilities"]) for prediction in reply["predictions"]}) > 290


def test_more_recipes_than_slots_where_every_blend_must_be_built(
    serve: Callable[..., Service], tmp_path: Path, redis: Redis
) -> None:
    folders = pico.write_bank(tmp_path, "deberta-v2")
    client = serve(BankSpec.from_toml(folders / "bank.toml"), memory_tier_mib=1).client
    assert client.get("/v1/blends").json()["tiers"]["memory"]["slots"] < 20
    recipes = [f"angry@{i / 40}" for i in range(1, 40)]
    with ThreadPoolExecutor(4) as callers:
        replies = list(
            callers.map(lambda _: predict(client, texts=["late order"] * len(recipes), recipe=recipes), range(4))
        )
    for reply in replies:
        for got, expected in zip(reply["predictions"], replies[0]["predictions"], strict=True):
            assert got["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)
    one = predict(client, texts="late order", recipe=recipes[7])["predictions"][0]
    assert replies[0]["predictions"][7]["probabilities"] == pytest.approx(one["probabilities"], abs=1e-5)


def test_a_t_that_never_comes_again_is_mixed_and_one_that_does_is_built(client: httpx.Client) -> None:
    for i in range(200):
        last = predict(client, texts="late order", recipe=f"angry@{0.001 * i + 0.0001}")
    assert last["source"] == "mixed"
    builds = client.get("/v1/blends").json()["tiers"]["build"]["builds"]
    sources = [predict(client, texts=["late order"] * 500, recipe="polite@0.5")["source"] for _ in range(50)]
    assert sources[-1] == "memory" and client.get("/v1/blends").json()["tiers"]["build"]["builds"] <= builds + 1


def test_characters_beyond_the_limit_are_not_read_and_that_is_reported(
    serve: Callable[..., Service], spec: BankSpec
) -> None:
    client = serve(spec, max_characters=8).client
    read, cut, pair = predict(client, texts=["late ok!", "late ok! thanks", ["late ok! thanks", "ok"]])["predictions"]
    assert (read["tokens"], read["truncated"]) == (6, False)
    assert (cut["tokens"], cut["truncated"], cut["probabilities"]) == (6, True, read["probabilities"])
    assert pair["truncated"] and pair["tokens"] == 6 + 3
    body = {"texts": ["late ok! thanks"], "recipe": "base..angry", "ts": [0]}
    (along,) = client.post("/v1/spectrum", json=body).json()["texts"]
    assert (along["tokens"], along["truncated"]) == (6, True)


def test_truncation_is_reported(client: httpx.Client) -> None:
    short, long = predict(client, texts=["late", "late " * 20_000])["predictions"]
    assert (short["tokens"], short["truncated"]) == (3, False)
    assert (long["tokens"], long["truncated"]) == (64, True)


def test_the_default_recipe_is_a_setting(serve: Callable[..., Service], spec: BankSpec) -> None:
    service = serve(spec, default_recipe="polite@0.25")
    assert predict(service.client, texts="ok")["recipe"] == "polite@0.25"


def test_timings_add_up(client: httpx.Client) -> None:
    timings = predict(client, texts=TEXTS, recipe="angry@0.77")["timings"]
    assert set(timings) == {"queue", "blend", "tokenize", "forward", "total"}
    parts = sum(value for name, value in timings.items() if name != "total")
    assert all(value >= 0 for value in timings.values()) and parts <= timings["total"] + 0.1


def test_a_hundred_concurrent_callers_of_one_cold_t_share_one_build(service: Service) -> None:
    with ThreadPoolExecutor(100) as callers:
        replies = list(callers.map(lambda _: predict(service.client, texts="ok", recipe="angry@0.123"), range(100)))
    assert len({json.dumps(reply["predictions"]) for reply in replies}) <= 2  # rounding differs with the batch
    assert service.client.get("/v1/blends").json()["tiers"]["build"]["builds"] == 1


def test_concurrent_callers_with_many_recipes_each_get_their_own(client: httpx.Client) -> None:
    recipes = [f"angry@{i / 10}" for i in range(11)] + [f"polite@{i / 10}" for i in range(11)]
    alone = {recipe: predict(client, texts=TEXTS, recipe=recipe)["predictions"] for recipe in recipes}
    with ThreadPoolExecutor(16) as callers:
        for recipe, reply in zip(
            recipes * 5, callers.map(lambda r: predict(client, texts=TEXTS, recipe=r), recipes * 5), strict=True
        ):
            for got, expected in zip(reply["predictions"], alone[recipe], strict=True):
                assert got["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)


# -- blends --------------------------------------------------------------------------------------------


def test_a_blend_is_built_once_then_found_in_memory(client: httpx.Client) -> None:
    first = predict(client, texts="ok", recipe="angry@0.4")
    again = predict(client, texts="ok", recipe={"variant": "angry", "t": 0.40})
    assert (first["source"], again["source"]) == ("built", "memory")
    assert first["key"] == again["key"] and again["recipe"] == "angry@0.4"


def test_a_restarted_service_finds_the_blend_in_redis(
    serve: Callable[..., Service], spec: BankSpec, redis: Redis
) -> None:
    one = serve(spec)
    built = predict(one.client, texts=TEXTS, recipe="angry@0.4")
    key = built["key"]
    for _ in range(100):
        if one.client.get(f"/v1/blends/{key}").json()["tiers"] == ["memory", "redis"]:
            break
    two = serve(spec)
    found = predict(two.client, texts=TEXTS, recipe="angry@0.4")
    assert (built["source"], found["source"]) == ("built", "redis")
    assert found["predictions"] == built["predictions"]


def test_a_damaged_blend_in_redis_is_rebuilt(serve: Callable[..., Service], spec: BankSpec, redis: Redis) -> None:
    one = serve(spec)
    built = predict(one.client, texts=TEXTS, recipe="angry@0.4")
    while not redis.keys("*manifest"):
        pass
    for name in redis.keys("*:0"):
        chunk = bytearray(redis.get(name))
        chunk[100] ^= 0xFF
        redis.set(name, bytes(chunk))
    two = serve(spec)
    rebuilt = predict(two.client, texts=TEXTS, recipe="angry@0.4")
    assert rebuilt["source"] == "built" and rebuilt["predictions"] == built["predictions"]
    assert two.client.get("/v1/blends").json()["tiers"]["redis"]["corrupt"] == 1


def test_blends_are_made_listed_and_deleted(client: httpx.Client, bank: Bank) -> None:
    made = client.post("/v1/blends", json={"recipe": "polite@0.5+angry@0.1"})
    assert made.status_code == 201
    body = made.json()
    assert body["recipe"] == "angry@0.1+polite@0.5" and body["source"] == "built"
    assert body["bytes"] == bank.arena.row_bytes and body["milliseconds"] > 0 and "memory" in body["tiers"]
    again = client.post("/v1/blends", json={"recipe": {"t": {"angry": 0.1, "polite": 0.5}}})
    assert (again.status_code, again.json()["source"]) == (200, "memory")
    listed = client.get("/v1/blends").json()["blends"]
    assert [blend["key"] for blend in listed] == [body["key"]]
    one = client.get(f"/v1/blends/{body['key']}").json()
    assert one["recipe"] == body["recipe"] and one["hits"] == 1 and one["age"] >= 0
    gone = client.delete(f"/v1/blends/{body['key']}").json()
    assert gone == {"key": body["key"], "tiers": ["memory", "redis"]}
    assert client.get("/v1/blends").json()["blends"] == []
    assert f"no blend '{body['key']}' is cached" in problem(client.get(f"/v1/blends/{body['key']}"), 404)
    assert "is cached" in problem(client.delete(f"/v1/blends/{body['key']}"), 404)


def test_a_blend_tells_what_each_way_to_it_took(serve: Callable[..., Service], spec: BankSpec, redis: Redis) -> None:
    one = serve(spec).client
    key = one.post("/v1/blends", json={"recipe": "angry@0.4"}).json()["key"]
    for _ in range(500):
        costs = one.get(f"/v1/blends/{key}").json()["costs"]
        if "write" in costs:
            break
    assert set(costs) == {"build", "write"} and all(milliseconds > 0 for milliseconds in costs.values())
    two = serve(spec).client
    assert two.post("/v1/blends", json={"recipe": "angry@0.4"}).json()["source"] == "redis"
    assert set(two.get(f"/v1/blends/{key}").json()["costs"]) == {"fetch"}
    known = known_costs(two)
    assert ("build", "linear 2") in known and ("fetch", "") in known


@pytest.mark.parametrize("setting", ["auto", "never"])
def test_a_blend_that_does_not_lie_in_redis_is_built(
    serve: Callable[..., Service], spec: BankSpec, redis: Redis, setting: str
) -> None:
    client = serve(spec, redis_blends=setting).client
    assert predict(client, texts="ok", recipe="angry@0.4")["source"] == "built"
    assert known_costs(client) == {("build", "linear 2")}
    if setting == "never":
        assert client.get("/v1/blends").json()["tiers"]["redis"]["misses"] == 0
        assert not list(redis.scan_iter("tween:blend:*"))


def known_costs(client: httpx.Client) -> set[tuple[str, str]]:
    """The ways to a blend whose costs are known, with the kind of build."""
    return {
        (sample.labels["way"], sample.labels["kind"])
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
        if sample.name == "tween_blend_cost_seconds"
    }


def test_the_ends_are_members_that_need_no_build_and_stay(client: httpx.Client) -> None:
    for recipe, canonical in (("base", "base"), ("angry", "angry@1"), ("angry@0", "base")):
        made = client.post("/v1/blends", json={"recipe": recipe})
        assert (made.status_code, made.json()["source"]) == (200, "memory")
        key = made.json()["key"]
        assert client.get(f"/v1/blends/{key}").json()["recipe"] == canonical
        assert f"is {canonical}, a member of the bank" in problem(client.delete(f"/v1/blends/{key}"), 409)


@pytest.mark.parametrize("recipe", ["base", "angry@0.4"])
def test_weights_are_a_file_that_transformers_loads(
    client: httpx.Client, folders: Path, tmp_path: Path, recipe: str
) -> None:
    reply = predict(client, texts=TEXTS, recipe=recipe, function="none")
    download = client.get(f"/v1/blends/{reply['key']}/weights")
    assert download.status_code == 200 and len(download.content) == int(download.headers["content-length"])
    (tmp_path / "model.safetensors").write_bytes(download.content)
    (tmp_path / "config.json").write_bytes((folders / "base" / "config.json").read_bytes())
    model, report = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for text, prediction in zip(TEXTS, reply["predictions"], strict=True):
        with torch.inference_mode():
            expected = model(**pico.tokenizer()(text, return_tensors="pt")).logits[0]
        got = [prediction["probabilities"][label] for label in pico.LABELS]
        assert got == pytest.approx(expected.tolist(), abs=1e-5)


def test_weights_of_a_blend_that_is_not_cached(client: httpx.Client) -> None:
    assert "is cached" in problem(client.get(f"/v1/blends/{'0' * 32}/weights"), 404)


# -- the bank, probes, pages ---------------------------------------------------------------------------


def test_the_bank_is_described_without_paths(client: httpx.Client, bank: Bank, folders: Path) -> None:
    reply = client.get("/v1/bank")
    body = reply.json()
    assert [variant["name"] for variant in body["variants"]] == ["angry", "polite"]
    assert body["labels"] == pico.LABELS and body["fingerprint"] == bank.fingerprint
    assert body["architecture"] == "BertForSequenceClassification" and body["dtype"] == "float32"
    assert body["bytes"] == 3 * bank.arena.row_bytes and body["parameters"] == bank.arena.layout.parameters
    assert body["variants"][0]["delta_norm"] == pytest.approx(bank.delta_norms[0])
    assert body["variants"][0]["angles"] == {"polite": pytest.approx(bank.delta_angles[0][1])}
    assert str(folders) not in reply.text


def test_probes_tell_loading_from_ready(serve: Callable[..., Service], spec: BankSpec) -> None:
    service = serve(spec, wait=False)
    states = set()
    while 200 not in states:
        try:
            assert service.client.get("/livez").json() == {"status": "live"}
            early = service.client.post("/v1/predict", json={"texts": "ok"})
            if early.status_code == 503:
                assert "still being loaded" in problem(early, 503) and early.headers["retry-after"] == "2"
            states.add(service.client.get("/readyz").status_code)
        except httpx.ConnectError:
            continue
    assert states <= {200, 503}
    assert service.client.get("/readyz").json()["redis"] == "ok"


def test_metrics_show_what_was_done_and_which_way_rows_went(serve: Callable[..., Service], spec: BankSpec) -> None:
    client = serve(spec).client
    predict(client, texts=TEXTS, recipe="angry@0.4")
    for i in range(100):
        predict(client, texts="ok", recipe=f"angry@{0.001 * i + 0.0001}")
    reply = client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }
    vector, mixed = samples["tween_rows_total", "vector"], samples["tween_rows_total", "mixed"]
    assert vector >= 2 and mixed > 50 and vector + mixed == 102
    assert samples["tween_batches_total",] <= 101 and samples["tween_tokens_total",] > 300
    assert samples["tween_blends_total", "builds", "build"] >= 1
    assert 0 < samples["tween_slots", "filled"] <= samples["tween_slots", "all"]
    assert samples["tween_cost_seconds", "build"] > 0 and samples["tween_cost_seconds", "token"] > 0
    assert samples["tween_recipe_reuse",] < 0.5 and samples["tween_waiting_rows",] == 0


def test_every_route_is_in_the_specification_with_an_example(client: httpx.Client) -> None:
    specification = client.get("/openapi.json").json()
    assert set(specification["paths"]) == {
        "/v1/predict",
        "/v1/spectrum",
        "/v1/bank",
        "/v1/blends",
        "/v1/blends/{key}",
        "/v1/blends/{key}/weights",
        "/v1/segments",
        "/v1/segments/{variant}",
        "/v1/sweeps",
        "/v1/sweeps/{sweep}",
        *(f"/v1/sweeps/{{sweep}}/{part}" for part in ("events", "plot.svg", "ramp.svg", "report", "results.json")),
        "/v1/aliases",
        "/v1/aliases/{name}",
        "/v1/aliases/{name}/rollback",
        "/v1/experiments",
        "/v1/experiments/{name}",
        "/v1/experiments/{name}/archive",
        "/v1/experiments/{name}/assignment",
        "/v1/experiments/{name}/audit",
        "/v1/experiments/{name}/export",
        "/v1/experiments/{name}/outcomes",
        "/v1/experiments/{name}/promote",
        "/v1/experiments/{name}/report",
        "/v1/experiments/{name}/status",
        "/v1/experiments/{name}/units/{unit}",
        "/livez",
        "/metrics",
        "/readyz",
    }
    content = specification["paths"]["/v1/predict"]["post"]["requestBody"]["content"]["application/json"]
    assert "between variants" in content["examples"]


def test_the_specification_is_written_once(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    first = client.get("/openapi.json")
    monkeypatch.setattr("app.api.openapi.json.dumps", None)  # writing it again would fail
    again = client.get("/openapi.json")
    assert again.status_code == 200 and again.content == first.content
    assert again.headers["content-type"] == "application/json"
    assert client.head("/openapi.json").headers["content-length"] == str(len(first.content))


def test_documentation_needs_no_other_host(client: httpx.Client) -> None:
    home = client.get("/", follow_redirects=True)
    assert home.url.path == "/docs" and "swagger-ui" in home.text
    assert "https://" not in home.text
    assert client.get("/static-offline-docs/swagger-ui-bundle.js").status_code == 200


# -- bad input -----------------------------------------------------------------------------------------


def angry(t: float | str) -> dict[str, object]:
    return {"texts": "ok", "recipe": {"variant": "angry", "t": t}}


BAD: list[tuple[str, object, int, str]] = [
    (
        "unknown variant",
        {"texts": "ok", "recipe": "finance@0.4"},
        404,
        "no variant 'finance'; loaded: base, angry, polite",
    ),
    ("t is a word", {"texts": "ok", "recipe": "angry@abc"}, 422, "t is 'abc' in 'angry@abc'; it must be a number"),
    (
        "t is a string",
        {"texts": "ok", "recipe": {"variant": "angry", "t": "abc"}},
        422,
        "t is 'abc'; it must be a number",
    ),
    ("t is NaN", angry(math.nan), 422, "it must be a finite number"),
    (
        "t is infinite",
        {"texts": "ok", "recipe": {"variant": "angry", "t": math.inf}},
        422,
        "it must be a finite number",
    ),
    ("t is huge", angry(1e9), 422, "it may go from -1.0 to 2.0"),
    ("t is huge in text", {"texts": "ok", "recipe": "angry@1e9"}, 422, "it may go from -1.0 to 2.0"),
    ("empty text", {"texts": ""}, 422, "text 0 is empty"),
    ("blank text", {"texts": ["ok", " \n"]}, 422, "text 1 is empty"),
    ("blank pair", {"texts": [["ok", ""]]}, 422, "text 0 is empty"),
    ("no texts", {"texts": []}, 422, "send at least one text"),
    ("10,000 texts", {"texts": ["ok"] * 10_000}, 422, "10000 texts in one call; at most 512"),
    ("texts missing", {"recipe": "base"}, 422, "field 'texts' is missing"),
    ("texts are null", {"texts": None}, 422, "texts is a text, a list of texts, or a list of [text, pair]"),
    ("a text is a number", {"texts": ["ok", 3]}, 422, "item 1 is neither"),
    ("a triple", {"texts": [["a", "b", "c"]]}, 422, "item 0 is neither"),
    ("a lone surrogate", {"texts": "\ud800"}, 422, "text 0 is not valid Unicode"),
    ("a lone surrogate in the recipe", {"texts": "ok", "recipe": {"\ud800": 1}}, 422, "is unknown"),
    ("an unknown field", {"texts": "ok", "recpie": "base"}, 422, "field 'recpie' is unknown"),
    ("a recipe list of numbers", {"texts": "ok", "recipe": [1]}, 422, "recipe"),
    ("fewer recipes than texts", {"texts": ["a", "b", "c"], "recipe": ["base"]}, 422, "3 texts and 1 recipes"),
    ("more recipes than texts", {"texts": ["a"], "recipe": ["base", "base"]}, 422, "1 texts and 2 recipes"),
    ("no recipes", {"texts": ["a"], "recipe": []}, 422, "1 texts and 0 recipes"),
    ("a bad recipe in a list", {"texts": ["a", "b"], "recipe": ["base", "mild@1"]}, 404, "no variant 'mild'"),
    ("an unknown function", {"texts": "ok", "function": "argmax"}, 422, "'softmax', 'sigmoid' or 'none'"),
    ("top_k of 0", {"texts": "ok", "top_k": 0}, 422, "top_k"),
    ("an unknown alias", {"texts": "ok", "recipe": "@prod"}, 404, "no alias 'prod'; aliases here: none yet"),
    ("an alias with a t", {"texts": "ok", "recipe": "@prod@0.4"}, 422, "an alias stands alone"),
    ("an experiment", {"texts": "ok", "recipe": "exp:tone"}, 404, "no experiment 'tone'"),
    ("a later method", {"texts": "ok", "recipe": "slerp:angry@0.4"}, 422, "method 'slerp'"),
    ("a body that is a list", [1], 422, "the body should be an object in JSON; /docs shows what is in it"),
    (
        "a recipe that is a number",
        {"texts": "ok", "recipe": 5},
        422,
        "recipe: Input should be a text or an object or a",
    ),
    ("a segment that is a number", {"texts": "ok", "segment": 5}, 422, "segment: Input should be a text or a list"),
    ("a body that is null", None, 422, ""),
]


@pytest.fixture(scope="module")
def lasting(redis_url: str, spec: BankSpec) -> Iterator[httpx.Client]:
    """One service for all bad input: it must not care."""
    with running(spec, redis_url=redis_url) as service:
        yield service.client


@pytest.mark.parametrize(("body", "status", "sentence"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input_gets_one_clear_sentence(lasting: httpx.Client, body: object, status: int, sentence: str) -> None:
    content = json.dumps(body)
    reply = lasting.post("/v1/predict", content=content, headers={"Content-Type": "application/json"})
    assert sentence in problem(reply, status)
    assert len(reply.json()["detail"]) < 400
    assert predict(lasting, texts="ok", recipe="angry@0.4")["predictions"]


@pytest.mark.parametrize("content", ["{", "", '{"texts": }', "\xff", "[" * 100_000])
def test_a_body_that_is_not_json(lasting: httpx.Client, content: str) -> None:
    reply = lasting.post("/v1/predict", content=content.encode("latin-1"), headers={"Content-Type": "application/json"})
    assert reply.status_code in (400, 422)
    assert problem(reply, reply.status_code)


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/blends", "/v1/spectrum"])
@pytest.mark.parametrize(
    ("content", "status", "sentence"),
    [
        (b"[1]", 422, "the body should be an object in JSON"),
        (b'{"texts": "\xff"}', 400, "the body is not JSON in UTF-8"),
        (b"[" * 50_000 + b"]" * 50_000, 400, "nested more than 32 levels deep"),
    ],
)
def test_every_route_says_the_same_of_a_body_that_it_cannot_read(
    lasting: httpx.Client, path: str, content: bytes, status: int, sentence: str
) -> None:
    reply = lasting.post(path, content=content, headers={"Content-Type": "application/json"})
    assert sentence in problem(reply, status)


def test_a_recipe_of_another_shape_is_told_which_it_may_have(lasting: httpx.Client) -> None:
    reply = lasting.post("/v1/blends", json={"recipe": 5})
    assert problem(reply, 422) == "recipe: Input should be a text or an object"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
def test_a_body_that_does_not_say_that_it_is_json(lasting: httpx.Client, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    reply = lasting.post("/v1/predict", content=b'{"texts": "ok"}', headers=headers)
    assert "send JSON with Content-Type: application/json" in problem(reply, 415)


def test_content_types_of_json_are_taken(lasting: httpx.Client) -> None:
    for kind in ("application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json"):
        assert (
            lasting.post("/v1/predict", content=b'{"texts": "ok"}', headers={"Content-Type": kind}).status_code == 200
        )


def test_a_text_of_100_000_characters_is_answered_and_cut(lasting: httpx.Client) -> None:
    (prediction,) = predict(lasting, texts="a" * 100_000)["predictions"]
    assert prediction["truncated"] or prediction["tokens"] <= 64


def test_a_body_above_the_limit_is_refused_announced_or_streamed(serve: Callable[..., Service], spec: BankSpec) -> None:
    client = serve(spec, max_body_mib=0.01).client
    body = json.dumps({"texts": "late " * 5_000}).encode()
    headers = {"Content-Type": "application/json"}
    announced = client.post("/v1/predict", content=body, headers=headers)
    assert "larger than 10485 bytes" in problem(announced, 413)
    streamed = client.post("/v1/predict", content=iter([body[:9_000], body[9_000:]]), headers=headers)
    assert "larger than 10485 bytes" in problem(streamed, 413)
    assert predict(client, texts="ok")


def test_paths_and_methods_that_do_not_exist(lasting: httpx.Client) -> None:
    assert "there is nothing at /v1/nothing" in problem(lasting.get("/v1/nothing"), 404)
    assert "GET does not work at /v1/predict; use POST" in problem(lasting.get("/v1/predict"), 405)


@pytest.mark.parametrize(("sent", "kept"), [("abc-123", True), ("a b", False), ("x" * 200, False), ("", False)])
def test_every_reply_carries_a_request_id(lasting: httpx.Client, sent: str, kept: bool) -> None:
    for path in ("/livez", "/nothing"):
        got = lasting.get(path, headers={"X-Request-Id": sent}).headers["x-request-id"]
        assert (got == sent) if kept else (got != sent and got)


def test_recipes_of_one_request_never_refuse_each_other(serve: Callable[..., Service], spec: BankSpec) -> None:
    client = serve(spec, queue_ms=1).client
    for _ in range(8):  # now it is known what a row takes
        assert client.post("/v1/predict", json={"texts": "thanks"}).status_code == 200
    asked = {"texts": [f"order {i}" for i in range(200)], "recipe": [f"angry@{i / 1000}" for i in range(1, 201)]}
    reply = client.post("/v1/predict", json=asked)
    assert reply.status_code == 200 and len(reply.json()["predictions"]) == 200


def test_a_full_queue_answers_429_and_serves_what_it_took(serve: Callable[..., Service], spec: BankSpec) -> None:
    client = serve(spec, queue_rows=8, batch_tokens=64).client
    with ThreadPoolExecutor(40) as callers:
        replies = list(
            callers.map(lambda _: client.post("/v1/predict", json={"texts": ["late " * 60] * 8}), range(200))
        )
    statuses = {reply.status_code for reply in replies}
    assert statuses == {200, 429}
    refused = next(reply for reply in replies if reply.status_code == 429)
    assert "texts are waiting" in problem(refused, 429) and int(refused.headers["retry-after"]) >= 1
    assert client.post("/v1/predict", json={"texts": "ok"}).status_code == 200


# -- redis that is not there ---------------------------------------------------------------------------


def test_without_redis_everything_is_served_and_readyz_says_so(
    serve: Callable[..., Service], spec: BankSpec, tmp_path: Path
) -> None:
    client = serve(spec, redis_url=f"unix://{tmp_path}/nothing.sock").client
    assert predict(client, texts="ok", recipe="angry@0.4")["source"] == "built"
    assert predict(client, texts="ok", recipe="angry@0.4")["source"] == "memory"
    assert client.get("/readyz").json()["redis"] == "degraded"
    assert 'tween_redis_breaker_openings_total{calls="small"} 1.0' in client.get("/metrics").text
    assert [blend["tiers"] for blend in client.get("/v1/blends").json()["blends"]] == [["memory"]]
    key = client.get("/v1/blends").json()["blends"][0]["key"]
    assert client.delete(f"/v1/blends/{key}").json()["tiers"] == ["memory"]


@pytest.mark.parametrize("url", ["redis://:s3cret/pass@host", "redis://:s3cret@host?colour=red", "http://s3cret"])
def test_an_address_that_cannot_be_used_is_refused_without_repeating_it(
    serve: Callable[..., Service], spec: BankSpec, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    service = serve(spec, wait=False, redis_url=url)
    until(lambda: service.failures)
    assert "REDIS_URL" in str(service.failures[0]) and "s3cret" not in str(service.failures[0]) + caplog.text


def test_a_service_that_has_ended_keeps_no_weights(spec: BankSpec, redis_url: str) -> None:
    with running(spec, redis_url=redis_url, memory_tier_mib=16) as service:
        predict(service.client, texts="ok", recipe="angry@0.4")
        engine = weakref.ref(service.app.state.engine)
    gc.collect()
    assert engine() is None


def test_a_bank_that_cannot_be_loaded_is_reported_and_never_served(
    serve: Callable[..., Service], tmp_path: Path
) -> None:
    service = serve(BankSpec.from_options(str(tmp_path), []), wait=False)
    for _ in range(500):
        if service.failures:
            break
        try:
            service.client.get("/livez")
        except httpx.ConnectError:
            pass
    assert "holds no config.json" in str(service.failures[0])
