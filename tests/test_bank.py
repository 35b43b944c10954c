from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pico
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertModel

from app.errors import BadBank
from app.models.bank import Bank, BankSpec, load_bank
from app.models.checkpoint import Source
from app.models.classifier import Classifier
from app.models.tokenizer import TextTokenizer

CPU = torch.device("cpu")


def load(folders: Path, **variants: Path) -> Bank:
    return load_bank(BankSpec(Source(str(folders / "base")), {n: Source(str(p)) for n, p in variants.items()}), CPU)


def refusal(folders: Path, **variants: Path) -> str:
    with pytest.raises(BadBank) as refused:
        load(folders, **variants)
    assert len(str(refused.value)) < 400
    return str(refused.value)


@pytest.mark.parametrize("name", ["../base/model.safetensors", "/etc/passwd", "pytorch_model.bin"])
def test_an_index_that_leads_out_of_the_folder_is_refused(folders: Path, odd: Path, name: str) -> None:
    (odd / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"a": name}}))
    assert f"names {name!r}, which is no safetensors file in this folder" in refusal(folders, odd=odd)


@pytest.mark.parametrize(
    ("allowed", "refused"),
    [
        (["ROOT"], None),
        (["ROOT/base", "ROOT/angry"], None),
        (["ROOT/base"], "angry"),
        (["org/*", "ROOT/../elsewhere"], "base"),
        (["ROOT/bas"], "base"),
    ],
)
def test_members_come_from_places_that_are_allowed(folders: Path, allowed: list[str], refused: str | None) -> None:
    spec = BankSpec(Source(str(folders / "base")), {"angry": Source(str(folders / "base" / ".." / "angry"))})
    places = [place.replace("ROOT", str(folders)) for place in allowed]
    if refused is None:
        spec.check_sources(places)
        return
    with pytest.raises(BadBank, match=f"^{refused}: .* TWEEN_MODEL_SOURCES"):
        spec.check_sources(places)


def test_a_link_is_where_it_leads_to(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "allowed").mkdir()
    (tmp_path / "allowed" / "base").symlink_to(folders / "base")
    with pytest.raises(BadBank, match="TWEEN_MODEL_SOURCES"):
        BankSpec(Source(str(tmp_path / "allowed" / "base"))).check_sources([str(tmp_path / "allowed")])


@pytest.mark.parametrize(("place", "allowed"), [("org/a", True), ("organ/a", False), ("evil/org/a", False)])
def test_hub_names_are_allowed_by_their_organisation(place: str, allowed: bool) -> None:
    spec = BankSpec(Source(place))
    if allowed:
        spec.check_sources(["org/*"])
    else:
        with pytest.raises(BadBank, match="TWEEN_MODEL_SOURCES"):
            spec.check_sources(["org/*"])


@pytest.fixture
def odd(folders: Path, tmp_path: Path) -> Path:
    """A copy of the variant `angry`, for a test to change."""
    return Path(shutil.copytree(folders / "angry", tmp_path / "odd"))


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def without(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[name]

    return change


def test_members_are_rows_of_one_contiguous_arena(bank: Bank, folders: Path) -> None:
    assert bank.arena.rows.is_contiguous() and bank.arena.names == ("base", "angry", "polite")
    saved = load_file(folders / "polite" / "model.safetensors")
    for name, view in bank.arena.layout.views(bank.arena["polite"]).items():
        assert torch.equal(view, saved[name])


def test_labels_in_another_order_are_aligned_by_name(folders: Path, odd: Path) -> None:
    straight = load(folders, odd=folders / "angry")
    order = [2, 0, 1]  # the variant's labels, by index in the base's

    def permute(tensors: dict[str, torch.Tensor]) -> None:
        for name in ("classifier.weight", "classifier.bias"):
            tensors[name] = tensors[name][order].contiguous()

    edit_weights(odd, permute)
    labels = [pico.LABELS[i].capitalize() for i in order]
    edit_config(odd, id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)})
    aligned = load(folders, odd=odd)
    assert aligned.labels == pico.LABELS
    assert torch.equal(aligned.arena["odd"], straight.arena["odd"])


