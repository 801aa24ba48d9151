"""Ablations: each measures what it says, is written as it goes, and goes on where it was cut."""

import json
from dataclasses import replace
from itertools import combinations

import pytest
import tiny
import torch

from mnistlib import ablations, recipes
from mnistlib.data import Digits, generator_for
from mnistlib.plots import sheet
from mnistlib.types import InputError

TINY = replace(
    recipes.RECIPES["ddpm"].smoke,
    train=replace(recipes.RECIPES["ddpm"].smoke.train, steps=3),
    batch_size=4,
    judged=6,
    judge_steps=2,
)


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Use made digits, the last 40 of them held out, in an empty folder."""
    tiny.stand_among_made_digits(tmp_path, monkeypatch, ablations)


@pytest.fixture
def counted(monkeypatch):
    """Register an ablation of two variants that does nothing; return the list of its calls."""
    calls = []

    def measure(settings, seed):
        calls.append((settings, seed))
        return {"value": settings + seed}

    entry = ablations.Ablation(measure, {"ten": 10, "twenty": 20}, seeds=(0, 1))
    monkeypatch.setitem(ablations.ABLATIONS, "counted", entry)
    return calls


# ---- runs and records ----------------------------------------------------------------------


def test_each_variant_runs_with_each_seed(counted, tmp_path):
    rows = list(ablations.run("counted", tmp_path))
    assert counted == [(10, 0), (20, 0), (10, 1), (20, 1)]
    assert [(r["variant"], r["seed"], r["value"]) for r in rows] == [
        ("ten", 0, 10),
        ("twenty", 0, 20),
        ("ten", 1, 11),
        ("twenty", 1, 21),
    ]
    record = ablations.read_record("counted", tmp_path)
    assert record["rows"] == rows
    assert record["command"] == "python -m mnistlib.ablations counted"
    assert record["provenance"]["torch"] == torch.__version__


@pytest.mark.parametrize("finished", range(5))
def test_cut_run_goes_on_where_it_stopped(counted, tmp_path, finished):
    """Each result is on disk before the next is begun; none is measured twice."""
    run = ablations.run("counted", tmp_path)
    for n in range(finished):
        next(run)
        assert len(ablations.read_record("counted", tmp_path)["rows"]) == n + 1
    run.close()
    assert len(list(ablations.run("counted", tmp_path))) == 4 - finished
    assert len(counted) == len(set(counted)) == 4
    assert len(ablations.read_record("counted", tmp_path)["rows"]) == 4


def test_unknown_ablation_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"unknown ablation 'unet'; choose one of .*unet_parts"):
        next(ablations.run("unet", tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_missing_record_names_the_command(tmp_path):
    with pytest.raises(InputError, match=r"python -m mnistlib\.ablations objective"):
        ablations.read_record("objective", tmp_path)


@pytest.mark.parametrize("path", sorted(ablations.RECORDS.glob("*.json")), ids=lambda p: p.stem)
def test_stored_records_hold_what_their_ablation_makes(path):
    record = json.loads(path.read_text())
    ablation = ablations.ABLATIONS[path.stem]
    made = {(variant, seed) for seed in ablation.seeds for variant in ablation.variants}
    found = [(row["variant"], row["seed"]) for row in record["rows"]]
    assert len(found) == len(set(found))
    assert set(found) <= made
    assert record["command"].endswith(f" {path.stem}")


@pytest.mark.parametrize("name", ["unet_parts", "objective"])
def test_variants_differ_in_what_their_names_say(name):
    variants = ablations.ABLATIONS[name].variants.values()
    assert all(a != b for a, b in combinations(variants, 2))
    assert len({v.train for v in variants}) == 1, "all must be trained alike"
    assert len({(v.batch_size, v.judged, v.judge_steps, v.schedule) for v in variants}) == 1


# ---- the measurements ----------------------------------------------------------------------


def test_diffusion_run_measures_loss_and_samples(made):
    first, again, other = (ablations.diffusion_run(TINY, seed) for seed in (0, 0, 1))
    assert set(first) == {"loss_ema", "loss_last", "frechet_ema", "frechet_last"}
    assert all(value > 0 for value in first.values())
    assert first == again
    assert first != other


def test_eps_error_of_an_ignorant_network():
    """A network that always answers zero misses all of the noise, whose mean square is one."""
    settings = replace(TINY, predicts="eps")
    ignorant = recipes.Trained(recipes.RECIPES["ddpm"].network(settings), settings, {})
    raw = torch.from_numpy(tiny.made_digits(300)[0]).to(torch.uint8)
    assert ablations._eps_error(ignorant, raw) == pytest.approx(1, abs=0.01)


def test_readable_run_measures_each_noise_level(made, monkeypatch):
    """Two steps of training instead of 700; the labels of noise cannot be read anyway."""
    config = ablations.TrainConfig
    monkeypatch.setattr(ablations, "TrainConfig", lambda **k: config(**(k | {"steps": 2})))
    found = ablations.readable_run(None, 0)
    assert found["log_snr"] == ablations.LOG_SNR
    assert len(found["accuracy"]) == len(ablations.LOG_SNR)
    assert all(0 <= a <= 1 for a in found["accuracy"])


def test_readable_run_can_tell_clear_from_noisy(made, monkeypatch):
    """Black and white squares: told apart where they are clear, guessed where they are not."""
    labels = torch.arange(140) % 2
    images = (255 * labels).to(torch.uint8).view(-1, 1, 1).expand(-1, 28, 28).contiguous()
    monkeypatch.setattr(ablations, "mnist", lambda source: Digits(images, labels, "full"))
    monkeypatch.setattr(ablations, "LOG_SNR", [-40.0, 9.0])
    config = ablations.TrainConfig
    short = {"steps": 15, "warmup": 0, "lr": 1e-2, "ema": 0.0}
    monkeypatch.setattr(ablations, "TrainConfig", lambda **k: config(**(k | short)))
    hidden, clear = ablations.readable_run(None, 0)["accuracy"]
    assert clear == 1
    assert hidden == pytest.approx(0.5, abs=0.25)


def test_progress_run_reads_the_snapshots(made, monkeypatch):
    """With 20 samples at 2 steps, where the chapter's record has more."""
    draw = recipes.sample_in_batches
    monkeypatch.setattr(
        recipes, "sample_in_batches", lambda x, *_, seed, **_k: draw(x, 20, 2, seed=seed)
    )
    for _ in recipes.train("ddpm", TINY, out="runs/ddpm"):
        pass
    row = ablations.progress_run(1, 0)
    assert (row["step"], row["images_seen"]) == (1, 4)
    assert row["loss"] > 0
    assert row["frechet"] > 0
    trained = recipes.load("runs/ddpm/step_00001.safetensors")
    samples = draw(trained, 20, 2, seed=0)
    paper = ablations.decode_sheet(json.loads(json.dumps(row)))
    assert torch.equal(paper, sheet(samples[:16], columns=8))


