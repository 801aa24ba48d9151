"""Checkpoints: what goes in comes out, and a file that is not what it says it is never loads."""

import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from mnistlib import checkpoints, recipes
from mnistlib.obedience import KINDS
from mnistlib.types import InputError
from mnistlib.unet import UNet, UNetConfig

SETTINGS = {"lr": 0.1, "widths": [4, 8], "name": "é"}
SHIPPED = sorted(recipes.WEIGHTS.glob("*.safetensors"))
MANIFEST = recipes.WEIGHTS / "SHA256SUMS"


def unet(**changes):
    """Return a small UNet whose zero weights are filled, so that they matter."""
    torch.manual_seed(0)
    model = UNet(UNetConfig(widths=(8, 16), attention=(1,), heads=2, time_dim=8, **changes))
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return model


def features():
    """Return a feature network with statistics that float32 could not hold."""
    model = tiny.network()
    model.reference_mean += torch.pi * torch.arange(1, 9, dtype=torch.float64)
    model.reference_cov += torch.eye(8, dtype=torch.float64) / 3
    return model


@pytest.fixture
def path(tmp_path):
    """Return a checkpoint of a feature network."""
    path = tmp_path / "folder" / "model.safetensors"
    checkpoints.save(path, features(), SETTINGS, {"metrics": {"floor": 0.25}})
    return path


def refusal(path, read=checkpoints.load):
    """Return the one line with which a file is refused."""
    with pytest.raises(InputError) as error:
        read(path)
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    return message


# ---- what goes in comes out ----------------------------------------------------------------


def test_round_trip(path):
    model, settings, record = checkpoints.load(path)
    assert settings == SETTINGS
    assert record.pop("sha256") == checkpoints.read_tensors(path)[1]["sha256"]
    assert record == {"metrics": {"floor": 0.25}}
    assert model.config == features().config
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    for found, given_ in zip(model.parameters(), features().parameters(), strict=True):
        assert torch.equal(found, given_.half().float())


@pytest.mark.parametrize("changes", [{}, {"time_input": False}, {"skips": False}], ids=str)
def test_rebuilt_unet_answers_the_same(tmp_path, changes):
    model = checkpoints.round_to_half(unet(**changes)).eval()
    model = model.to(memory_format=torch.channels_last)  # the layout decides the last bits
    checkpoints.save(tmp_path / "a.safetensors", model, {}, {})
    again = checkpoints.load(tmp_path / "a.safetensors").model
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([1, 500])
    with torch.no_grad():
        assert torch.equal(model(x, t), again(x, t))


def test_statistics_stay_in_float64(path):
    model = checkpoints.load(path).model
    assert model.reference_mean.dtype == model.reference_cov.dtype == torch.float64
    assert torch.equal(model.reference_mean, features().reference_mean)
    assert torch.equal(model.reference_cov, features().reference_cov)


def test_parameters_are_stored_in_half_precision(path):
    tensors, _ = checkpoints.read_tensors(path)
    names = dict(features().named_parameters())
    assert {tensors[name].dtype for name in names} == {torch.float16}


def test_saving_leaves_the_model_as_it_is(tmp_path):
    model = features()
    checkpoints.save(tmp_path / "x.safetensors", model, {}, {})
    assert tiny.same(model.state_dict(), features().state_dict())


def test_same_content_gives_the_same_digest(path, tmp_path):
    """Whatever the order of the settings and of the weights in memory."""
    other = tmp_path / "other.safetensors"
    model = features().to(memory_format=torch.channels_last)
    settings = dict(reversed(SETTINGS.items()))
    checkpoints.save(other, model, settings, {"metrics": {"floor": 0.25}})
    (a, meta_a), (b, meta_b) = checkpoints.read_tensors(path), checkpoints.read_tensors(other)
    assert tiny.same(a, b)
    assert meta_a == meta_b


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
def test_any_tensor_round_trips(tmp_path, dtype):
    tensors = {"a": torch.arange(6).view(2, 3).to(dtype), "none": torch.zeros(0, 3, dtype=dtype)}
    tensors["one"] = torch.tensor(7).to(dtype)
    checkpoints.write_tensors(tmp_path / "x", tensors, {})
    found, _ = checkpoints.read_tensors(tmp_path / "x")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], tensor)


