"""The training on captions: what it is shown and told, its judge, its file and its resumption."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny
import torch
from torch.nn import functional as F

from mnistlib import checkpoints, recipes
from mnistlib.captions import ATTRIBUTES, parse
from mnistlib.grammar import LANGUAGES, texts
from mnistlib.obedience import KINDS
from mnistlib.prompt_jobs import SHOWN, encoded, judge_prompts, prompt_job, text_to_image
from mnistlib.readers import agreement, read
from mnistlib.scenes import HELD_OUT_INKS, HELD_OUT_PAIRS, draw_scenes
from mnistlib.schedules import cosine
from mnistlib.text import vocabulary_of
from mnistlib.trained import Trained
from mnistlib.types import InputError

WORDS = dict(enumerate(vocabulary_of(texts()), 2))


def settings_of(**changes):
    """Return the settings of a training of a moment."""
    return recipes.settings_of("text_to_image", "smoke", {k: str(v) for k, v in changes.items()})


def job_of(**changes):
    """Return the loss and the batches of a training whose latents are the pictures."""
    return prompt_job(settings_of(**changes), tiny.painting()[1], tiny.Clear())


def captions_of(batch):
    """Return what a batch says, in words again; commas and hyphens are lost."""
    for ids, mask in zip(batch.ids.tolist(), batch.mask.tolist(), strict=True):
        words = [WORDS[i] for i, told in zip(ids[1:], mask[1:], strict=True) if told]
        yield (" " if "".join(words).isascii() else "").join(words)


# ---- what is shown and told ----------------------------------------------------------------


def test_pictures_are_what_their_captions_say():
    """Words from the numbers, and the scene from the pixels."""
    _, batch_at = job_of(scenes=64, batch_size=64, label_dropout=0)
    batch, eye = batch_at(0, 0), recipes.find("digit_features").model
    right = 0
    for picture, caption in zip(batch.x_0, captions_of(batch), strict=True):
        named = parse(caption)
        [seen] = read(picture[None], eye, len(named.glyphs))
        right += False not in agreement(named, seen).values()
    assert right >= 62
    assert len(batch.x_0.unique(dim=0)) == 64


def test_each_epoch_shows_every_scene_once():
    """At other times, with other noise; the same batch is the same again."""
    _, batch_at = job_of(scenes=16, batch_size=16)
    first, second, again = batch_at(0, 0), batch_at(0, 1), batch_at(0, 1)
    for batch in (first, second):
        order = torch.cdist(batch.x_0.flatten(1), first.x_0.flatten(1)).argmin(1)
        assert sorted(order.tolist()) == list(range(16))
    assert not torch.equal(first.t, second.t)
    assert not torch.isclose(first.eps, second.eps).flatten(1).all(1).any()
    assert all(torch.equal(a, b) for a, b in zip(second, again, strict=True))


def test_a_scene_is_described_anew_each_time():
    """One scene alone, 16 times a batch: other words at each step, and with each seed."""
    _, batch_at = job_of(scenes=1, batch_size=16, label_dropout=0)
    said = [{*captions_of(batch_at(*of))} for of in ((0, 0), (0, 1), (1, 0))]
    assert all(len(captions) > 12 for captions in said)
    for other in said[1:]:
        assert len(said[0] & other) < 5


def left_first(batch):
    """Return the share of captions with places that mention the left digit first."""
    said = [(text, parse(text)) for text in captions_of(batch)]
    placed = [(text, named.glyphs) for text, named in said if named.placed]
    placed = [(text, a, b) for text, (a, b) in placed if len({a.ink, b.ink, None}) == 3]
    order = [where(text, a.ink) < where(text, b.ink) for text, a, b in placed]
    return sum(order) / len(order)


def where(text, ink):
    """Return where the name of an ink stands in a caption."""
    return min(text.find(n) % 1000 for way in LANGUAGES.values() for n in way.ink[ink])


def test_the_lessons_begin_with_the_left_digit_first():
    """All captions at first, half as many of the others half-way, and none is held to it later."""
    _, batch_at = job_of(scenes=40, batch_size=400, two=1, label_dropout=0, in_order=10)
    begin, middle, later = (left_first(batch_at(0, step)) for step in (0, 5, 10))
    assert begin == 1
    assert 0.3 < later < 0.7
    assert 0.3 < (1 - middle) / (1 - later) < 0.7


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_strokes_and_slants_are_named_as_often_as_asked(share):
    _, batch_at = job_of(scenes=40, batch_size=200, label_dropout=0, fine=share)
    named = [glyph for text in captions_of(batch_at(0, 0)) for glyph in parse(text).glyphs]
    said = [sum(getattr(g, of) is not None for g in named) for of in ("stroke", "slant")]
    assert max(said) == 0 if share == 0 else min(said) > 0.4 * len(named)


@pytest.mark.parametrize("rate", [0.1, 0.6])
def test_captions_are_left_out_at_the_rate(rate):
    _, batch_at = job_of(scenes=4, batch_size=500, label_dropout=rate)
    batch = torch.cat([batch_at(0, step).mask.sum(1) for step in range(2)])
    empty = float((batch == 1).double().mean())
    assert abs(empty - rate) < 4.5 * (rate * (1 - rate) / 1000) ** 0.5


def test_times_and_noise_are_those_of_a_diffusion():
    _, batch_at = job_of(scenes=4, batch_size=400, T=5, judge_steps=2)
    batch = batch_at(0, 0)
    assert batch.t.unique().tolist() == [1, 2, 3, 4, 5]
    assert float(batch.eps.std()) == pytest.approx(1, abs=0.01)
    assert len(batch.eps.unique(dim=0)) == 400


def test_scenes_are_those_of_their_numbers_and_hold_nothing_back_for_the_test():
    """Painted in parts, which meet without a seam; none of them is one that was held out."""
    pool, settings = tiny.painting()[0], settings_of(scenes=1020, seed=3, two=0.7)
    latents, scenes = encoded(settings, pool, tiny.Clear())
    edge = [0, 999, 1000, 1019]
    painted = draw_scenes(pool, 3, edge, two=0.7)
    assert [scenes[i] for i in edge] == painted.scenes
    torch.testing.assert_close(latents[edge], painted.images)
    assert len(latents) == len(scenes) == 1020
    double = [scene for scene in scenes if len(scene.glyphs) == 2]
    assert 0.65 < len(double) / 1020 < 0.75
    assert not {tuple(g.digit for g in s.glyphs) for s in double} & {*HELD_OUT_PAIRS}
    assert not {(g.digit, g.ink) for s in scenes for g in s.glyphs} & {*HELD_OUT_INKS}


class Blunt(tiny.Clear):
    """Stand for an autoencoder that gives each pixel the most of its neighbourhood's ink."""

    def decode(self, z):
        """Return the picture with wider white strokes."""
        return F.max_pool2d(z, 3, stride=1, padding=1)


