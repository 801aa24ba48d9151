"""How good are samples for how many calls of the network? Every sampler, on every time grid."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from mnistlib import checkpoints, plots, recipes
from mnistlib.metrics import feature_statistics, features_of, frechet_distance
from mnistlib.samplers import SAMPLERS, evaluations
from mnistlib.schedules import GRIDS

__all__ = [
    "DRAWINGS",
    "FINAL",
    "SWEEP",
    "Choice",
    "Drawing",
    "Plan",
    "best_of",
    "curves",
    "drawing_run",
    "final_run",
    "final_table",
    "pace_run",
    "table",
]

CHUNK = 500


class Plan(NamedTuple):
    """A way to draw: keys of ``SAMPLERS`` and ``GRIDS``, a budget of network calls, a number."""

    sampler: str
    grid: str
    budget: int
    samples: int = 1000

    @property
    def steps(self) -> int:
        """The most steps that the budget allows."""
        fits = (n for n in range(self.budget, 0, -1) if self.calls(n) <= self.budget)
        return next(fits)

    def calls(self, steps: int) -> int:
        """Network evaluations of so many steps."""
        return evaluations(self.sampler, steps)


def _sweep() -> dict[str, Plan]:
    """The short budgets for all that could be short; long ones where they say something."""
    pairs = [("ddpm", "uniform"), ("ddim", "leading")]
    grids = ("uniform", "quadratic", "log_snr")
    pairs += [(sampler, grid) for sampler in ("ddim", "heun", "dpm_solver_pp") for grid in grids]
    plans = [Plan(*pair, budget) for budget in (5, 10, 15, 20) for pair in pairs]
    even = [pair for pair in pairs if pair[1] == "uniform" and pair[0] != "heun"]
    plans += [Plan(*pair, budget) for budget in (50, 100) for pair in even]
    return {f"{p.sampler}, {p.grid}, {p.budget}": p for p in plans}


SWEEP = _sweep()
REFERENCE = Plan("ddpm", "uniform", 250, samples=5000)
SOLVERS = tuple(name for name in SAMPLERS if name != "ddpm")


class Choice(NamedTuple):
    """The best of these samplers at this budget."""

    budget: int
    among: tuple[str, ...] = tuple(SAMPLERS)


FINAL: dict[str, Choice | None] = {f"best of {n}": Choice(n) for n in (10, 15, 20, 50, 100)}
FINAL |= {f"best of {n} without fresh noise": Choice(n, SOLVERS) for n in (10, 15, 20, 50)}
FINAL["reference"] = None


def best_of(rows: list[dict[str, Any]], choice: Choice, samples: int = 5000) -> Plan:
    """The plan of the smallest distance among the rows of a sweep that the choice allows."""
    allowed = (r for r in rows if r["budget"] == choice.budget and r["sampler"] in choice.among)
    row = min(allowed, key=lambda r: r["frechet"])
    return Plan(row["sampler"], row["grid"], choice.budget, samples)


def final_run(choice: Choice | None, seed: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """More samples from the best plan of a sweep, or from the slow reference (None).

    Image i begins with the same noise in all of them.
    """
    return pace_run(REFERENCE if choice is None else best_of(rows, choice), seed)


def pace_run(plan: Plan, seed: int) -> dict[str, Any]:
    """The Frechet distance of samples of the shipped ``ddpm`` to the 60,000 training digits."""
    trained, eye = (recipes.train_or_load(name, "read") for name in ("ddpm", "digit_features"))
    features = _features(plan, seed, trained, eye)
    reference = (eye.model.reference_mean, eye.model.reference_cov)
    distance = frechet_distance(reference, feature_statistics(features))
    return plan._asdict() | {
        "steps": plan.steps,
        "evaluations": plan.calls(plan.steps),
        "frechet": distance,
        "times_floor": distance / eye.record["metrics"]["floor"],
        "weights": trained.record["sha256"],
    }


def _features(plan: Plan, seed: int, trained: recipes.Trained, eye: recipes.Trained) -> Tensor:
    """Features (N, D) of the samples of a plan, kept in ``runs/sampling`` every 500 images.

    A cut run goes on there; the file's name holds all that its samples depend on.
    """
    how = {"sampler": plan.sampler, "grid": plan.grid, "seed": seed}
    weights = "-".join(each.record["sha256"][:8] for each in (trained, eye))
    name = f"{plan.sampler}-{plan.grid}-{plan.budget}-{seed}-{weights}"
    path = Path("runs") / "sampling" / f"{name}.safetensors"
    parts = [checkpoints.read_tensors(path)[0]["features"]] if path.is_file() else []
    while (done := sum(map(len, parts))) < plan.samples:
        numbers = torch.arange(done, min(done + CHUNK, plan.samples)).split(100)
        images = [recipes.sample(trained, n.tolist(), plan.steps, **how) for n in numbers]
        parts.append(features_of(eye.model, torch.cat(images)))
        checkpoints.write_tensors(path, {"features": torch.cat(parts)}, how)
    return torch.cat(parts)[: plan.samples]


# ---- the results, as one table and one plot ------------------------------------------------


def table(rows: list[dict[str, Any]]) -> str:
    """Distances in multiples of the floor: a line a sampler and grid, a column a budget."""
    budgets = sorted({r["budget"] for r in rows})
    lines = [f"{'network calls, at most':26}" + "".join(f"{n:>8}" for n in budgets)]
    for (sampler, grid), found in _by_pair(rows).items():
        cells = [f"{_short(found[n]):>8}" if n in found else " " * 8 for n in budgets]
        lines.append(f"{sampler + ', ' + grid:26}" + "".join(cells).rstrip())
    return "\n".join(lines)


def final_table(rows: list[dict[str, Any]]) -> str:
    """A line a plan that was drawn from again, a column a seed.

    Distances stand in multiples of the floor, and of the slow reference with the same noises.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for r in rows:
        found.setdefault(r["variant"], []).append(r)
    slow = [r["frechet"] for r in found["reference"]]
    width = max(17, 7 * len(slow))
    lines = [f"{'':24}{'calls':>6}{'x the floor':>{width}}{'x the reference':>{width}}"]
    for seeds in found.values():
        who = f"{seeds[0]['sampler']}, {seeds[0]['grid']}"
        floors = "".join(f"{r['times_floor']:7.1f}" for r in seeds)
        shares = "".join(f"{r['frechet'] / d:7.2f}" for r, d in zip(seeds, slow, strict=True))
        lines.append(f"{who:24}{seeds[0]['evaluations']:>6}{floors:>{width}}{shares:>{width}}")
    return "\n".join(lines)


