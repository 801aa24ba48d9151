"""Training: kills and resumes, the formulas of step and average, and what is refused."""

import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mnistlib import train
from mnistlib.train import Ema, TrainConfig, fit, learning_rate
from mnistlib.types import InputError

SHORT = replace(tiny.CONFIG, steps=12, checkpoint_every=1)


def fitting(config=SHORT, model=None, loss=tiny.cross_entropy, batch_at=tiny.batch_at, **kwargs):
    """Return the generator of a small training."""
    return fit(model or tiny.network(), loss, batch_at, config, **kwargs)


def run_until(step, run):
    """Let a training run until the step with this number, break off, and return that step."""
    for now in run:
        if now.step == step:
            return now
    raise AssertionError(f"the training ended before step {step}")


@pytest.fixture(scope="module")
def uninterrupted():
    """Return the weights, averages included, after a training that nobody disturbs."""
    return tiny.weights(tiny.trained())


# ---- killed and resumed --------------------------------------------------------------------


def killed_at_some_moment(state):
    """Train in another process, resuming; kill it after its next checkpoint, at no set moment."""
    # "-W error" would be too much: the interpreter that dies here has nothing to report.
    command = [sys.executable, tiny.__file__, str(state)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        first = int(process.stdout.readline())
        last = min(first + tiny.CONFIG.checkpoint_every + random.randrange(20), 140)
        for line in process.stdout:
            if int(line) >= last:
                break
        time.sleep(random.random() / 50)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    return first


def test_killed_with_sigkill_and_resumed(tmp_path, uninterrupted):
    """Three kills of one training, with dropout; the end is the same, bit for bit."""
    state = tmp_path / "state.safetensors"
    starts = [killed_at_some_moment(state) for _ in range(3)]
    assert starts[0] == 1
    assert starts == sorted(set(starts)), "a resumed training did not start where it was saved"
    resumed = tiny.trained(state=state, resume=True)
    assert tiny.same(tiny.weights(resumed), uninterrupted)
    left = [p.name for p in tmp_path.iterdir()]
    assert [name for name in left if not name.startswith(".")] == ["state.safetensors"]


@pytest.mark.parametrize("step", range(1, 12))
def test_resumed_after_any_step(tmp_path, step):
    """Loss, learning rate, gradient and weights go on as if nothing had happened.

    The step that was saved comes again, with the weights that it had.
    """
    state = tmp_path / "state.safetensors"
    whole = [(s[:4], tiny.weights(s)) for s in fitting()]
    run_until(step, fitting(state=state))
    resumed = [(s[:4], tiny.weights(s)) for s in fitting(state=state, resume=True)]
    for (numbers, weights), (expected, wanted) in zip(resumed, whole[step - 1 :], strict=True):
        assert numbers == expected
        assert tiny.same(weights, wanted)


def test_resuming_a_finished_training_yields_its_last_step(tmp_path):
    """Killed between the last step and what was to be done with it, nothing is lost."""
    state = tmp_path / "state.safetensors"
    *_, last = fitting(state=state)
    [again] = fitting(state=state, resume=True)
    assert again[:4] == last[:4]
    assert tiny.same(tiny.weights(again), tiny.weights(last))


def test_state_is_saved_every_n_steps_and_at_the_end(tmp_path):
    state = tmp_path / "state.safetensors"
    saved_at, seen = [], b""
    for step in fitting(replace(SHORT, checkpoint_every=5), state=state):
        if state.exists() and state.read_bytes() != seen:
            saved_at.append(step.step)
            seen = state.read_bytes()
    assert saved_at == [5, 10, 12]


def test_checkpoint_every_may_change_on_resume(tmp_path):
    state = tmp_path / "state.safetensors"
    run_until(3, fitting(state=state))
    run = fitting(replace(SHORT, checkpoint_every=100), state=state, resume=True)
    assert next(run).step == 3


@pytest.mark.parametrize(
    "change",
    [{"steps": 13}, {"lr": 0.5}, {"decay": "constant"}, {"seed": 4}, {"ema": 0.5}, {"clip": 2.0}],
    ids=str,
)
def test_resuming_with_other_settings_is_refused(tmp_path, change):
    state = tmp_path / "state.safetensors"
    run_until(3, fitting(state=state))
    before = state.read_bytes()
    [(key, value)] = change.items()
    with pytest.raises(InputError, match=f"was trained with {key}={getattr(SHORT, key)}"):
        next(fitting(replace(SHORT, **change), state=state, resume=True))
    assert getattr(SHORT, key) != value
    assert state.read_bytes() == before


def test_resuming_needs_the_state_of_this_training(tmp_path):
    state = tmp_path / "state.safetensors"
    with pytest.raises(InputError, match="does not exist"):
        next(fitting(state=state, resume=True))
    with pytest.raises(InputError, match="needs the file"):
        next(fitting(resume=True))
    run_until(3, fitting(state=state))
    with pytest.raises(InputError, match="belongs to another model"):
        next(fitting(model=nn.Linear(2, 2), state=state, resume=True))
    with pytest.raises(InputError, match="holds an earlier training; resume it"):
        next(fitting(state=state))
    state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(InputError, match="replace it"):
        next(fitting(state=state, resume=True))


# ---- the formulas --------------------------------------------------------------------------


@given(
    st.integers(1, 500),
    st.integers(1, 500),
    st.integers(0, 600),
    st.sampled_from(["cosine", "constant"]),
)
def test_learning_rate(step, steps, warmup, decay):
    """Against the formula in one line: a ramp times half a cosine over what follows the ramp."""
    step = min(step, steps)
    config = TrainConfig(steps=steps, lr=0.3, warmup=warmup, decay=decay)
    ramp = step / warmup if step < warmup else 1
    rest = max(step - warmup, 0) / max(steps - warmup, 1)
    fall = math.cos(math.pi / 2 * rest) ** 2 if decay == "cosine" else 1
    assert learning_rate(step, config) == pytest.approx(0.3 * ramp * fall, abs=1e-15)


def test_learning_rate_is_what_the_optimiser_uses():
    """Adam's first step moves each weight by the learning rate, whatever the gradient."""
    model = nn.Linear(3, 1, bias=False)
    before = model.weight.detach().clone()
    config = TrainConfig(steps=10, lr=0.5, warmup=10, weight_decay=0, clip=1e9, precision="fp32")
    run = fit(model, lambda m, b: m(b[0]).sum(), lambda *_: (torch.ones(1, 3),), config)
    assert next(run).lr == 0.05
    np.testing.assert_allclose((before - model.weight.detach()).numpy(), 0.05, rtol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_ema_follows_its_formula(decay):
    """Mean = d mean + (1 - d) new with d = min(decay, (1 + n) / (10 + n)), in float64 NumPy."""
    model = tiny.network()
    ema = Ema(model, decay)
    expected = [p.detach().double().numpy() for p in model.parameters()]
    for n in range(1, 40):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        ema.update(model, n)
        d = min(decay, (1 + n) / (10 + n))
        new = [p.detach().double().numpy() for p in model.parameters()]
        expected = [d * a + (1 - d) * b for a, b in zip(expected, new, strict=True)]
    for found, wanted in zip(ema.model.parameters(), expected, strict=True):
        np.testing.assert_allclose(found.numpy(), wanted, atol=1e-5)
    assert not any(p.requires_grad for p in ema.model.parameters())
    assert not ema.model.training


def test_ema_copies_buffers():
    model = tiny.network()
    ema = Ema(model, 0.99)
    model.reference_mean.fill_(3)
    ema.update(model, 1)
    assert torch.equal(ema.model.reference_mean, model.reference_mean)


def test_fit_averages_the_weights_it_trains():
    """The averages that ``fit`` yields are those of the weights that it yields."""
    mean = [p.detach().double() for p in tiny.network().parameters()]
    for step in fitting():
        d = min(SHORT.ema, (1 + step.step) / (10 + step.step))
        mean = [
            d * m + (1 - d) * p.detach().double()
            for m, p in zip(mean, step.model.parameters(), strict=True)
        ]
    for found, wanted in zip(step.ema.parameters(), mean, strict=True):
        torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("clip", "norm_left"), [(0.1, 0.1), (100.0, 12.0)])
def test_gradient_is_clipped_to_the_norm(monkeypatch, clip, norm_left):
    """A gradient of norm 12 is scaled down to the limit, or left alone below it."""
    seen = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self: (seen.append(self.param_groups[0]["params"][0].grad.norm()), step(self)),
    )
    model = nn.Linear(9, 1, bias=False)
    config = TrainConfig(steps=1, clip=clip, precision="fp32")
    run = fit(model, lambda m, b: m(b[0]).sum(), lambda *_: (torch.full((1, 9), 4.0),), config)
    assert next(run).grad_norm == pytest.approx(12.0)
    assert float(seen[0]) == pytest.approx(norm_left, rel=1e-4)


