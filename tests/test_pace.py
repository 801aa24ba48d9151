"""Quality against calls: the plans, the samples behind a row, cut runs, and what is shown."""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mnistlib import ablations, checkpoints, pace, recipes
from mnistlib.metrics import feature_statistics, features_of, frechet_distance
from mnistlib.pace import Choice, Plan

ROOT = Path(__file__).resolve().parent.parent
RECORDS = [ablations.RECORDS / f"{name}.json" for name in ("sampling", "sampling_final")]


def row(sampler, grid, budget, frechet, **more):
    """Return a row as the sweep writes it."""
    plan = Plan(sampler, grid, budget)
    found = plan._asdict() | {"evaluations": plan.calls(plan.steps), "frechet": frechet}
    return found | {"times_floor": 10 * frechet} | more


SOME = [
    row("ddim", "uniform", 5, 3.0),
    row("ddim", "uniform", 10, 2.0),
    row("heun", "log_snr", 5, 4.0),
    row("heun", "log_snr", 10, 1.0),
    row("heun", "uniform", 10, 5e4),
]


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """Work in an empty folder with networks that train in a moment; return them."""
    made = {}
    for name in ("digit_features", "ddpm"):
        recipe = recipes.RECIPES[name]
        torch.manual_seed(0)
        record = {"sha256": name * 4, "metrics": {"floor": 0.5}}
        made[name] = recipes.Trained(recipe.network(recipe.smoke).eval(), recipe.smoke, record)
    with torch.no_grad():
        for p in made["ddpm"].model.parameters():
            p.add_(0.05 * torch.randn(p.shape))  # an untrained one answers zero
    eye = made["digit_features"].model
    eye.reference_cov.copy_(torch.eye(len(eye.reference_mean)))
    monkeypatch.setattr(recipes, "train_or_load", lambda name, profile: made[name])
    monkeypatch.setattr(pace, "CHUNK", 3)
    monkeypatch.chdir(tmp_path)
    return made


# ---- plans ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("budget", "steps", "calls"), [(1, 1, 1), (5, 3, 5), (10, 5, 9)])
def test_a_plan_makes_the_most_of_its_budget(budget, steps, calls):
    heun, other = Plan("heun", "log_snr", budget), Plan("ddim", "uniform", budget)
    assert (heun.steps, heun.calls(heun.steps)) == (steps, calls)
    assert (other.steps, other.calls(other.steps)) == (budget, budget)


def test_the_sweep_tries_every_sampler_and_every_grid():
    plans = pace.SWEEP.values()
    assert {p.sampler for p in plans} == set(pace.SAMPLERS)
    assert {p.grid for p in plans} == set(pace.GRIDS)
    assert len({*plans}) == len(pace.SWEEP)


def test_the_best_of_a_budget_is_drawn_again():
    assert pace.best_of(SOME, Choice(5)) == Plan("ddim", "uniform", 5, 5000)
    assert pace.best_of(SOME, Choice(10), 70) == Plan("heun", "log_snr", 10, 70)
    assert pace.best_of(SOME, Choice(10, ("ddpm", "ddim"))) == Plan("ddim", "uniform", 10, 5000)
    assert pace.FINAL["best of 50 without fresh noise"].among == ("ddim", "heun", "dpm_solver_pp")


# ---- rows ----------------------------------------------------------------------------------


def test_a_row_is_the_distance_of_the_samples_of_its_plan(quick):
    found = pace.pace_run(Plan("dpm_solver_pp", "quadratic", 3, samples=8), seed=2)
    trained, eye = quick["ddpm"], quick["digit_features"].model
    how = {"seed": 2, "sampler": "dpm_solver_pp", "grid": "quadratic"}
    images = recipes.sample_in_batches(trained, 8, 3, **how)
    distance = frechet_distance(
        (eye.reference_mean, eye.reference_cov), feature_statistics(features_of(eye, images))
    )
    assert found["frechet"] == pytest.approx(distance, rel=1e-4)
    assert found["times_floor"] == pytest.approx(distance / 0.5, rel=1e-4)
    assert (found["steps"], found["evaluations"], found["samples"]) == (3, 3, 8)
    assert found["weights"] == trained.record["sha256"]


def test_a_cut_run_goes_on_where_it_stopped(quick, monkeypatch):
    """Cut after two chunks of three; the rest is drawn, and the row is that of a run left alone."""
    plan, drawn, sample = Plan("ddim", "uniform", 2, samples=8), [], recipes.sample

    def cut(trained, numbers, steps, **how):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(numbers)
        return sample(trained, numbers, steps, **how)

    monkeypatch.setattr(recipes, "sample", cut)
    with pytest.raises(KeyboardInterrupt):
        pace.pace_run(plan, seed=0)
    (path,) = (Path("runs") / "sampling").iterdir()
    assert len(checkpoints.read_tensors(path)[0]["features"]) == 6
    drawn.insert(0, None)
    monkeypatch.setattr(recipes, "sample", lambda *a, **k: drawn.append(a[1]) or sample(*a, **k))
    resumed = pace.pace_run(plan, seed=0)
    assert drawn[1:] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    path.unlink()
    assert resumed["frechet"] == pytest.approx(pace.pace_run(plan, seed=0)["frechet"], rel=1e-5)