def test_a_base_without_a_head_takes_part(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "encoder").mkdir()
    BertModel(pico.CONFIGS["bert"]).save_pretrained(tmp_path / "encoder")
    pico.tokenizer().save_pretrained(tmp_path / "encoder")
    spec = BankSpec(Source(str(tmp_path / "encoder")), {"angry": Source(str(folders / "angry"))})
    bank = load_bank(spec, CPU)
    assert bank.labels == pico.LABELS
    heads = [bank.arena.layout.views(bank.arena[name])["classifier.weight"] for name in ("base", "angry")]
    assert torch.equal(*heads)
    rows = TextTokenizer(bank.tokenizer, bank.config, 64).encode(["great answer"])
    assert torch.isfinite(Classifier(bank).logits(bank.arena["base"], rows)).all()


def test_a_bank_needs_one_trained_head(tmp_path: Path) -> None:
    BertModel(pico.CONFIGS["bert"]).save_pretrained(tmp_path / "base")
    pico.tokenizer().save_pretrained(tmp_path / "base")
    assert "no member is a sequence classifier" in refusal(tmp_path)


def test_the_fingerprint_is_that_of_the_content(folders: Path, odd: Path, tmp_path: Path) -> None:
    plain = load(folders, odd=odd).fingerprint
    assert load(folders, odd=odd).fingerprint == plain
    moved = Path(shutil.copytree(odd, tmp_path / "elsewhere"))
    assert load(folders, odd=moved).fingerprint == plain
    assert load(folders, other=odd).fingerprint != plain

    def nudge(tensors: dict[str, torch.Tensor]) -> None:
        tensors["classifier.bias"][0] += 1e-6

    edit_weights(odd, nudge)
    assert load(folders, odd=odd).fingerprint != plain


def test_the_order_of_variants_does_not_change_the_fingerprint(folders: Path) -> None:
    one = load(folders, a=folders / "angry", b=folders / "polite")
    two = load(folders, b=folders / "polite", a=folders / "angry")
    assert one.fingerprint == two.fingerprint


def test_geometry_is_that_of_the_deltas(bank: Bank) -> None:
    delta = (bank.arena["angry"].double() - bank.arena["base"].double()).norm().item()
    assert bank.delta_norms[0] == pytest.approx(delta)
    assert bank.delta_angles[0][1] == pytest.approx(90, abs=10)


# -- refusals ------------------------------------------------------------------------------------------


def test_another_label_set_is_refused(folders: Path, odd: Path) -> None:
    edit_config(odd, id2label={0: "negative", 1: "neutral", 2: "joyful"}, label2id={})
    assert "odd: no label 'positive', which base has; labels: negative, neutral, joyful" in refusal(folders, odd=odd)


def test_a_surplus_label_is_refused(folders: Path, tmp_path: Path) -> None:
    four = pico.save(pico.model("bert", 5, [*pico.LABELS, "mixed"]), tmp_path / "four")
    assert "odd: label 'mixed' is unknown to base" in refusal(folders, odd=four)


def test_another_tokenizer_is_refused(folders: Path, odd: Path) -> None:
    swapped = [*pico.VOCABULARY]
    swapped[5], swapped[6] = swapped[6], swapped[5]
    pico.tokenizer(swapped).save_pretrained(odd)
    assert "odd: another tokenizer: token 'the' is 6, the base's is 5" in refusal(folders, odd=odd)


def test_a_tokenizer_that_differs_only_in_its_rules_is_refused(folders: Path, odd: Path) -> None:
    path = odd / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": None}))
    assert "odd: another tokenizer: its normalizer differs from the base's" in refusal(folders, odd=odd)


@pytest.mark.parametrize("setting", [{"truncation_side": "left"}, {"split_special_tokens": True}])
def test_a_tokenizer_that_differs_in_a_setting_of_transformers_is_refused(
    folders: Path, odd: Path, setting: dict[str, object]
) -> None:
    path = odd / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | setting))
    (name,) = setting
    assert f"odd: another tokenizer: its {name} differs from the base's" in refusal(folders, odd=odd)


def test_a_variant_without_a_tokenizer_uses_the_base_s(folders: Path, odd: Path) -> None:
    for path in odd.glob("*token*"):
        path.unlink()
    assert load(folders, odd=odd).variants == ("odd",)