class Drawing(NamedTuple):
    """What is drawn against the clock: so many pictures, by which shipped model, told what."""

    model: str
    pictures: int
    scale: float
    told: dict[str, Any]


DRAWINGS = {
    "not guided": Drawing("latent", 64, 1.0, {}),
    "guided": Drawing("latent", 64, 1.5, {}),
    "a prompt": Drawing("text_to_image", 1, 4.0, {"prompts": ["a red four left of a blue two"]}),
}


def drawing_run(drawing: Drawing, seed: int) -> dict[str, Any]:
    """Seconds in which a shipped model draws and decodes in 25 steps, on two threads.

    The weights are loaded and the network is warm when the clock starts; the fastest of three.
    """
    threads, found = torch.get_num_threads(), []
    torch.set_num_threads(2)
    trained, (_, count, scale, told) = recipes.find(drawing.model), drawing
    trained.model.to(memory_format=torch.channels_last)
    for _ in range(4):  # the first is for warming up
        start = time.perf_counter()
        recipes.sample(trained, range(count), 25, seed=seed, scale=scale, **told)
        found.append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    result = {"model": drawing.model, "scale": scale, "pictures": count, "steps": 25}
    return result | {"fastest": round(min(found[1:]), 2), "weights": trained.record["sha256"]}


def curves(rows: list[dict[str, Any]]) -> Figure:
    """The distances of ``table`` against the network calls that were made, both logarithmic."""
    fig, ax = plots.figure(height=3.4)
    for (sampler, grid), found in _by_pair(rows).items():
        x, y = ([found[n][key] for n in sorted(found)] for key in ("evaluations", "times_floor"))
        style = {"color": _COLOURS[sampler], "ls": _DASHES[grid], "marker": "."}
        ax.loglog(x, y, label=f"{sampler}, {grid}", **style)
    budgets = sorted({r["budget"] for r in rows})
    ax.set_xticks(budgets, map(str, budgets))
    ax.minorticks_off()
    ax.set(xlabel="network evaluations", ylabel="distance / real floor")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, handlelength=4)
    return fig


_COLOURS = dict(zip(SAMPLERS, plots.PALETTE, strict=False))
_DASHES = dict(zip(GRIDS, ("-", (0, (5, 1, 1, 1, 1, 1)), "--", ":"), strict=True))


def _by_pair(rows: list[dict[str, Any]]) -> dict[tuple[str, str], dict[int, dict[str, Any]]]:
    """(sampler, grid) -> budget -> row."""
    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for r in rows:
        found.setdefault((r["sampler"], r["grid"]), {})[r["budget"]] = r
    return found


def _short(row: dict[str, Any]) -> str:
    value = row["times_floor"]
    return f"{value:.1f}" if value < 1000 else f"{value:,.0f}"