def test_samples_of_other_weights_or_seeds_are_not_taken_over(quick):
    plan = Plan("ddim", "uniform", 2, samples=4)
    first = pace.pace_run(plan, seed=0)["frechet"]
    assert pace.pace_run(plan, seed=1)["frechet"] != first
    quick["ddpm"].record["sha256"] = "other" * 4
    with torch.no_grad():
        list(quick["ddpm"].model.parameters())[-1].add_(1)
    assert pace.pace_run(plan, seed=0)["frechet"] != first
    assert len(list((Path("runs") / "sampling").iterdir())) == 3


def test_finals_draw_from_the_best_and_from_the_reference(monkeypatch):
    asked = []
    monkeypatch.setattr(pace, "pace_run", lambda plan, seed: asked.append((plan, seed)) or {})
    pace.final_run(Choice(10), 1, SOME)
    pace.final_run(None, 1, SOME)
    assert asked == [(Plan("heun", "log_snr", 10, 5000), 1), (pace.REFERENCE, 1)]
    assert pace.REFERENCE[:3] == ("ddpm", "uniform", 250)


# ---- what is shown -------------------------------------------------------------------------


def test_table_has_a_line_a_pair_and_a_column_a_budget():
    lines = pace.table(SOME).splitlines()
    assert lines[0].split()[-2:] == ["5", "10"]
    assert [line.split() for line in lines[1:]] == [
        ["ddim,", "uniform", "30.0", "20.0"],
        ["heun,", "log_snr", "40.0", "10.0"],
        ["heun,", "uniform", "500,000"],
    ]
    assert len({len(line) for line in lines}) == 1, "columns stand below each other"


def test_final_table_compares_with_the_reference_of_the_same_seed():
    rows = [
        row("heun", "log_snr", 10, 1.5, variant="best of 10"),
        row("ddpm", "uniform", 250, 1.2, variant="reference"),
        row("heun", "log_snr", 10, 1.8, variant="best of 10"),
        row("ddpm", "uniform", 250, 0.9, variant="reference"),
    ]
    lines = pace.final_table(rows).splitlines()
    assert lines[1].split() == ["heun,", "log_snr", "9", "15.0", "18.0", "1.25", "2.00"]
    assert lines[2].split() == ["ddpm,", "uniform", "250", "12.0", "9.0", "1.00", "1.00"]
    assert len({len(line) for line in lines}) == 1, "columns stand below each other"


def test_curves_draw_every_row():
    (ax,) = pace.curves(SOME).axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert drawn["ddim, uniform"] == [[5, 30], [10, 20]]
    assert drawn["heun, log_snr"] == [[5, 40], [9, 10]]
    assert len(drawn) == 3


# ---- the stored records --------------------------------------------------------------------


@pytest.mark.parametrize("path", [p for p in RECORDS if p.is_file()], ids=lambda p: p.stem)
def test_records_were_made_with_the_shipped_weights(path):
    shipped = recipes.train_or_load("ddpm", "read").record["sha256"]
    rows = json.loads(path.read_text())["rows"]
    assert {r["weights"] for r in rows} == {shipped}, f"remove {path.name} and make it again"
    for r in rows:
        plan = Plan(r["sampler"], r["grid"], r["budget"], r["samples"])
        assert (r["steps"], r["evaluations"]) == (plan.steps, plan.calls(plan.steps))


def test_benchmark_runs_both_and_shows_them(tmp_path, monkeypatch, capsys):
    rows = {
        "sampling": SOME,
        "sampling_final": [row("ddpm", "uniform", 250, 1.2, variant="reference")],
    }
    asked = []
    monkeypatch.setattr(ablations, "run", lambda name: asked.append(name) or [])
    monkeypatch.setattr(ablations, "read_record", lambda name: {"rows": rows[name]})
    monkeypatch.setattr(sys, "argv", ["sampling.py"])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "benchmarks" / "sampling.py"), run_name="__main__")
    assert asked == ["sampling", "sampling_final"]
    assert "heun, log_snr" in capsys.readouterr().out
    assert (tmp_path / "runs/sampling/sampling.png").stat().st_size > 1000


def test_drawing_is_timed_warm_and_gives_the_threads_back(monkeypatch):
    """The shortest of three drawings after the first, by a clock that is told."""
    trained = SimpleNamespace(model=torch.nn.Identity(), record={"sha256": "x"})
    ticks = iter([0, 1, 10, 14, 20, 23, 30, 35])  # 1 s, not counted, then 4, 3 and 5
    asked, threads = [], torch.get_num_threads()
    monkeypatch.setattr(pace.recipes, "find", {"latent": trained}.get)

    def draw(_, numbers, steps, **how):
        asked.append((numbers, steps, how, torch.get_num_threads()))

    monkeypatch.setattr(pace.recipes, "sample", draw)
    monkeypatch.setattr(pace.time, "perf_counter", lambda: next(ticks))
    row = pace.drawing_run(pace.Drawing("latent", 3, 1.5, {"labels": 7}), 0)
    assert row == {
        "model": "latent", "pictures": 3, "scale": 1.5, "steps": 25, "fastest": 3, "weights": "x"
    }  # fmt: skip
    assert asked == [(range(3), 25, {"seed": 0, "scale": 1.5, "labels": 7}, 2)] * 4
    assert torch.get_num_threads() == threads