def test_captions_can_name_what_the_decoder_shows():
    """White digits on black, wider by two pixels: all of them are thick."""
    pool, settings = tiny.painting()[0], settings_of(scenes=1020, two=0.0)

    def strokes_of(**changes):
        latents, scenes = encoded(replace(settings, **changes), pool, Blunt())
        shown = [s for s in scenes if (s.glyphs[0].ink, s.paper) == ("white", "black")]
        return latents, Counter(scene.glyphs[0].stroke for scene in shown)

    (z, painted), (same, decoded) = strokes_of(), strokes_of(as_decoded=True)
    torch.testing.assert_close(z, same)
    assert painted["thin"] > 0
    assert decoded == {"thick": painted.total()}


def test_loss_is_the_error_of_what_the_network_was_told():
    """The velocity, written out; other captions give another loss."""
    settings = settings_of(scenes=8, batch_size=8, in_channels=3, out_channels=3)
    loss, batch_at = prompt_job(settings, tiny.painting()[1], tiny.Clear())
    batch, a = batch_at(0, 0), cosine().alpha_bar
    torch.manual_seed(0)
    model = tiny.alive(text_to_image(settings))
    a = a[batch.t].view(-1, 1, 1, 1)
    alpha, sigma = a.sqrt().float(), (1 - a).sqrt().float()
    x_t, v = alpha * batch.x_0 + sigma * batch.eps, alpha * batch.eps - sigma * batch.x_0
    with torch.no_grad():
        wanted = F.mse_loss(model(x_t, batch.t, model.of_tokens(batch.ids, batch.mask)), v)
        found, deaf = loss(model, batch), loss(model, batch._replace(ids=batch.ids.flip(0)))
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)
    assert float(deaf) != pytest.approx(float(wanted), rel=1e-5)