def test_provenance_says_what_made_it():
    made = checkpoints.provenance()
    assert set(made) == {"python", "torch", "machine", "threads", "revision"}
    assert made["torch"] == torch.__version__
    assert all(isinstance(value, str) and value for value in made.values())


@pytest.mark.parametrize("reason", ["no git", "no repository"])
def test_provenance_without_git(monkeypatch, reason):
    def no_git(*args, **kwargs):
        raise FileNotFoundError

    if reason == "no git":
        monkeypatch.setattr(checkpoints.subprocess, "run", no_git)
    else:
        monkeypatch.setenv("GIT_DIR", "/nonexistent")
    assert checkpoints.provenance()["revision"] == "unknown"


# ---- changed, foreign, cut -----------------------------------------------------------------


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """Return a small file of tensors with metadata as (path, bytes, what it holds)."""
    path = tmp_path_factory.mktemp("flip") / "x.safetensors"
    tensors = {"weight": torch.randn(3, 4).half(), "cov": torch.randn(5, dtype=torch.float64)}
    checkpoints.write_tensors(path, tensors, {"kind": "unet", "note": "one line", "n": [1, 2.5]})
    return path, path.read_bytes(), checkpoints.read_tensors(path)


def check_changed(content, changed):
    """A changed file is refused with one line, or it holds exactly the same."""
    path, _, (tensors, meta) = content
    path.write_bytes(changed)
    try:
        found, found_meta = checkpoints.read_tensors(path)
    except InputError as e:
        assert "\n" not in str(e)  # noqa: PT017
        return False
    assert tiny.same(found, tensors)
    assert found_meta == meta
    return True


def test_every_flipped_byte_is_found(content):
    """One bit of each byte of the file in turn: header, padding and tensors."""
    original = content[1]
    for position, byte in enumerate(original):
        bit = 5 * position % 8  # comes round to all eight
        changed = original[:position] + bytes([byte ^ 1 << bit]) + original[position + 1 :]
        assert not check_changed(content, changed), f"bit {bit} of byte {position}"


@given(st.data())
def test_any_damage_is_found_or_harmless(content, data):
    """Any stretch replaced by anything: refused, or (white space in the header) harmless."""
    original = content[1]
    start = data.draw(st.integers(0, len(original)))
    stop = data.draw(st.integers(start, min(start + 20, len(original))))
    new = data.draw(st.binary(max_size=20))
    changed = original[:start] + new + original[stop:]
    if check_changed(content, changed) and changed != original:
        assert json.loads(changed[8 : len(changed) - 64]) == json.loads(original[8:-64])


def test_a_flipped_byte_in_a_model_is_refused(path):
    original = path.read_bytes()
    for position in range(0, len(original), 97):
        path.write_bytes(
            original[:position] + bytes([original[position] ^ 1]) + original[position + 1 :]
        )
        assert "replace it" in refusal(path)


