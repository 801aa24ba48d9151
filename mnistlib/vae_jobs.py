"""Trainings of autoencoders, of digits and of coloured scenes, and how they are judged."""

from torch import Tensor

from mnistlib import latent
from mnistlib.configs import SceneVaeSettings, VaeSettings
from mnistlib.data import Digits, batch_indices, to_images
from mnistlib.jobs import Find, distance
from mnistlib.losses import reconstruction
from mnistlib.obedience import KINDS, agreements, obedience
from mnistlib.scenes import draw_scenes, measured
from mnistlib.trained import Trained
from mnistlib.vae import Vae

# ---- digits ----------------------------------------------------------------------------------


def vae_job(settings: VaeSettings, digits: Digits, vae: Vae | None = None):
    """Reconstruction: the digits themselves, through a noisy latent."""
    indices = batch_indices(len(digits.labels), settings.batch_size)

    def images_at(seed: int, step: int) -> Tensor:
        return _as_pictures(digits.images[indices(seed, step)], settings.model.in_channels)

    return reconstruction(settings, images_at)


def judge_vae(trained: Trained, digits: Digits, test: Digits | None, find: Find):
    """Measure the latent scale, then how far reconstructions of the test digits lie from real."""
    model, channels = trained.model, trained.settings.model.in_channels
    latent.measure_scale(model, _as_pictures(digits.images, channels))
    images = _as_pictures((test or digits).images, channels)
    back = latent.decode(model, latent.encode(model, images))
    grey = back.mean(1, keepdim=True)
    return distance(grey, find("digit_features")) | {
        "images": len(images),
        "squared_error": float((back - images).square().mean()),
        "scale": round(float(model.scale.mean()), 4),
        "shift": [round(float(s), 4) for s in model.shift.flatten()],
    }


def _as_pictures(raw: Tensor, channels: int) -> Tensor:
    return to_images(raw).expand(-1, channels, -1, -1)


# ---- scenes ----------------------------------------------------------------------------------


def scene_vae_job(settings: SceneVaeSettings, digits: Digits, vae: Vae | None = None):
    """Reconstruction of scenes that are painted as they are needed, no two alike."""
    pool, B = measured(digits), settings.batch_size

    def images_at(seed: int, step: int) -> Tensor:
        return draw_scenes(pool, seed, range(step * B, (step + 1) * B), two=settings.two).images

    return reconstruction(settings, images_at)


def judge_scene_vae(trained: Trained, digits: Digits, test: Digits | None, find: Find):
    """Measure the latent scale, then what can still be read off scenes that were encoded.

    ``painted`` says the same of the scenes themselves: what the reader makes of test digits.
    """
    model, s, eye = trained.model, trained.settings, find("digit_features").model
    known = draw_scenes(measured(digits), 1, range(s.judged), two=s.two)
    latent.measure_scale(model, known.images)
    pool, metrics = measured(test or digits), {"scale": round(float(model.scale.mean()), 4)}
    for kind, (two, unseen) in KINDS.items():
        images, scenes = draw_scenes(pool, 2, range(s.judged), two=two, unseen=unseen)
        back = latent.decode(model, latent.encode(model, images))
        metrics[kind] = {
            "squared_error": float((back - images).square().mean()),
            "read": obedience(agreements(back, scenes, eye), scenes),
            "painted": obedience(agreements(images, scenes, eye), scenes),
        }
    return metrics