def test_training_lowers_the_loss():
    losses = [step.loss for step in fitting(tiny.CONFIG)]
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])


def test_seed_is_all_that_is_random():
    """Same seed: same numbers; another seed: others, although the model starts the same."""
    first, again, other = (
        [step.loss for step in fitting(replace(SHORT, seed=seed))] for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_dropout_differs_between_steps():
    """With the same weights and the same batch, two steps drop different features."""
    seen = []

    def loss(model, batch):
        seen.append(model[0](batch[0]))
        return model(batch[0]).mean()

    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(99, 1))
    config = TrainConfig(steps=2, precision="fp32")
    list(fit(model, loss, lambda *_: (torch.ones(1, 99),), config))
    assert not torch.equal(*seen)


# ---- manners -------------------------------------------------------------------------------


def test_callers_random_state_is_untouched(tmp_path):
    model = tiny.network()
    torch.manual_seed(5)
    undisturbed = torch.rand(4)
    torch.manual_seed(5)
    state, drawn = torch.get_rng_state(), []
    for _ in fitting(model=model, state=tmp_path / "state"):
        assert torch.equal(torch.get_rng_state(), state)
    for step in fitting(model=tiny.network(seed=torch.initial_seed()), state=tmp_path / "other"):
        drawn.append(step.loss)
        torch.rand(step.step)  # what the caller draws does not change the training either
    torch.manual_seed(5)
    assert torch.equal(torch.rand(4), undisturbed)
    assert drawn == [s.loss for s in fitting(model=tiny.network(seed=5))]


