"""Every named training run: its settings in both profiles, its network, its job, its judge."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, NamedTuple

from torch import nn

from mnistlib import folder_jobs, jobs, prompt_jobs, vae_jobs
from mnistlib.classifier import (
    DigitFeatures,
    DigitFeaturesConfig,
    NoisyClassifier,
    NoisyClassifierConfig,
)
from mnistlib.configs import (
    ClassifierSettings,
    DiffusionSettings,
    FeatureSettings,
    FolderSettings,
    FolderVaeSettings,
    JointSettings,
    LatentSettings,
    PromptSettings,
    SceneVaeSettings,
    Settings,
    VaeSettings,
)
from mnistlib.joint import Joint, JointConfig
from mnistlib.train import TrainConfig
from mnistlib.unet import UNet, UNetConfig
from mnistlib.vae import Vae, VaeConfig

__all__ = ["RECIPES", "Recipe"]


class Recipe(NamedTuple):
    """How to make one model.

    Attributes:
        full, smoke: the settings of the two profiles that train.
        network: settings -> untrained network.
        job: (settings, training digits, autoencoder or None) -> the loss and the batches that
            ``fit`` needs.
        judge: (trained, training digits, test digits or None, ``find``) -> metrics. A recipe of
            your own pictures gets these where others get digits, see ``sources.learnt``.
    """

    full: Settings
    smoke: Settings
    network: Callable[[Any], nn.Module]
    job: Callable[..., tuple[Callable, Callable]]
    judge: Callable[..., dict[str, Any]]


def _fields_of(settings: Settings) -> dict[str, Any]:
    return {f.name: getattr(settings, f.name) for f in fields(settings)}


_DDPM = DiffusionSettings()
_LATENT = LatentSettings(
    model=UNetConfig(in_channels=4, out_channels=4, widths=(64, 128), attention=(1,), classes=10),
    train=TrainConfig(steps=16_000, lr=1.5e-3, warmup=500, ema=0.9995, checkpoint_every=250),
    judge_steps=25,
    snapshots=(1000, 2000, 4000, 8000),
)
_JOINT = JointSettings(**_fields_of(_LATENT))

_PROMPT = PromptSettings(
    model=UNetConfig(
        in_channels=4,
        out_channels=4,
        widths=(64, 128),
        attention=(0, 1),
        depth=1,
        context_dim=128,
    ),
    train=TrainConfig(steps=16_000, lr=1e-3, warmup=500, ema=0.9995, checkpoint_every=250),
    judged=2000,
    judge_steps=25,
    snapshots=(1000, 2000, 4000, 8000),
    judge_grid="quadratic",
    in_order=4000,
    fine=0.95,
    as_decoded=True,
)

_QUICK = TrainConfig(steps=20, lr=2e-3, warmup=5, ema=0.9, checkpoint_every=10)
_TINY = UNetConfig(widths=(8, 8, 16), attention=(2,), heads=2, time_dim=16)
_TINY_LATENT = replace(_TINY, in_channels=4, out_channels=4, classes=10)
_TINY_CLASSIFIER = NoisyClassifierConfig(widths=(8, 16), time_dim=16)
_SMOKE = DiffusionSettings(
    model=_TINY, train=_QUICK, batch_size=16, judged=64, judge_steps=5, held_out=20
)
_SMOKE_LATENT = LatentSettings(**(_fields_of(_SMOKE) | {"model": _TINY_LATENT}))
_SMOKE_PROMPT = PromptSettings(
    **_fields_of(_SMOKE)
    | {
        "model": replace(_TINY, in_channels=4, out_channels=4, depth=1, context_dim=16),
        "judged": 20,
        "held_out": 200,
    },
    scenes=64,
    text_width=16,
    text_layers=1,
    text_heads=2,
)
_FOLDER = FolderSettings(  # for latents of 4x64x64
    model=UNetConfig(
        in_channels=4,
        out_channels=4,
        widths=(64, 128, 192, 256),
        attention=(1, 2, 3),
        time_dim=256,
        depth=1,
        context_dim=128,
    ),
    train=TrainConfig(steps=60_000, lr=5e-4, warmup=1000, ema=0.9995, checkpoint_every=250),
    batch_size=32,
    judged=128,
    judge_steps=25,
    snapshots=(),
)
_SMOKE_FOLDER = FolderSettings(
    **_fields_of(_SMOKE)
    | {"model": _SMOKE_PROMPT.model, "batch_size": 4, "judged": 4, "held_out": 2},
    text_width=16,
    text_layers=1,
    text_heads=2,
    size=32,
)

RECIPES: dict[str, Recipe] = {
    "digit_features": Recipe(
        full=FeatureSettings(),
        smoke=FeatureSettings(
            model=DigitFeaturesConfig(widths=(8, 16)),
            train=TrainConfig(steps=30, warmup=5, ema=0.9, checkpoint_every=10),
            batch_size=64,
            judged=1000,
            held_out=20,
        ),
        network=lambda s: DigitFeatures(s.model),
        job=jobs.features_job,
        judge=jobs.judge_features,
    ),
    "ddpm": Recipe(
        full=_DDPM,
        smoke=_SMOKE,
        network=lambda s: UNet(s.model),
        job=jobs.diffusion_job,
        judge=jobs.judge_diffusion,
    ),
    "ddpm_class": Recipe(
        full=replace(_DDPM, model=replace(_DDPM.model, classes=10)),
        smoke=replace(_SMOKE, model=replace(_TINY, classes=10)),
        network=lambda s: UNet(s.model),
        job=jobs.diffusion_job,
        judge=jobs.judge_diffusion,
    ),
    "vae": Recipe(
        full=VaeSettings(),
        smoke=VaeSettings(
            model=VaeConfig(widths=(8, 8, 16)), train=_QUICK, batch_size=32, held_out=20
        ),
        network=lambda s: Vae(s.model),
        job=vae_jobs.vae_job,
        judge=vae_jobs.judge_vae,
    ),
    "latent": Recipe(
        full=replace(_LATENT, judge_grid="log_snr", judge_eta=0.85),
        smoke=_SMOKE_LATENT,
        network=lambda s: UNet(s.model),
        job=jobs.diffusion_job,
        judge=jobs.judge_diffusion,
    ),
    "latent_classifier": Recipe(
        full=ClassifierSettings(),
        smoke=ClassifierSettings(model=_TINY_CLASSIFIER, train=_QUICK, batch_size=32, held_out=20),
        network=lambda s: NoisyClassifier(s.model),
        job=jobs.classifier_job,
        judge=jobs.judge_classifier,
    ),
    "joint": Recipe(
        full=replace(_JOINT, train=replace(_JOINT.train, steps=5000)),
        smoke=JointSettings(**_fields_of(_SMOKE_LATENT), classifier=_TINY_CLASSIFIER),
        network=lambda s: Joint(JointConfig(s.model, s.classifier)),
        job=jobs.joint_job,
        judge=jobs.judge_joint,
    ),
    "rgb_vae": Recipe(
        full=SceneVaeSettings(
            model=VaeConfig(in_channels=3, widths=(32, 48, 64)),
            train=TrainConfig(steps=5000, lr=2e-3, warmup=200, ema=0.998, checkpoint_every=250),
            batch_size=64,
        ),
        smoke=SceneVaeSettings(
            model=VaeConfig(in_channels=3, widths=(8, 8, 16)),
            train=_QUICK,
            batch_size=16,
            held_out=200,
            judged=20,
        ),
        network=lambda s: Vae(s.model),
        job=vae_jobs.scene_vae_job,
        judge=vae_jobs.judge_scene_vae,
    ),
    "text_to_image": Recipe(
        full=_PROMPT,
        smoke=_SMOKE_PROMPT,
        network=prompt_jobs.text_to_image,
        job=prompt_jobs.prompt_job,
        judge=prompt_jobs.judge_prompts,
    ),
    "folder_vae": Recipe(
        full=FolderVaeSettings(
            model=VaeConfig(in_channels=3, widths=(32, 64, 96, 128), heads=1),
            train=TrainConfig(steps=20_000, lr=1e-3, warmup=500, ema=0.999, checkpoint_every=250),
            batch_size=8,
        ),
        smoke=FolderVaeSettings(
            model=VaeConfig(in_channels=3, widths=(8, 8, 16, 16)),
            train=_QUICK,
            batch_size=4,
            held_out=2,
            size=32,
            judged=4,
        ),
        network=lambda s: Vae(s.model),
        job=folder_jobs.folder_vae_job,
        judge=folder_jobs.judge_folder_vae,
    ),
    "captioned_folder": Recipe(
        full=_FOLDER,
        smoke=_SMOKE_FOLDER,
        network=folder_jobs.network,
        job=folder_jobs.folder_job,
        judge=folder_jobs.judge_folder,
    ),
}