def test_truncated_file_is_refused(path):
    original = path.read_bytes()
    for size in [0, 1, 7, 8, 9, 100, len(original) // 2, len(original) - 1]:
        path.write_bytes(original[:size])
        assert "not a readable safetensors file" in refusal(path)
    path.write_bytes(original + b"\0")
    assert "not a readable safetensors file" in refusal(path)


class Trap:
    """Unpickling this touches a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_a_pickle_in_disguise_is_refused_and_not_run(tmp_path, writer):
    path, sprung = tmp_path / "model.safetensors", tmp_path / "sprung"
    if writer == "pickle":
        path.write_bytes(pickle.dumps(Trap(sprung)))
    else:
        torch.save(Trap(sprung), path)
    assert "not a readable safetensors file" in refusal(path)
    assert not sprung.exists()


def test_foreign_safetensors_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    for metadata in (None, {"format": "pt"}, {"mnistlib": "{}"}, {"sha256": "0"}):
        save_file({"a": torch.zeros(3)}, path, metadata)
        assert "was not written by this library" in refusal(path)
    save_file({"a": torch.zeros(3)}, path, {"mnistlib": "{}", "sha256": "0"})
    assert "changed or damaged" in refusal(path)


@pytest.mark.parametrize("name", ["missing.safetensors", "."])
def test_missing_file_is_refused(tmp_path, name):
    assert "does not exist" in refusal(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"config": {"widths": [4, 16], "dropout": 0, "classes": 10}}, "does not fit"),
        ({"config": {"widths": [4, 8], "colours": 3}}, "does not fit"),
        ({"kind": "unet"}, "does not fit"),
        ({"kind": "transformer"}, "not a model of this library"),
        ({"kind": None}, "not a model of this library"),
    ],
    ids=str,
)
def test_wrong_configuration_is_refused(path, change, reason):
    """The digest is right, so the file is whole; but no such model can be built."""
    tensors, meta = checkpoints.read_tensors(path)
    del meta["sha256"]
    checkpoints.write_tensors(path, tensors, meta | change)
    assert reason in refusal(path)


def test_training_state_is_not_a_model(tmp_path):
    path = tmp_path / "state.safetensors"
    tiny.trained(replace(tiny.CONFIG, steps=1), state=path)
    assert "not a model of this library" in refusal(path)


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_crash_while_saving_leaves_the_old_file(path, monkeypatch, function):
    def fail(*_):
        raise OSError("No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="No space"):
        checkpoints.save(path, features(), {}, {})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


# ---- the shipped weights -------------------------------------------------------------------


@pytest.fixture
def shipped_copy(tmp_path, monkeypatch):
    """Put a copy of the shipped weights in their place, and return its folder."""
    if not SHIPPED:
        pytest.skip("no weights are shipped yet")
    monkeypatch.setattr(recipes, "WEIGHTS", shutil.copytree(recipes.WEIGHTS, tmp_path / "weights"))
    return tmp_path / "weights"


def test_manifest_lists_exactly_the_shipped_files():
    if not SHIPPED and not MANIFEST.exists():
        pytest.skip("no weights are shipped yet")
    listed = [line.split()[1] for line in MANIFEST.read_text().splitlines()]
    assert sorted(listed) == [path.name for path in SHIPPED]
    assert {path.stem for path in SHIPPED} <= recipes.RECIPES.keys()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_weights_load_and_say_where_they_come_from(path):
    trained = recipes.load(path)
    record = trained.record
    assert record["recipe"] == path.stem
    assert record["profile"] == "full"
    assert record["data"]["source"] == "full"
    assert record["data"]["digits"] == 60_000
    assert len(record["data"]["sha256"]) == 64
    assert record["images_seen"] == trained.settings.train.steps * trained.settings.batch_size
    assert record["parameters"] == sum(p.numel() for p in trained.model.parameters())
    assert record["seed"] == trained.settings.train.seed
    assert record["seconds"] > 0
    assert len(record["losses"]) > 10
    assert {"python", "torch", "machine", "threads", "revision", "device"} <= record.keys()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.parametrize("where", [0.0, 0.001, 0.5, 1.0])
def test_a_flipped_byte_in_a_shipped_weight_is_refused(shipped_copy, path, where):
    copy = shipped_copy / path.name
    content = bytearray(copy.read_bytes())
    content[int(where * (len(content) - 1))] ^= 1
    copy.write_bytes(content)
    assert "not the file that was shipped" in refusal(copy, recipes.load)
    with pytest.raises(InputError, match="not the file that was shipped"):
        recipes.train_or_load(path.stem, "read")


def test_a_file_that_was_not_shipped_is_refused(shipped_copy):
    """Even if it is a perfectly good checkpoint."""
    path = shipped_copy / "ddpm.safetensors"
    checkpoints.save(path, unet(), {}, {"recipe": "ddpm"})
    assert "not the file that was shipped" in refusal(path, recipes.load)


def test_absent_shipped_weights_are_named(shipped_copy):
    (shipped_copy / SHIPPED[0].name).unlink()
    with pytest.raises(InputError, match=f"no shipped weights for '{SHIPPED[0].stem}'"):
        recipes.train_or_load(SHIPPED[0].stem, "read")


def metrics_of(name):
    """Return the metrics that the shipped weights of a recipe carry."""
    if not recipes.shipped_path(name).exists():
        pytest.skip(f"no weights of {name} are shipped yet")
    return recipes.load(recipes.shipped_path(name)).record["metrics"]


def test_shipped_feature_network_is_good_enough():
    metrics = metrics_of("digit_features")
    assert metrics["test_accuracy"] >= 0.994
    assert metrics["reference_digits"] == 60_000
    assert metrics["floor_digits"] == 10_000
    assert 0 < metrics["floor"] < 1


def test_shipped_ddpm_was_judged_as_promised():
    floor = metrics_of("digit_features")["floor"]
    metrics = metrics_of("ddpm")
    assert metrics["samples"] == 10_000
    assert "50 steps" in metrics["sampler"]
    assert metrics["times_floor"] == pytest.approx(metrics["frechet"] / floor)
    assert metrics["compared"]["samples"] == 1000


def test_shipped_ddpm_is_good_enough():
    assert metrics_of("ddpm")["times_floor"] <= 8


def test_shipped_vae_is_good_enough():
    metrics = metrics_of("vae")
    assert metrics["images"] == 10_000
    assert metrics["times_floor"] <= 1.5


def test_shipped_rgb_vae_is_good_enough():
    """What can be read off a scene can be read off what comes back: about one in a hundred lost."""
    metrics = metrics_of("rgb_vae")
    assert {*KINDS} < metrics.keys()
    for kind in KINDS:
        painted, back = (metrics[kind][which]["asked"] for which in ("painted", "read"))
        assert painted["of"] == back["of"] == 2000
        assert painted["share"] >= 0.99
        assert back["share"] >= painted["share"] - 0.012


def test_shipped_latent_is_good_enough():
    """Unguided it is near real digits, guided it does as it is told."""
    metrics = metrics_of("latent")
    assert metrics["samples"] == 10_000
    assert "25 steps" in metrics["sampler"]
    assert metrics["times_floor"] <= 5
    assert max(found["accuracy"] for found in metrics["guided"].values()) >= 0.995


def test_shipped_latent_is_obeyed_unguided():
    assert metrics_of("latent")["accuracy"] >= 0.98


ASKED_OF_PROMPTS = [
    ("one digit, seen", 0.99),
    ("one digit, held out", 0.98),
    ("two digits, seen", 0.96),
    ("two digits, held out", 0.92),
]


@pytest.mark.parametrize(("kind", "goal"), ASKED_OF_PROMPTS)
def test_shipped_text_to_image_draws_what_it_is_told(kind, goal):
    """At most 25 steps and 2,000 random prompts of each kind, at the best guidance scale."""
    metrics = metrics_of("text_to_image")
    assert "25 steps" in metrics["sampler"]
    assert metrics[kind]["asked"]["share"] >= goal


def test_shipped_text_to_image_is_judged_by_2000_prompts_of_each_kind():
    """A prompt that names nothing of what is asked cannot be disobeyed, and is not counted."""
    metrics = metrics_of("text_to_image")
    assert all(1950 <= metrics[kind]["asked"]["of"] <= 2000 for kind in KINDS)


@pytest.mark.parametrize("kind", ["one digit, seen", "one digit, held out"])
@pytest.mark.parametrize(("attribute", "goal"), [("slant", 0.97), ("stroke", 0.9)])
def test_shipped_text_to_image_heeds_slant_and_stroke(kind, attribute, goal):
    assert metrics_of("text_to_image")[kind][attribute]["share"] >= goal


def test_shipped_text_to_image_understands_both_languages():
    english, chinese = (metrics_of("text_to_image")[k]["asked"] for k in ("English", "Chinese"))
    assert chinese["share"] >= english["share"] - 0.02


def test_models_that_could_not_be_loaded_are_not_saved(tmp_path):
    with pytest.raises(InputError, match="Linear is no model of this library"):
        checkpoints.save(tmp_path / "a.safetensors", nn.Linear(2, 2), {}, {})
    assert not list(tmp_path.iterdir())