def test_breaking_out_leaves_a_usable_state(tmp_path):
    state = tmp_path / "state.safetensors"
    run = fitting(replace(SHORT, checkpoint_every=4), state=state)
    for step in run:
        if step.step == 6:
            break
    run.close()
    assert next(fitting(replace(SHORT, checkpoint_every=4), state=state, resume=True)).step == 4


def test_models_come_in_their_modes():
    """What is trained is in training mode, what is averaged in evaluation mode."""
    for step in fitting(model=tiny.network().eval()):
        assert step.model.training
        assert not step.ema.training


def test_plain_tuples_are_batches_too():
    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]).float(), batch[1])

    run = fitting(loss=loss, batch_at=lambda seed, step: tuple(tiny.batch_at(seed, step)))
    assert [step.loss for step in run] == [step.loss for step in fitting()]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "auto"])
def test_precision(precision):
    """Bf16 computes in bf16 and keeps its weights in float32; auto takes it where it is native."""
    seen = []

    def loss(model, batch):
        out = model(batch.images)
        seen.append(out.dtype)
        return nn.functional.cross_entropy(out.float(), batch.labels)

    *_, last = fitting(replace(SHORT, precision=precision), loss=loss)
    native = train._has_native_bf16(torch.device("cpu"))
    computed = torch.bfloat16 if precision == "bf16" or (precision == "auto" and native) else None
    assert set(seen) == {computed or torch.float32}
    assert {p.dtype for p in last.model.parameters()} == {torch.float32}
    assert math.isfinite(last.loss)


@pytest.mark.parametrize("flags", [{}, {"avx512_bf16": True}, {"amx_bf16": True}, {"avx2": True}])
def test_native_bf16_is_asked_of_the_processor(monkeypatch, flags):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    wanted = any("bf16" in flag for flag in flags)
    assert train._has_native_bf16(torch.device("cpu")) == wanted


def test_native_bf16_with_an_older_torch(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not train._has_native_bf16(torch.device("cpu"))


# ---- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_bad_batch_is_refused(tmp_path, value):
    """One line names the step and the last good state; the state on disk stays good."""
    state = tmp_path / "state.safetensors"

    def bad_at_seventh(seed, step):
        batch = tiny.batch_at(seed, step)
        if step == 6:
            batch.images[1, 0, 2, 3] = value
        return batch

    run = fitting(batch_at=bad_at_seventh, state=state)
    with pytest.raises(InputError) as refusal:
        list(run)
    assert str(refusal.value) == (
        "the batch of step 7 holds values that are not finite; mend the data; "
        f"the last saved state is in {state}"
    )
    resumed = run_until(12, fitting(state=state, resume=True))
    assert tiny.same(tiny.weights(resumed), tiny.weights(run_until(12, fitting())))


def test_diverging_loss_is_refused():
    factors = iter([1, 1, 1, 1, math.inf])
    run = fitting(loss=lambda *given: tiny.cross_entropy(*given) * next(factors))
    with pytest.raises(InputError, match=r"^the loss of step 5 .*not finite; lower lr"):
        list(run)


def test_gradient_that_is_not_finite_is_refused_before_it_spoils_the_weights():
    """At 0, the root is finite and its slope is not."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    config = TrainConfig(steps=1, precision="fp32")
    run = fit(model, lambda m, b: m(b[0]).sqrt().sum(), lambda *_: (torch.ones(1, 1),), config)
    with pytest.raises(InputError, match="step 1 or its gradient is not finite"):
        next(run)
    assert model.weight.item() == 0


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"lr": 0.0},
        {"lr": math.nan},
        {"clip": -1.0},
        {"ema": 1.0},
        {"ema": -0.1},
        {"weight_decay": -1.0},
        {"checkpoint_every": 0},
        {"decay": "linear"},
        {"precision": "fp16"},
    ],
    ids=str,
)
def test_settings_that_cannot_be_used(tmp_path, change):
    state = tmp_path / "state.safetensors"
    with pytest.raises(InputError, match=next(iter(change))):
        next(fitting(replace(SHORT, **change), state=state))
    assert not state.exists()


@pytest.mark.parametrize("name", ["warmup", "seed", "weight_decay"])
def test_negative_settings_are_refused(name):
    with pytest.raises(InputError, match=f"{name} must not be negative, got -1"):
        next(fitting(replace(SHORT, **{name: -1})))


def test_training_on_the_cpu_leaves_the_gpu_alone(monkeypatch):
    """Its random state is the caller's, and nobody puts it back."""
    run = fitting()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeded the GPU"))
    next(run)
