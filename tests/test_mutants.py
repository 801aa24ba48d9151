"""The tests can fail: each planted mistake in a file of the library is caught by a named test.

A mutant is the text of a file with one piece replaced, run in memory. Its functions take the place
of the library's in a test file, and the test named must then fail. Nothing on disk changes.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import test_captions
import torch
from test_readers import JUDGED
from tiny import painting

from mnistlib import recipes
from mnistlib.grammar import Glyph
from mnistlib.layers import ResidualBlock
from mnistlib.samplers import ddim
from mnistlib.schedules import cosine

PACKAGE = Path(__file__).resolve().parents[1] / "mnistlib"


class Mutant(NamedTuple):
    """A mistake: `old` becomes `new` in `file`; `test(*args)` of tests/test_FILE.py must fail.

    Arguments that take time to make are given by a function.
    """

    file: str
    old: str
    new: str
    test: str
    args: tuple | Callable[[], tuple] = ()


def pool():
    """Return the argument of most tests of scenes."""
    return painting()[:1]


def digits():
    """Return the argument of the others."""
    return painting()[1:]


def pool_and_eye():
    """Return the arguments of tests that read scenes."""
    return *pool(), recipes.find("digit_features").model


READ = {caption: (caption, named) for caption, named in test_captions.READ}
# fmt: off
METRICS = [
    Mutant("metrics", "c_b.trace() - 2 * cross", "c_b.trace() - cross",
           "test_frechet_matches_scipy", (5, 0)),
    Mutant("metrics", "(m_a - m_b).square().sum()", "(m_a - m_b).abs().sum()",
           "test_frechet_matches_torchmetrics", (3,)),
    Mutant("metrics", "root_a @ c_b @ root_a", "c_a @ c_b @ c_a",
           "test_frechet_of_known_gaussians"),
    Mutant("metrics", "torch.cov(x.T)", "torch.cov(x.T, correction=0)",
           "test_statistics_equal_numpy", (50, 6)),
    Mutant("metrics", "values.clamp(min=0).sqrt() @", "values.clamp(min=0) @",
           "test_frechet_matches_scipy", (5, 0)),
    Mutant("metrics", "x = 1 / torch.tensor(sizes", "x = torch.tensor(sizes",
           "test_extrapolation_is_a_line_in_the_inverse_number"),
    Mutant("metrics", "value, slope = torch", "slope, value = torch",
           "test_extrapolation_removes_the_bias"),
    Mutant("metrics", "features[torch.randperm(N, generator=generator)[:n]]", "features[:n]",
           "test_extrapolation_is_a_line_in_the_inverse_number"),
    Mutant("metrics", "nearest(centres, centres, k + 1)", "nearest(centres, centres, k)",
           "test_precision_and_recall_match_brute_force", (0, 3)),
    Mutant("metrics", ".distances[:, -1]", ".distances[:, 0]",
           "test_precision_and_recall_match_brute_force", (0, 3)),
    Mutant("metrics", "_share_inside(generated, real, k), _share_inside(real, generated, k)",
           "_share_inside(real, generated, k), _share_inside(generated, real, k)",
           "test_what_is_lost_and_what_is_added"),
    Mutant("metrics", "<= radii).any(1)", "<= radii).all(1)",
           "test_precision_and_recall_match_brute_force", (0, 3)),
    Mutant("metrics", "largest=False", "largest=True",
           "test_nearest_matches_scikit_learn", (40, 30, 5, 1)),
    Mutant("metrics", 'compute_mode="donot_use_mm_for_euclid_dist"',
           'compute_mode="use_mm_for_euclid_dist"', "test_nearest_of_images_finds_copies_exactly"),
    Mutant("metrics", "scores.argmax(1)", "scores.argmin(1)",
           "test_accuracy_counts_the_highest_scores"),
    Mutant("metrics", "z**2 / (4 * of**2)", "z**2 / (2 * of**2)",
           "test_wilson_interval_matches_scipy"),
    Mutant("metrics", "False not in each.values()", "None not in each.values()",
           "test_prompt_accuracy_counts_what_was_named"),
    Mutant("metrics", "if {*each.values()} != {None} and each", "",
           "test_prompt_accuracy_counts_what_was_named"),
]
WALK = (cosine(), [900, 400, 20, 3, 0])
SAMPLERS = [
    Mutant("samplers", "a_s.sqrt() * (1 - a_ts) /", "a_s.sqrt() * a_ts /",
           "test_posterior_equals_gaussian_conditioning", (cosine(), 500, 20)),
    Mutant("samplers", "mean_xt = a_ts.sqrt()", "mean_xt = a_ts",
           "test_posterior_equals_gaussian_conditioning", (cosine(), 500, 20)),
    Mutant("samplers", "* (1 - a_ts)).sqrt()", "* (1 - a_ts))",
           "test_posterior_equals_gaussian_conditioning", (cosine(), 500, 20)),
    Mutant("samplers", "var = eta**2 *", "var = eta *",
           "test_ddim_step_equals_numpy", (*WALK, 0.3)),
    Mutant("samplers", "(1 - a_t / a_s)", "(1 - a_t)",
           "test_ddim_step_equals_numpy", (*WALK, 0.3)),
    Mutant("samplers", "denoise(euler, _batch_of(s, x))", "denoise(euler, _batch_of(t, x))",
           "test_heun_step_equals_numpy", WALK),
    Mutant("samplers", "denoise(euler, _batch_of(s, x))", "denoise(x, _batch_of(s, x))",
           "test_heun_step_equals_numpy", WALK),
    Mutant("samplers", "_batch_of(s, x))) / 2", "_batch_of(s, x)))",
           "test_heun_step_equals_numpy", WALK),
    Mutant("samplers", "_mixed(_x0_hat(x, mean, a_t), mean, a_s)", "_mixed(x0_hat, mean, a_s)",
           "test_order_of_convergence", ("heun", 2)),
    Mutant("samplers", "float(h / (2 * last_h))", "float(last_h / (2 * h))",
           "test_dpm_solver_pp_step_equals_numpy", WALK),
    Mutant("samplers", "float(h / (2 * last_h))", "float(h / last_h)",
           "test_order_of_convergence", ("dpm_solver_pp", 2)),
    Mutant("samplers", "(x0_hat - last_x0_hat)", "(last_x0_hat - x0_hat)",
           "test_dpm_solver_pp_step_equals_numpy", WALK),
    Mutant("samplers", "before = x0_hat, h", "before = x0_mid, h",
           "test_dpm_solver_pp_step_equals_numpy", WALK),
    Mutant("samplers", "_eps(x, x0_mid, a_t)", "_eps(x, x0_hat, a_t)",
           "test_dpm_solver_pp_step_equals_numpy", WALK),
]
SCHEDULES = [
    Mutant("schedules", "self.alpha_bar.log() -", "self.alpha_bar.log() +",
           "test_log_snr_times_are_even_in_log_snr", ("cosine", 12)),
    Mutant("schedules", "known = schedule.log_snr[1:]", "known = schedule.log_snr[:-1]",
           "test_log_snr_times_skip_what_is_noise_alone"),
    Mutant("schedules", "range(1 + (steps - 1)", "range(1 + steps",
           "test_even_grids_match_diffusers", ("leading", "leading", 1000, 10)),
    Mutant("schedules", "((steps - i) / steps) ** 2", "((steps - i) / steps) ** 3",
           "test_quadratic_times_are_squares", (10,)),
    Mutant("schedules", "times[i - 1] - 1)", "times[i - 1])",
           "test_grids_make_room_where_roundings_meet"),
    Mutant("schedules", "max(t, n - i)", "max(t, n - i - 1)",
           "test_grids_make_room_where_roundings_meet"),
    Mutant("schedules", "a.sqrt().to(like), (1 - a).sqrt()", "a.to(like), (1 - a)",
           "test_rates_are_cast_last_and_broadcast", (torch.float32,)),
]
GUIDANCE = [
    Mutant("guidance", "torch.where(t <= latest", "torch.where(t < latest",
           "test_a_classifier_is_heard_until_a_time"),
    Mutant("guidance", "(low <= t) & (t <= high)", "(low < t) & (t <= high)",
           "test_guidance_between_two_times"),
    Mutant("guidance", "uncond(x_t, t), c, scale), c)",
           "uncond(x_t, t), c, scale), uncond(x_t, t))",
           "test_guidance_between_two_times"),
    Mutant("guidance", "t) - scale * sigma * gradient", "t) + scale * sigma * gradient",
           "test_cfg_equals_classifier_guidance", ("cosine", 3.0)),
    Mutant("guidance", "t) - scale * sigma * gradient", "t) + scale * sigma * gradient",
           "test_gradient_matches_finite_differences", (400,)),
    Mutant("guidance", "- scale * sigma * gradient", "- scale * gradient",
           "test_cfg_equals_classifier_guidance", ("cosine", 1.0)),
    Mutant("guidance", "- scale * sigma * gradient", "- scale * gradient",
           "test_gradient_matches_finite_differences", (400,)),
    Mutant("guidance", "cond(x_t, t), scale)", "cond(x_t, t), 1 + scale)",
           "test_cfg_equals_classifier_guidance", ("linear", 0.0)),
    Mutant("guidance", "cond(x_t, t), scale)", "cond(x_t, t), 1 + scale)",
           "test_scale_counts_from_the_unconditional"),
    Mutant("guidance", "- scale * sigma * gradient", "- (scale - 1) * sigma * gradient",
           "test_exact_classifier_turns_unconditional_into_conditional", ("cosine",)),
    Mutant("guidance", "torch.lerp(uncond(x_t, t), cond(x_t, t), scale)",
           "uncond(x_t, t) + scale * (cond(x_t, t) - uncond(x_t, t))",
           "test_ends_of_the_scale_are_exact", (torch.float32,)),
    Mutant("guidance", "torch.lerp(uncond(x_t, t), cond(x_t, t), scale)",
           "torch.lerp(cond(x_t, t), uncond(x_t, t), scale)",
           "test_scale_counts_from_the_unconditional"),
    Mutant("guidance", "torch.lerp(guided, ratio * guided, phi)",
           "torch.lerp(guided, ratio * guided, 1 - phi)",
           "test_rescaled_equals_the_formula", (0.3,)),
    Mutant("guidance", "clamp(-limit, limit)", "clamp(-1, 1)",
           "test_clipped_cuts_the_guess_and_nothing_else", ("cosine", 0.4)),
    Mutant("objective", "generator=generator) < rate", "generator=generator) > rate",
           "test_labels_are_dropped_at_the_rate", (0.1,)),
    Mutant("objective", 'caption if stays else ""', '"" if stays else caption',
           "test_captions_are_dropped_at_the_rate", (0.1,)),
]
VAE = [
    Mutant("vae", "- 1 - self.log_var", "- 1 + self.log_var", "test_kl_equals_torch_distributions"),
    Mutant("vae", "return 0.5 * each", "return each", "test_kl_equals_monte_carlo"),
    Mutant("vae", "(0.5 * self.log_var).exp()", "self.log_var.exp()",
           "test_draws_have_the_mean_and_the_variance"),
    Mutant("vae", ".flatten(1).sum(1)\n    return (error", ".flatten(1).mean(1)\n    return (error",
           "test_loss_equals_the_formula", (0.05,)),
]
CAPTIONS = [
    Mutant("captions", "rank = {", "rank = {} and {",
           "test_what_captions_name", READ["a seven with a thick stroke and a red 3"]),
    Mutant("captions", 'sides[0] == "right"', 'sides[0] == "left"',
           "test_what_captions_name", READ["a red three left of a white seven"]),
    Mutant("captions", 'after.kind != "digit"', 'after.kind != "end"',
           "test_what_captions_name", READ["the digit 7"]),
    Mutant("captions", "key=len, reverse=True", "key=len",
           "test_what_captions_name", READ["two digits on black"]),
    Mutant("captions", "(?<![a-z0-9])", "(?<![0-9])",
           "test_what_captions_name", READ["please have someone draw a lovely seven"]),
    Mutant("captions", "and attribute in attributes", "",
           "test_only_the_attributes_asked_for_are_named", ("ink",)),
    Mutant("captions", "not placed and choices.chance(0.5)", "placed and choices.chance(0.5)",
           "test_digits_without_places_come_in_either_order"),
    Mutant("captions", "(?!one\\b)", "", "test_articles",
           (Glyph(1), {"a one", "a 1"}, {"an one", "an 1"})),
    Mutant("captions", "choices.chance(shares[attribute])", "choices.chance(0.6)",
           "test_attributes_are_named_with_their_share"),
    Mutant("captions", "dict.fromkeys(FINE, fine)", "dict.fromkeys(ATTRIBUTES, fine)",
           "test_strokes_and_slants_are_named_as_often_as_asked_and_the_rest_as_ever"),
]
READERS = [
    Mutant("readers", "2 * c.flatten(1).sum(1) / outline", "c.flatten(1).sum(1) / outline",
           "test_stroke_width_of_a_ring_is_its_width", (2.0,)),
    Mutant("readers", "((coverage - 0.2) / 0.6).clamp(0, 1)", "coverage",
           "test_stroke_width_does_not_see_faint_noise"),
    Mutant("readers", "return -covariance", "return covariance",
           "test_shear_is_how_far_a_bar_was_pushed", (0.3,)),
    Mutant("readers", "(c * rows.square()).sum((1, 2))", "c.sum((1, 2))",
           "test_shear_is_the_slope_that_fits_best"),
    Mutant("readers", " - _BY_SHAPE[digits]", "",
           "test_slant_is_counted_from_the_shape_of_the_class"),
    Mutant("readers", "beyond.abs() < margin", "beyond.abs() < 0",
           "test_classes_meet_at_the_cuts"),
    Mutant("readers", "- 15.5) * SMALL", "- 15.5)",
           "test_small_digits_are_enlarged_and_centred", (2.0,)),
    Mutant("readers", "(column[:, 0] + steps + 0.5)", "(column[:, 0] * 0 + steps + 8)",
           "test_small_digits_are_enlarged_and_centred", (2.0,)),
    Mutant("readers", "papers[:, None], torch.inf", "papers[:, None], 0.0",
           "test_colours_are_read_in_each_combination", (lambda x: x,)),
    Mutant("readers", ".topk(_CORE)", ".topk(_CORE, largest=False)",
           "test_colours_are_read_in_each_combination", (lambda x: x,)),
    Mutant("readers", "[images] if digits == 1 else halves(images)", "[images] * digits",
           "test_each_half_is_read_by_itself"),
    Mutant("readers", "= _parts(images[which], digits)", "= [images[which]] * digits",
           "test_each_of_two_is_measured_in_its_half"),
    Mutant("readers", "replace(scenes[i], glyphs=tuple(new))", "scenes[i]",
           "test_a_picture_is_measured_and_not_its_painting"),
    Mutant("readers", 'right.count("digit"), len(right)', "0, len(right)",
           "test_agreement", JUDGED[9]),
    Mutant("readers", "(read.glyphs, read.glyphs[::-1])", "(read.glyphs,)",
           "test_agreement", JUDGED[5]),
    Mutant("readers", "all(right) if right", "any(right) if right",
           "test_agreement", JUDGED[8]),
]
SCENES = [
    Mutant("scenes", "_UNSEEN_INKS[labels] == wanted", "_UNSEEN_INKS[labels] >= wanted",
           "test_training_scenes_never_show_what_is_held_out", pool),
    Mutant("scenes", "HELD_OUT_PAIRS if unseen else _SEEN_PAIRS", "_PAIRS",
           "test_training_scenes_never_show_what_is_held_out", pool),
    Mutant("scenes", "(unseen & ~double)", "(unseen | double)",
           "test_training_scenes_never_show_what_is_held_out", pool),
    Mutant("scenes", ".scatter(1, inks, 0) > 0", ".scatter(1, inks[:, :1], 0) > 0",
           "test_training_scenes_never_show_what_is_held_out", pool),
    Mutant("scenes", "inks - paper[:, None]", "inks + paper[:, None]",
           "test_paint_is_paper_plus_coverage_times_the_way_to_the_ink"),
    Mutant("scenes", "allowed.cumsum(-1) > nth", "allowed.cumsum(-1) >= nth",
           "test_training_scenes_never_show_what_is_held_out", pool),
    Mutant("scenes", "generator_for(seed, int(i)))", "generator_for(seed, len(indices)))",
           "test_other_numbers_and_seeds_give_other_scenes", pool),
    Mutant("scenes", ", antialias=True", "", "test_shrunk_digits_match_pillow", digits),
    Mutant("scenes", "+ 1) // 2 + 10)", "+ 1) // 2 + 9)",
           "test_shrunk_digits_match_pillow", digits),
    Mutant("scenes", "pool.strokes[which, size]", "pool.strokes[which, 1 - size]",
           "test_scenes_say_what_the_pool_measured", painting),
]
ATTENTION = [
    Mutant("attention", "nn.Softmax(dim=-1)", "nn.Softmax(dim=-2)",
           "test_cross_attention_matches_torch", (2, None)),
    Mutant("attention", "nn.Softmax(dim=-1)", "nn.Softmax(dim=-2)",
           "test_the_answer_of_a_query_does_not_depend_on_the_others"),
    Mutant("attention", " / math.sqrt(q.shape[-1])", "",
           "test_cross_attention_matches_torch", (2, None)),
    Mutant("attention", "math.sqrt(q.shape[-1])", "math.sqrt(x.shape[-1])",
           "test_both_kinds_match_torchs_layer", (2,)),
    Mutant("attention", "if mask is not None:", "if False:",
           "test_a_masked_token_is_never_seen", ("attention",)),
    Mutant("attention", "~mask[:, None, None, :]", "mask[:, None, None, :]",
           "test_both_kinds_match_torchs_layer", (4,)),
    Mutant("attention", "-math.inf", "0.0", "test_a_masked_token_is_never_seen", ("attention",)),
    Mutant("attention", "self.norm2(x), words, mask)", "self.norm2(x), words)",
           "test_a_masked_token_is_never_seen", ("block",)),
    Mutant("attention", "unflatten(2, (self.heads, -1))", "unflatten(2, (-1, self.heads))",
           "test_cross_attention_matches_torch", (2, None)),
    Mutant("attention", "found.transpose(1, 2).flatten(2)", "found.flatten(1, 2).view(x.shape)",
           "test_both_kinds_match_torchs_layer", (4,)),
    Mutant("attention", "value * F.gelu(gate)", "gate * F.gelu(value)",
           "test_gated_feed_forward_equals_the_formula"),
    Mutant("attention", "self.look(self.norm1(x))", "self.look(x)",
           "test_block_matches_diffusers", (None,)),
    Mutant("attention", "finally:\n        for hook in hooks:\n            hook.remove()",
           "finally:\n        pass", "test_watching_changes_nothing_and_leaves_nothing"),
    Mutant("attention", "maps.__setitem__(name, weights.detach())",
           "None if name in maps else maps.__setitem__(name, weights.detach())",
           "test_attention_maps_hold_the_latest_call"),
]
LAYERS = [
    Mutant("layers", "places.transpose(1, 2).unflatten(2, x.shape[2:])", "places.reshape(x.shape)",
           "test_spatial_transformer_matches_diffusers", (1, None)),
    Mutant("layers", "return x + self.leave(", "return self.leave(",
           "test_fresh_spatial_transformer_is_the_identity"),
    Mutant("layers", "block(places, words, mask)", "block(places, words)",
           "test_spatial_transformer_matches_diffusers", (1, 12)),
    Mutant("layers", "nn.Sequential(resize, block.conv1)", "nn.Sequential(block.conv1, resize)",
           "test_residual_blocks_match_diffusers", (ResidualBlock, 16, 24, "down")),
]
UNET = [
    Mutant("unet", "time + vector", "time", "test_vector_and_words_are_both_heard"),
    Mutant("unet", "else (tokens, mask)", "else (tokens, None)",
           "test_a_masked_word_never_changes_the_answer"),
    Mutant("unet", "channels // c.head_width if", "c.head_width if",
           "test_each_option_does_what_it_says"),
    Mutant("unet", "if vector is None and self.label is not None", "if False",
           "test_a_class_and_words_can_be_told_together"),
]
TEXT = [
    Mutant("text", "+ self.position", "+ self.position.roll(1, 0)",
           "test_encoder_matches_torchs_layers"),
    Mutant("text", " + self.position[: ids.shape[1]]", "",
           "test_each_word_and_its_place_matter"),
    Mutant("text", "(x), mask=mask)\n        return x +", "(x))\n        return x +",
           "test_padding_never_changes_what_is_said"),
    Mutant("text", "vector=x[:, 0]", "vector=x[:, -1]", "test_encoder_matches_torchs_layers"),
    Mutant("text", "vector=x[:, 0]", "vector=x.mean(1)", "test_padding_never_changes_what_is_said"),
    Mutant("text", "enumerate(vocabulary, START + 1)", "enumerate(vocabulary, START)",
           "test_tokens_are_start_words_padding"),
    Mutant("text", "ids[i, 1 : 1 + len(row)] = torch.tensor([self._ids[word] for word in row])",
           "ids[i, 1 : 1 + len(row)] = torch.tensor([self._ids[word] for word in row[::-1]])",
           "test_tokens_are_start_words_padding"),
    Mutant("text", "ids != PADDING", "ids > START", "test_tokens_are_start_words_padding"),
    Mutant("text", ".casefold()", "", "test_split",
           ("  A Red\tSEVEN,\non blue. ", ["a", "red", "seven", "on", "blue"])),
]
TEXT_TO_IMAGE = [
    Mutant("text_to_image", "self.pooled(said.vector)", "self.pooled(said.vector.flip(0))",
           "test_prompts_change_their_own_image", ("vector",)),
    Mutant("text_to_image", 'self.of_prompts([""])', 'self.of_prompts(["a"])',
           "test_without_a_condition_the_empty_prompt_is_told", ("both",)),
]
LOSSES = [
    Mutant("losses", "settings.label_dropout,", "1 - settings.label_dropout,",
           "test_captions_are_left_out_at_the_rate"),
    Mutant("losses", "told, NoisyBatch(", "model, NoisyBatch(",
           "test_loss_is_the_error_of_what_the_network_was_told"),
    Mutant("losses", "captions_at(seed, step, i)", "captions_at(seed, step, i.flip(0))",
           "test_latents_come_with_their_captions"),
]
FOLDERS = [
    Mutant("folders", "ImageOps.fit(opened(path), (size, size), ",
           "opened(path).resize((size, size), ",
           "test_the_middle_is_cut_out_and_resized", (40, 64)),
    Mutant("folders", "/ 127.5 - 1", "/ 255", "test_bytes_fill_the_range_from_minus_one_to_one"),
]
PNGS = [
    Mutant("pngs", "ImageOps.exif_transpose(picture)", "picture",
           "test_the_side_that_the_camera_says_is_up_is_up", ("JPEG", 6)),
    Mutant("pngs", '"white"', '"black"', "test_what_is_transparent_is_white"),
    Mutant("pngs", 'picture.mode.startswith("I")', "False",
           "test_grey_is_three_equal_colours_whatever_its_depth"),
    Mutant("pngs", "Image.Resampling.BOX", "Image.Resampling.NEAREST",
           "test_a_picture_becomes_bytes_channel_first"),
]
OBEDIENCE = [
    Mutant("obedience", "glyph.ink if inks else None", "glyph.ink",
           "test_prompts_name_what_they_say", lambda: (*pool(), "one digit, seen", False)),
    Mutant("obedience", "range(count), two=two, unseen=unseen", "range(count), two=two",
           "test_prompts_name_what_they_say", lambda: (*pool(), "two digits, held out", True)),
    Mutant("obedience", "scene.paper if inks else None)",
           "scene.paper if inks else None, scene.placed)",
           "test_prompts_name_what_they_say", lambda: (*pool(), "two digits, seen", True)),
    Mutant("obedience", "len(wanted) < 2 or ", "", "test_each_digit_has_its_ink"),
    Mutant("obedience", "wanted != there", "False", "test_each_digit_has_its_ink"),
    Mutant("obedience", 'in ("digit", "ink"):', 'in ("ink",):', "test_each_digit_has_its_ink"),
    Mutant("obedience",
           "{(g.digit, g.ink) for g in named.glyphs} == {(g.digit, g.ink) for g in seen.glyphs}",
           "[g.ink for g in named.glyphs] == [g.ink for g in seen.glyphs]",
           "test_each_digit_has_its_ink"),
    Mutant("obedience", "zip(i, read(", "zip(i[::-1], read(",
           "test_agreements_come_in_the_order_of_the_scenes", pool_and_eye),
    Mutant("obedience", "if not unseen or _names_combination(c.named)", "",
           "test_prompts_are_of_their_kind", lambda: (*pool(), "one digit, held out")),
    Mutant("obedience", "return named.placed and None", "return None",
           "test_prompts_are_of_their_kind", lambda: (*pool(), "two digits, held out")),
    Mutant("obedience", "numbers, two=two, unseen=unseen", "numbers, two=two",
           "test_prompts_are_of_their_kind", lambda: (*pool(), "two digits, held out")),
    Mutant("obedience", "ASKED[len(scene.glyphs)]", "ASKED[1]", "test_shares_are_counted"),
    Mutant("obedience", "prompt_accuracy(asked)", "prompt_accuracy(found)",
           "test_shares_are_counted"),
]
VAE_JOBS = [
    Mutant("vae_jobs", "range(step * B, (step + 1) * B)", "range(B)", "test_no_scene_comes_twice"),
    Mutant("vae_jobs", "two=settings.two).images", "two=settings.two, unseen=True).images",
           "test_batches_never_show_what_is_held_out", (0.0,)),
    Mutant("vae_jobs", "two=settings.two).images", "two=settings.two, unseen=True).images",
           "test_batches_never_show_what_is_held_out", (1.0,)),
    Mutant("vae_jobs", "measured(test or digits), {", "measured(digits), {",
           "test_an_autoencoder_that_loses_nothing_is_judged_as_the_scenes_are"),
    Mutant("vae_jobs", "agreements(back, scenes", "agreements(images, scenes",
           "test_an_autoencoder_that_forgets_is_found_out"),
]
PROMPT_JOBS = [
    Mutant("prompt_jobs", "[scenes[j] for j in i.tolist()]", "[scenes[j - 1] for j in i.tolist()]",
           "test_pictures_are_what_their_captions_say"),
    Mutant("prompt_jobs", "range(step * len(i), (step + 1) * len(i))", "range(len(i))",
           "test_a_scene_is_described_anew_each_time"),
    Mutant("prompt_jobs", "draw_captions(shown[easy:], seed,", "draw_captions(shown[easy:], 0,",
           "test_a_scene_is_described_anew_each_time"),
    Mutant("prompt_jobs", "1 - step / in_order", "step / in_order",
           "test_the_lessons_begin_with_the_left_digit_first"),
    Mutant("prompt_jobs", ", fine=settings.fine", "",
           "test_strokes_and_slants_are_named_as_often_as_asked", (0.0,)),
    Mutant("captions", "if in_order else pair", "if not in_order else pair",
           "test_the_left_digit_comes_first_where_that_is_asked_for", ("en",)),
    Mutant("prompt_jobs", "latent.decode(vae, latents[-1])", "painted.images",
           "test_captions_can_name_what_the_decoder_shows"),
    Mutant("prompt_jobs", "two=settings.two)", "two=settings.two, unseen=True)",
           "test_scenes_are_those_of_their_numbers_and_hold_nothing_back_for_the_test"),
    Mutant("prompt_jobs", "part.tolist(), two", "range(len(part)), two",
           "test_scenes_are_those_of_their_numbers_and_hold_nothing_back_for_the_test"),
    Mutant("prompt_jobs", "worst[scale] = min(", "worst[scale] = sum(",
           "test_the_judge_takes_the_scale_whose_worst_kind_is_best"),
    Mutant("prompt_jobs", "max(worst, key", "min(worst, key",
           "test_the_judge_takes_the_scale_whose_worst_kind_is_best"),
    Mutant("prompt_jobs", '["everything"]["share"]', '["asked"]["share"]',
           "test_the_judge_takes_the_scale_whose_worst_kind_is_best"),
    Mutant("prompt_jobs", "scale=scale, seed=3", "scale=scale, seed=4",
           "test_the_judge_takes_the_scale_whose_worst_kind_is_best"),
    Mutant("prompt_jobs", "isascii() == ascii_", "isascii() != ascii_",
           "test_the_judge_takes_the_scale_whose_worst_kind_is_best"),
]
TRAINED = [
    Mutant("trained", "cfg(cond, uncond, scale)", "cfg(uncond, cond, scale)",
           "test_at_scale_zero_the_prompts_are_not_heard"),
    Mutant("trained", "model.of_prompts([negative])", 'model.of_prompts([""])',
           "test_at_scale_zero_the_prompts_are_not_heard"),
    Mutant("trained", "cond if scale == 1 else", "",
           "test_at_scale_one_the_model_itself_answers"),
    Mutant("trained", "else prompts, scale, negative)", "else prompts, scale)",
           "test_one_prompt_serves_all_images"),
    Mutant("trained", "[prompts[i] for i in numbers]", "prompts[: len(numbers)]",
           "test_an_image_depends_on_seed_number_and_its_prompt_alone", (0.0,)),
    Mutant("trained", "[generator_for(seed, i) for i in numbers]",
           "[generator_for(seed, i) for i in range(len(numbers))]",
           "test_an_image_depends_on_seed_number_and_its_prompt_alone", (1.0,)),
]
EDITING = [
    Mutant("editing", "round(strength * times[0])", "round((1 - strength) * times[0])",
           "test_shortened_grids"),
    Mutant("editing", "lambda t: t >= first", "lambda t: t > first", "test_shortened_grids"),
    Mutant("editing", "_noised(x_0, eps, times[0], schedule)", "x_0 + eps",
           "test_image_to_image_follows_the_ode", (0.5,)),
    Mutant("editing", "eps if strength == 1 else ", "",
           "test_strength_one_is_the_plain_sampler", (ddim, [700, 400, 30, 0])),
    Mutant("editing", "repeats if s > 0 else 1", "repeats",
           "test_inpainting_equals_numpy", (3,)),
    Mutant("editing", "_renoised(x, noise(), s, t, schedule) if again", "x if again",
           "test_inpainting_equals_numpy", (3,)),
    Mutant("editing", "_renoised(x, noise(), s, t, schedule) if again",
           "_noised(x, noise(), t, schedule) if again",
           "test_repeats_lead_to_what_is_unknown_given_what_is_known", (0,)),
    Mutant("editing", "_noised(known, noise(), s, schedule), step.x_t",
           "_noised(known, noise(), t, schedule), step.x_t",
           "test_what_is_known_comes_back_exactly", (ddim, 1)),
    Mutant("editing", "torch.lerp(_noised(known, noise(), s, schedule), step.x_t, mask)",
           "torch.lerp(step.x_t, _noised(known, noise(), s, schedule), mask)",
           "test_what_is_known_comes_back_exactly", (ddim, 1)),
    Mutant("editing", "torch.lerp(known, step.x0_hat, mask)", "step.x0_hat",
           "test_a_mask_of_zeros_is_the_picture"),
    Mutant("editing", "((1 - weight) * angle).sin(), (weight * angle).sin()",
           "(weight * angle).sin(), ((1 - weight) * angle).sin()",
           "test_slerp_ends_exactly", (torch.float32,)),
    Mutant("editing", "]) / angle.sin()", "])", "test_slerp_turns_one_noise_into_the_other"),
    Mutant("editing", "angle.sin() > 1e-6", "angle.sin() > 2",
           "test_the_line_shrinks_and_the_arc_does_not"),
    Mutant("editing", "angle.sin() > 1e-6", "angle.sin() > -1",
           "test_where_there_is_no_arc_the_line_is_taken"),
    Mutant("editing", "i / (count - 1)", "i / count", "test_interpolate_is_an_even_series"),
    Mutant("editing", "cfg(last, first, weight)", "cfg(first, last, weight)",
           "test_mixed_leans_from_one_denoiser_to_another"),
    Mutant("editing", "(cond(x_t, t) - u)", "cond(x_t, t)",
           "test_independent_wishes_are_fulfilled_together", (300,)),
    Mutant("editing", "_noised(x0_hat, eps, t, schedule)",
           "_noised(x0_hat, eps, s, schedule)", "test_inversion_equals_numpy"),
    Mutant("editing", "before.clamp(min=1)", "_batch_of(t, x)", "test_inversion_equals_numpy"),
]
TELLING = [
    Mutant("text_trials", "low, high = min(digits), max(digits)",
           "low, high = digits[0], digits[-1]", "test_each_scene_has_its_class"),
    Mutant("text_trials", "high * (high + 1) // 2", "high * (high - 1) // 2",
           "test_each_scene_has_its_class"),
    Mutant("text_trials", "None in digits", "None in digits[1:]",
           "test_what_a_class_cannot_say_is_not_said"),
    Mutant("text_trials", "drop_labels(labels[i], ", "drop_labels(labels[: len(i)], ",
           "test_labels_belong_to_their_latents"),
    Mutant("text_trials", '"language": "en", ', "",
           "test_words_belong_to_their_latents"),
    Mutant("text_trials", ', "attributes": NAMED', "",
           "test_words_belong_to_their_latents"),
    Mutant("text_trials", '"ink", "paper")', '"ink", "paper", "places")',
           "test_words_belong_to_their_latents"),
    Mutant("text_trials", "settings.predicts, settings.weighting", "settings.predicts",
           "test_the_loss_is_that_of_v", ("class label",)),
    Mutant("text_trials", "scale=SCALE, **told", "**told",
           "test_pictures_are_what_each_network_is_told", ("both",)),
    Mutant("text_trials", "[captions[i] for i in numbers]", "[captions[i % 100] for i in numbers]",
           "test_pictures_are_what_each_network_is_told", ("class label",)),
]
BINDING = [
    Mutant("binding_trials", "8 * ink[0] + ink[1]", "8 * ink[0]",
           "test_each_pair_of_inks_has_its_class"),
    Mutant("binding_trials", "_named(_SEEN[i % len(_SEEN)]", "_named(HELD_OUT[i % 8]",
           "test_training_scenes_show_what_is_seen_and_nothing_that_is_held_out"),
    Mutant("binding_trials", "glyphs if order < 0.5 else glyphs[::-1]", "glyphs",
           "test_prompts_name_everything", ("seen",)),
    Mutant("binding_trials", "pool.starts[labels]", "pool.starts[labels.flip(1)]",
           "test_training_scenes_show_what_is_seen_and_nothing_that_is_held_out"),
    Mutant("binding_trials", "(chosen * pool.counts[labels]).long()", "0", "test_scenes_differ"),
]
AUX_LOSSES = [
    Mutant("aux_losses", "-torch.pdist", "torch.pdist",
           "test_diversity_is_minus_the_mean_distance"),
    Mutant("aux_losses", "- guess.x_t)", "+ guess.x_t)", "test_the_right_consistency_is_nothing",
           ("v",)),
    Mutant("aux_losses", "alpha.square(), sigma", "alpha.square(), sigma.square()",
           "test_the_other_rates_are_what_they_say"),
    Mutant("aux_losses", "schedule.beta[t - 1]", "schedule.beta[t - 2]",
           "test_the_other_rates_are_what_they_say"),
    Mutant("aux_losses", "to_x0(*asked), to_eps(*asked)", "to_eps(*asked), to_x0(*asked)",
           "test_both_losses_come_from_one_answer"),
    Mutant("aux_losses", "[g.norm() for g", "[g.norm() ** 2 for g",
           "test_gradient_norm_is_that_of_the_training"),
]
# fmt: on
MUTANTS = CAPTIONS + READERS + SCENES + METRICS + SAMPLERS + SCHEDULES + GUIDANCE + VAE
MUTANTS += ATTENTION + LAYERS + UNET + TEXT + TEXT_TO_IMAGE + EDITING + LOSSES + FOLDERS + PNGS
MUTANTS += OBEDIENCE + VAE_JOBS + PROMPT_JOBS + TRAINED + TELLING + BINDING
MUTANTS += AUX_LOSSES


def with_text_changed(mutant):
    """Return the mutant's file as a module of its own."""
    path = PACKAGE / f"{mutant.file}.py"
    text = path.read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1, f"{mutant.old!r} must stand exactly once in {path.name}"
    module = ModuleType(f"mnistlib.{mutant.file}")
    exec(compile(text.replace(mutant.old, mutant.new), str(path), "exec"), module.__dict__)
    return module


def put_in_place(module, tests, patch):
    """Replace in a test file what it imported from the library's file."""
    for name, thing in vars(tests).items():
        if getattr(thing, "__module__", None) == module.__name__ and hasattr(module, name):
            patch.setattr(tests, name, getattr(module, name))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.file}: {m.new}")
def test_mistake_is_caught(mutant, monkeypatch):
    tests = importlib.import_module(f"test_{mutant.file}")
    test = getattr(tests, mutant.test)
    args = mutant.args() if callable(mutant.args) else mutant.args
    test(*args)  # passes with the library as it is
    put_in_place(with_text_changed(mutant), tests, monkeypatch)
    with pytest.raises(AssertionError):
        test(*args)