def test_main_runs_what_it_is_given(counted, tmp_path, monkeypatch):
    monkeypatch.setattr(ablations.run, "__defaults__", (tmp_path,))
    ablations.main(["counted"])
    assert len(counted) == 4


def test_noise_of_the_loss_is_the_same_for_all():
    """Two networks are compared on the same times and the same noise."""
    seen = []
    settings = replace(TINY, predicts="eps")

    def network(x_t, t):
        seen.append((x_t, t))
        return x_t

    raw = torch.randint(0, 256, (30, 28, 28), generator=generator_for(0)).to(torch.uint8)
    for _ in range(2):
        ablations._eps_error(recipes.Trained(network, settings, {}), raw)
    assert torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[0][1], seen[1][1])


def test_a_run_that_two_ablations_share_is_made_once(counted, tmp_path, monkeypatch):
    twin = ablations.ABLATIONS["counted"]._replace(variants={"also ten": 10, "thirty": 30})
    monkeypatch.setitem(ablations.ABLATIONS, "twin", twin)
    list(ablations.run("counted", tmp_path))
    calls_before = len(counted)
    rows = list(ablations.run("twin", tmp_path))
    assert counted[calls_before:] == [(30, 0), (30, 1)]
    assert [(r["variant"], r["value"]) for r in rows] == [
        ("also ten", 10),
        ("thirty", 30),
        ("also ten", 11),
        ("thirty", 31),
    ]


def test_unknown_names_are_refused_before_anything_is_run(monkeypatch):
    monkeypatch.setattr(ablations, "run", lambda name: pytest.fail("ran"))
    with pytest.raises(InputError, match="unknown ablation 'nope'"):
        ablations.main(["floors", "nope"])


def test_a_variant_that_is_gone_gives_its_row_to_none(tmp_path, monkeypatch):
    """Not even to one whose settings are None."""
    both = {name: ablations.Ablation(dict, {"new": None}, (0,)) for name in ("one", "two")}
    monkeypatch.setattr(ablations, "ABLATIONS", both)
    ablations.write_record(tmp_path / "one.json", "one", [{"variant": "old", "seed": 0, "x": 1}])
    assert ablations._run_before(dict, None, 0, tmp_path) is None
    ablations.write_record(tmp_path / "one.json", "one", [{"variant": "new", "seed": 0, "x": 1}])
    assert ablations._run_before(dict, None, 0, tmp_path) == {"x": 1}