def test_the_network_knows_what_it_is_shown_while_it_trains():
    """Pictures of a training are drawn for these prompts: no word of them may be unknown."""
    network = text_to_image(recipes.settings_of("text_to_image", "full"))
    assert network.text.config.vocabulary == tuple(WORDS.values())
    assert network.text.tokenize(SHOWN).mask.sum(1).max() <= network.text.config.max_length
    assert len(SHOWN) == 10
    assert SHOWN[-1] == ""


# ---- the judge -----------------------------------------------------------------------------

OBEYS = {  # scale -> the share of prompts that are obeyed, of one digit and of two
    1.0: (0.2, 0.2),
    1.5: (0.6, 0.4),
    2.0: (0.7, 0.6),
    3.0: (1.0, 0.5),  # the best of one digit, and on average
    4.0: (0.4, 1.0),  # the best of two
    5.0: (0.3, 0.3),
    6.0: (0.2, 0.1),
}
DIGITS = {1.5: 0.9}  # where more digits are right than strokes: not the best for all that


def faked(patch, judge, calls):
    """Draw no picture: what the judge sees of one is its prompt, and whether it is obeyed."""

    def draw(trained, count, steps, *, prompts, scale, seed, grid, eta):
        assert eta == 1
        assert grid == "quadratic"
        calls.append((scale, seed, steps, prompts))
        obeyed = OBEYS[scale][len(parse(prompts[0]).glyphs) - 1] * count
        digits = DIGITS.get(scale, 0) * count
        return [(p, i < max(digits, obeyed), i < obeyed) for i, p in enumerate(prompts)]

    def look(images, named, eye):
        assert [parse(prompt) for prompt, *_ in images] == [*named]
        return [dict.fromkeys(ATTRIBUTES) | {"digit": d, "stroke": s} for _, d, s in images]

    for name, fake in {"sample_in_batches": draw, "agreements": look}.items():
        patch.setitem(judge.__globals__, name, fake)  # its own: a mutant has others


def test_the_judge_takes_the_scale_whose_worst_kind_is_best():
    """It is chosen with other prompts than those that are judged, of which each kind has as many.

    Languages are told apart by their letters, over all kinds.
    """
    calls, trained = (
        [],
        Trained(None, settings_of(judged=50, judge_steps=7, judge_grid="quadratic"), {}),
    )
    with pytest.MonkeyPatch.context() as patch:
        faked(patch, judge_prompts, calls)
        eye = SimpleNamespace(model=None)
        metrics = judge_prompts(trained, tiny.painting()[1], None, lambda name: eye)
    assert metrics["scale"] == 2.0
    assert metrics["scales"] == {f"scale {scale:g}": min(both) for scale, both in OBEYS.items()}
    assert metrics["sampler"] == "ddim, 7 steps of the grid quadratic, eta 1"
    assert [metrics[kind]["asked"]["share"] for kind in KINDS] == [0.7, 0.7, 0.6, 0.6]
    choice, verdict = calls[:14], calls[14:]
    assert [scale for scale, *_ in choice] == [scale for scale in OBEYS for _ in range(2)]
    assert [scale for scale, *_ in verdict] == [2.0] * 4
    assert {steps for _, _, steps, _ in calls} == {7}
    assert [len(prompts) for *_, prompts in calls] == [10] * 14 + [50] * 4
    tried = {prompt for *_, prompts in choice for prompt in prompts}
    asked = [prompt for *_, prompts in verdict for prompt in prompts]
    assert len({seed for _, seed, _, _ in choice} & {seed for _, seed, _, _ in verdict}) == 0
    assert len(tried & {*asked}) <= 2  # short ones can come again
    right = [i % 50 < (35 if i < 100 else 30) for i in range(200)]
    for language, english in (("English", True), ("Chinese", False)):
        spoken = [r for r, prompt in zip(right, asked, strict=True) if prompt.isascii() == english]
        found = metrics[language]["digit"]
        assert (found["right"], found["of"]) == (sum(spoken), len(spoken))