def test_a_base_without_a_tokenizer_is_refused(odd: Path) -> None:
    for path in odd.glob("*token*"):
        path.unlink()
    odd.rename(odd.parent / "base")
    assert "holds no tokenizer" in refusal(odd.parent)


def test_another_model_type_is_refused(folders: Path, tmp_path: Path) -> None:
    electra = pico.save(pico.model("electra", 5), tmp_path / "electra")
    assert "odd: model_type is 'electra', the base's is 'bert'" in refusal(folders, odd=electra)


@pytest.mark.parametrize(("field", "value"), [("hidden_act", "relu"), ("layer_norm_eps", 1e-5), ("hidden_size", 64)])
def test_another_architecture_is_refused(folders: Path, odd: Path, field: str, value: object) -> None:
    edit_config(odd, **{field: value})
    assert f"odd: another architecture: {field} is {value!r}" in refusal(folders, odd=odd)


def test_another_kind_of_problem_is_refused(folders: Path, odd: Path) -> None:
    edit_config(odd, problem_type="multi_label_classification")
    assert "problem_type is multi_label_classification, base's is single_label" in refusal(folders, odd=odd)


def test_a_model_type_that_is_not_served_is_refused(folders: Path, odd: Path) -> None:
    edit_config(odd, model_type="gpt2")
    assert "odd: model_type is 'gpt2'; served: bert, " in refusal(folders, odd=odd)


def test_a_pickle_is_refused(folders: Path, odd: Path) -> None:
    torch.save(load_file(odd / "model.safetensors"), odd / "pytorch_model.bin")
    (odd / "model.safetensors").unlink()
    assert "in pytorch_model.bin, a pickle, which is never loaded" in refusal(folders, odd=odd)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: b"not safetensors at all",
    ],
    ids=["empty", "cut", "header length", "text"],
)
def test_a_corrupt_file_is_refused(folders: Path, odd: Path, damage: Callable[[bytes], bytes]) -> None:
    path = odd / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert f"odd: {path} is not a sound safetensors file" in refusal(folders, odd=odd)


def test_missing_weights_are_refused_and_never_drawn_at_random(folders: Path, odd: Path) -> None:
    edit_weights(odd, without("bert.encoder.layer.1.output.dense.weight"))
    assert "odd: the weights lack bert.encoder.layer.1.output.dense.weight" in refusal(folders, odd=odd)


def test_a_classifier_whose_head_is_missing_is_refused(folders: Path, odd: Path) -> None:
    edit_weights(odd, without("classifier.bias"))
    assert "odd: the weights lack classifier.bias" in refusal(folders, odd=odd)


def test_surplus_weights_are_refused(folders: Path, odd: Path) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["bert.encoder.layer.2.output.dense.bias"] = torch.zeros(32)

    edit_weights(odd, add)
    assert "odd: the weights hold bert.encoder.layer.2.output.dense.bias" in refusal(folders, odd=odd)


def test_a_tensor_of_another_shape_is_refused(folders: Path, odd: Path) -> None:
    def cut(tensors: dict[str, torch.Tensor]) -> None:
        tensors["classifier.weight"] = tensors["classifier.weight"][:, :16].contiguous()

    edit_weights(odd, cut)
    assert "odd: classifier.weight has another shape than config.json says" in refusal(folders, odd=odd)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(folders: Path, odd: Path, value: float) -> None:
    def poison(tensors: dict[str, torch.Tensor]) -> None:
        tensors["classifier.bias"][1] = value

    edit_weights(odd, poison)
    assert "odd: classifier.bias holds a number that is not finite" in refusal(folders, odd=odd)


def test_an_adapter_is_refused(folders: Path, odd: Path) -> None:
    (odd / "adapter_config.json").write_text("{}")
    assert "is an adapter; merge it" in refusal(folders, odd=odd)


def test_a_folder_that_is_not_there_is_refused(folders: Path, tmp_path: Path) -> None:
    assert f"odd: there is no folder {tmp_path / 'nowhere'}" in refusal(folders, odd=tmp_path / "nowhere")


def test_a_folder_without_a_configuration_is_refused(folders: Path, tmp_path: Path) -> None:
    assert f"odd: {tmp_path} holds no config.json" in refusal(folders, odd=tmp_path)


