"""Models that read: what they are told, guidance, and that each image depends on its own prompt."""

from functools import cache

import pytest
import tiny
import torch

from mnistlib import latent, recipes
from mnistlib.guidance import bind
from mnistlib.objective import as_eps
from mnistlib.schedules import cosine
from mnistlib.trained import Trained, denoising, sample, sample_in_batches, steered
from mnistlib.types import InputError

X, T = tiny.numbers(3, 4, 8, 8, seed=1), torch.tensor([20, 500, 900])
PROMPTS = ["a red seven", "白底上一个蓝色的3", "a green five next to an orange one on purple"]


@cache
def network(name):
    """Return the smoke network of a recipe with weights that do something."""
    torch.manual_seed(0)
    settings = recipes.settings_of(name, "smoke")
    return tiny.alive(recipes.RECIPES[name].network(settings)).requires_grad_(False)


def model_of(name="text_to_image"):
    """Return an untrained model; where it lives in latents, with an untrained autoencoder."""
    vae = {"text_to_image": "rgb_vae", "latent": "vae"}.get(name)
    settings = recipes.settings_of(name, "smoke")
    return Trained(network(name), settings, {}, None if vae is None else network(vae))


# ---- what a denoiser is told ---------------------------------------------------------------


def test_at_scale_one_the_model_itself_answers():
    """Bit for bit, with one evaluation of the network; against the formula for its noise too."""
    trained, calls = model_of(), []
    told = bind(trained.model, trained.model.of_prompts(PROMPTS))
    hook = trained.model.unet.register_forward_hook(lambda *_: calls.append(1))
    found = trained.prompted(PROMPTS)(X, T)
    hook.remove()
    assert len(calls) == 1
    assert torch.equal(found, as_eps(told, cosine(), "v")(X, T))
    a = cosine().alpha_bar[T].view(-1, 1, 1, 1)
    by_hand = (1 - a).sqrt() * X + a.sqrt() * told(X, T)
    torch.testing.assert_close(found, by_hand.float(), rtol=1e-4, atol=1e-5)
    assert not found.requires_grad


def test_at_scale_zero_the_prompts_are_not_heard():
    """Bit for bit the empty prompt, or the negative one; guidance leads away from the same."""
    trained = model_of()
    red = trained.prompted(PROMPTS)(X, T)
    for negative in ("", "a thick blue 4"):
        other = trained.prompted([negative])(X, T)
        assert float((red - other).abs().amax((1, 2, 3)).min()) > 0.01
        assert torch.equal(trained.prompted(PROMPTS, 0.0, negative)(X, T), other)
        away = trained.prompted(PROMPTS, 3.0, negative)(X, T)
        torch.testing.assert_close(away, other + 3 * (red - other), rtol=1e-4, atol=1e-4)


def test_without_prompts_the_empty_one_is_told():
    trained = model_of()
    found = steered(trained, range(3))(X, T)
    assert torch.equal(found, trained.prompted([""])(X, T))
    torch.testing.assert_close(found, trained.denoise(X, T), rtol=1e-4, atol=1e-5)


def test_one_prompt_serves_all_images():
    trained, how = model_of(), {"scale": 2.0, "negative": "blue"}
    one = steered(trained, range(3), prompts=PROMPTS[:1], **how)(X, T)
    each = steered(trained, range(3), prompts=PROMPTS[:1] * 3, **how)(X, T)
    torch.testing.assert_close(one, each, rtol=1e-4, atol=1e-5)
    alone = trained.prompted(PROMPTS[:1], 2.0, "blue")(X, T)
    assert torch.equal(one, alone)


def test_only_what_reads_says_so():
    names = ("text_to_image", "latent", "ddpm_class", "ddpm", "vae")
    assert [name for name in names if model_of(name).reads] == ["text_to_image"]


# ---- pictures ------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_an_image_depends_on_seed_number_and_its_prompt_alone(eta):
    """Whatever the batch holds besides, longer prompts among it: equal up to rounding."""
    trained, prompts = model_of(), [*PROMPTS, "", "two digits"]
    how = {"seed": 4, "eta": eta, "scale": 2.0, "negative": "blue"}
    images = sample_in_batches(trained, 5, 3, prompts=prompts, **how)
    assert images.shape == (5, 3, 32, 32)
    for batch_size in (1, 2):
        again = sample_in_batches(trained, 5, 3, prompts=prompts, batch_size=batch_size, **how)
        torch.testing.assert_close(again, images, rtol=0, atol=1e-4)
    others = ["a thick white 8", PROMPTS[1], "", "a thin 1", "a 2"]
    changed = sample_in_batches(trained, 5, 3, prompts=others, **how)
    torch.testing.assert_close(changed[1], images[1], rtol=0, atol=1e-4)
    assert float((changed - images)[[0, 2, 3, 4]].abs().amax((1, 2, 3)).min()) > 0.01
    elsewhere = sample(trained, [3, 1], 3, prompts=["", PROMPTS[1]], **how)
    torch.testing.assert_close(elsewhere, images[[3, 1]], rtol=0, atol=1e-4)
    seeds = sample_in_batches(trained, 5, 3, prompts=prompts, **how | {"seed": 5})
    assert float((seeds - images).abs().amax((1, 2, 3)).min()) > 0.01


def test_samples_are_decoded_latents():
    trained = model_of()
    *states, last = denoising(trained, range(2), 4, prompts=PROMPTS[:2])
    assert (len(states), last.x_t.shape) == (3, (2, 4, 8, 8))
    images = sample(trained, range(2), 4, prompts=PROMPTS[:2])
    assert torch.equal(images, latent.decode(trained.vae, last.x_t))


# ---- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "told", "reason"),
    [
        ("latent", {"prompts": ["a red seven"]}, "reads no prompts; name one that does"),
        ("latent", {"negative": "blue"}, "reads no prompts; name one that does"),
        ("ddpm", {"prompts": ["a red seven"]}, "reads no prompts; name one that does"),
        ("ddpm", {"scale": 2.0}, "nothing that guidance could stress; leave scale out"),
        ("ddpm", {"labels": torch.tensor([1, 2, 3])}, "knows no classes; leave labels out"),
        ("text_to_image", {"labels": torch.tensor([1, 2, 3])}, "knows no classes; leave labels"),
        ("text_to_image", {"prompts": ["xyz"]}, "holds no word that this model knows"),
        ("text_to_image", {"negative": "xyz"}, "holds no word that this model knows"),
        ("text_to_image", {"prompts": "a red seven"}, r"give a list of prompts, such as \["),
        ("text_to_image", {"prompts": ["a " * 64]}, "a prompt may hold 63 words"),
    ],
)
def test_what_a_model_cannot_be_told_is_refused(name, told, reason):
    with pytest.raises(InputError, match=reason) as refusal:
        steered(model_of(name), range(3), **told)
    assert "\n" not in str(refusal.value)


def test_prompts_must_be_one_or_as_many_as_images():
    with pytest.raises(InputError, match="give one row, or 3"):
        sample(model_of(), range(3), 2, prompts=PROMPTS[:2])
    for prompts in (PROMPTS[:2], PROMPTS * 2, "a 7"):
        with pytest.raises(InputError, match="give a list of 3 prompts, one for each image"):
            sample_in_batches(model_of(), 3, 2, prompts=prompts)