# ---- the file, and resumption --------------------------------------------------------------


def test_the_file_draws_the_same_pictures(scene_vae, monkeypatch, tmp_path):
    """As the model that was just trained does: weights, words, settings and autoencoder."""
    monkeypatch.setenv("MNISTLIB_DATA", str(tiny.write_mnist(tmp_path / "digits")))
    settings = small(scene_vae)
    *_, trained = recipes.train("text_to_image", settings, profile="smoke", out=tmp_path / "out")
    loaded = recipes.load(tmp_path / "out" / "text_to_image.safetensors")
    assert loaded.settings == trained.settings == settings
    assert loaded.record["metrics"] == trained.record["metrics"]
    assert loaded.record["vae"] == recipes.load(scene_vae).record["sha256"]
    how = {"prompts": ["a red seven", "白底上一个蓝色的3"], "scale": 2.0, "negative": "blue"}
    first, second = (recipes.sample(each, range(2), 3, **how) for each in (trained, loaded))
    assert first.shape == (2, 3, 32, 32)
    assert torch.equal(first, second)


def small(scene_vae, **changes):
    """Return the settings of six steps with an autoencoder that is there."""
    vae = {"vae": scene_vae, "held_out": 20}
    few = {"steps": 6, "checkpoint_every": 2, "judged": 2, "judge_steps": 2, "batch_size": 4}
    return settings_of(**vae | few | changes)


def test_a_cut_training_ends_as_if_it_had_not_been(scene_vae, monkeypatch, tmp_path):
    """The whole state, bit for bit; the captions too are functions of seed and step."""
    monkeypatch.setenv("MNISTLIB_DATA", str(tiny.write_mnist(tmp_path / "digits")))
    for out, cuts in (("whole", (6,)), ("cut", (3, 5, 6))):
        for i, last in enumerate(cuts):
            run = recipes.train(
                "text_to_image", small(scene_vae), out=tmp_path / out, profile="smoke",
                resume=i > 0,
            )  # fmt: skip
            for step in run:
                if step.step == last:
                    break
    whole, cut = (
        checkpoints.read_tensors(tmp_path / out / "state.safetensors")[0]
        for out in ("whole", "cut")
    )
    assert tiny.same(whole, cut)


# ---- the settings --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"two": 1.5}, "two and fine must lie between 0 and 1; got 1.5, 0.5"),
        ({"two": -0.1}, "two and fine must lie between 0 and 1"),
        ({"fine": 1.5}, "two and fine must lie between 0 and 1; got 0.5, 1.5"),
        ({"fine": -0.1}, "two and fine must lie between 0 and 1"),
        ({"scenes": 0}, "scenes must be 1 or more, in_order 0 or more; got 0, 0"),
        ({"in_order": -1}, "scenes must be 1 or more, in_order 0 or more"),
        ({"vae": ""}, "name one with vae"),
        ({"label_dropout": 1.5}, "label_dropout must lie between 0 and 1"),
        ({"judged": 1}, "judged must be at least 2"),
        ({"judge_steps": 1001}, "steps must be between 1 and 1000"),
        ({"pooled": "yes"}, "give a bool"),
    ],
)
def test_impossible_settings_are_refused(changes, reason):
    with pytest.raises(InputError, match=reason) as refusal:
        settings_of(**changes)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"text_width": 8}, "context_dim 16 must be the text's width, 8"),
        ({"text_heads": 3}, "does not divide into 3 heads"),
        ({"text_layers": 0}, "layers and width of 1"),
        ({"max_length": 1}, "max_length of 2"),
        ({"classes": 10}, "a prompt needs classes=0"),
        ({"context_dim": 0, "pooled": False}, "needs pooled=True"),
        ({"vae": "digit_features"}, "digit_features is not an autoencoder"),
        ({"vae": "vae"}, r"this autoencoder reads \(B, 1, H, W\)"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    scene_vae, monkeypatch, tmp_path, changes, reason
):
    monkeypatch.setenv("MNISTLIB_DATA", str(tiny.write_mnist(tmp_path / "digits")))
    settings = small(scene_vae, **changes)
    with pytest.raises(InputError, match=reason) as refusal:
        next(recipes.train("text_to_image", settings, profile="smoke", out=tmp_path / "out"))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()