def test_a_configuration_that_is_not_json_is_refused(folders: Path, odd: Path) -> None:
    (odd / "config.json").write_text("{")
    assert "config.json cannot be read" in refusal(folders, odd=odd)


def test_code_in_a_folder_is_never_run(folders: Path, odd: Path, tmp_path: Path) -> None:
    trap = tmp_path / "ran"
    (odd / "evil.py").write_text(f"open({str(trap)!r}, 'w')\nclass Evil: pass\n")
    edit_config(odd, auto_map={"AutoConfig": "evil.Evil", "AutoModelForSequenceClassification": "evil.Evil"})
    try:
        load(folders, odd=odd)
    except BadBank:
        pass
    assert not trap.exists()


@pytest.mark.parametrize("name", ["base", "auto", "a@b", "a+b", "a b", "", "e\u0301\u200b", "e:", "x" * 65])
def test_a_variant_name_that_recipes_cannot_write_is_refused(folders: Path, name: str) -> None:
    spec = BankSpec(Source(str(folders / "base")), {name: Source(str(folders / "angry"))})
    with pytest.raises(BadBank, match="variant name"):
        load_bank(spec, CPU)


# -- naming members ------------------------------------------------------------------------------------


def test_a_bank_file_names_folders_beside_it_and_hub_names(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    file = tmp_path / "bank.toml"
    file.write_text(
        'base = "mine"\n[variants]\na = "org/name@v2"\nb = {source = "org/other", revision = "abc"}\nc = "org/plain"\n'
    )
    spec = BankSpec.from_toml(file)
    assert spec.base == Source(str(tmp_path / "mine"))
    assert spec.variants == {
        "a": Source("org/name", "v2"),
        "b": Source("org/other", "abc"),
        "c": Source("org/plain"),
    }


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("base = ", "cannot be read"),
        ("[variants]\n", "no entry 'base'"),
        ('base = "x"\nvariant = 1', "unknown entry 'variant'"),
        ('base = "x"\nvariants = 3', "'variants' must be a table"),
        ("base = 3", "must be a folder or hub name"),
    ],
)
def test_a_bank_file_that_is_wrong_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "bank.toml").write_text(text)
    with pytest.raises(BadBank, match=sentence):
        BankSpec.from_toml(tmp_path / "bank.toml")


@pytest.mark.parametrize("option", ["finance", "finance=", "finance=a,finance=b"])
def test_variant_options_that_are_wrong_are_refused(option: str) -> None:
    with pytest.raises(BadBank, match="NAME=FOLDER|twice"):
        BankSpec.from_options("base", option.split(","))


GONE = """
import os, sys
from pathlib import Path
sys.path.insert(0, "tests")
from conftest import running
from app.models.bank import BankSpec

folder = Path(sys.argv[1])
body = {"texts": "the refund came late", "recipe": "angry@0.3+polite@0.2", "cache": False}
with running(BankSpec.from_toml(folder / "bank.toml"), workers=1, memory_tier_mib=16) as service:
    before = service.client.post("/v1/predict", json=body).json()["predictions"]
    for number, file in enumerate(sorted(folder.glob("*/*"))):
        if number % 2:
            os.truncate(file, 0)
        else:
            file.write_bytes(os.urandom(file.stat().st_size))  # the same file, other bytes
    service.app.state.engine.compute._lanes[0]._process.kill()  # its successor has to do without the files, too
    for recipe in ("angry@0.3+polite@0.2", "angry", "base", "polite@0.9"):
        service.client.post("/v1/predict", json=body | {"recipe": recipe}).raise_for_status()
    after = service.client.post("/v1/predict", json=body).json()["predictions"]
    key = service.client.post("/v1/blends", json={"recipe": "angry@0.3"}).json()["key"]
    assert len(service.client.get(f"/v1/blends/{key}/weights").content) > 10_000
    assert before[0]["probabilities"] == after[0]["probabilities"]
"""


def test_files_that_are_truncated_or_overwritten_while_loaded_change_nothing(folders: Path, tmp_path: Path) -> None:
    """In a process of its own: a mapping of a file that somebody truncates ends the process that touches it."""
    shutil.copytree(folders, tmp_path / "bank")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", GONE, str(tmp_path / "bank")],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
