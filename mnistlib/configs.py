"""The settings of every training run."""

from dataclasses import dataclass

from mnistlib.classifier import DigitFeaturesConfig, NoisyClassifierConfig
from mnistlib.objective import Predicts, Weighting
from mnistlib.schedules import make_schedule, make_times
from mnistlib.settings import added
from mnistlib.train import TrainConfig
from mnistlib.types import InputError
from mnistlib.unet import UNetConfig
from mnistlib.vae import VaeConfig

__all__ = [
    "ClassifierSettings",
    "DiffusionSettings",
    "FeatureSettings",
    "FolderSettings",
    "FolderVaeSettings",
    "JointSettings",
    "LatentSettings",
    "PromptSettings",
    "ReaderSettings",
    "SceneVaeSettings",
    "Settings",
    "VaeSettings",
]


@dataclass(frozen=True)
class FeatureSettings:
    """Settings of ``digit_features``.

    Attributes:
        shift: largest random shift of a training image in pixels, either way.
        judged: how many training digits the reference statistics are measured on.
        held_out: how many of the last training digits are kept from the training; 0 trains on
            all of them, see ``recipes.unseen``.
    """

    model: DigitFeaturesConfig = DigitFeaturesConfig()
    train: TrainConfig = TrainConfig(steps=3800, lr=3e-3, warmup=200, weight_decay=0.05, ema=0.998)
    batch_size: int = 128
    shift: int = 2
    judged: int = 60_000
    held_out: int = added(0)


@dataclass(frozen=True)
class DiffusionSettings:
    """Settings of a diffusion model of pixels.

    Attributes:
        schedule, T: the noise schedule (a key of ``SCHEDULES``) and its number of levels.
        predicts, weighting: what the network answers and how its error counts.
        judged: how many samples the finished model is judged with, at ``judge_steps`` ddim steps.
        judge_grid, judge_eta: their time grid, a key of ``GRIDS``, and their fresh noise.
        snapshots: steps after which the averaged model is kept, besides the last.
        label_dropout: share of the labels that are forgotten, where the model knows classes.
        held_out: as in ``FeatureSettings``.
    """

    model: UNetConfig = UNetConfig(widths=(16, 32, 64, 128), attention=(2, 3))
    train: TrainConfig = TrainConfig(
        steps=12_500, lr=2e-3, warmup=300, ema=0.9995, checkpoint_every=250
    )
    batch_size: int = 128
    schedule: str = "cosine"
    T: int = 1000
    predicts: Predicts = "v"
    weighting: Weighting = "simple"
    judged: int = 10_000
    judge_steps: int = 50
    snapshots: tuple[int, ...] = (1, 50, 100, 200, 400, 800, 1600, 3200, 6400, 7000)
    label_dropout: float = added(0.1)
    held_out: int = added(0)
    judge_grid: str = added("uniform")
    judge_eta: float = added(1.0)

    def __post_init__(self) -> None:
        # refused now, not after the training
        make_times(self.judge_grid, make_schedule(self.schedule, self.T), self.judge_steps)
        if not 0 <= self.judge_eta <= 1:
            raise InputError(f"judge_eta must lie between 0 and 1, got {self.judge_eta}")
        if self.judged < 2:
            raise InputError(f"judged must be at least 2 samples, got {self.judged}")
        if not 0 <= self.label_dropout <= 1:
            raise InputError(f"label_dropout must lie between 0 and 1, got {self.label_dropout}")

    @property
    def judged_by(self) -> str:
        """The sampler of the judge, in words."""
        times = "" if self.judge_grid == "uniform" else f" of the grid {self.judge_grid}"
        return f"ddim, {self.judge_steps} steps{times}, eta {self.judge_eta:g}"


@dataclass(frozen=True)
class VaeSettings:
    """Settings of an autoencoder.

    Attributes:
        kl_weight: what a nat of the KL divergence costs, in summed squared error of the pixels.
        held_out: as in ``FeatureSettings``.
    """

    model: VaeConfig = VaeConfig()
    train: TrainConfig = TrainConfig(steps=2000, lr=2e-3, warmup=100, ema=0.998)
    batch_size: int = 128
    kl_weight: float = 0.05
    held_out: int = added(0)


@dataclass(frozen=True)
class LatentSettings(DiffusionSettings):
    """Settings of a diffusion model of latents.

    Attributes:
        vae: whose latents: a recipe (its shipped weights) or a .safetensors file.
    """

    vae: str = "vae"


@dataclass(frozen=True)
class ClassifierSettings:
    """Settings of a classifier of noisy images or latents.

    Attributes:
        schedule, T: the noise schedule, which must be that of the diffusion it shall guide.
        noisy: False trains on clean data alone (an ablation of the chapter on guidance).
        vae: whose latents, as in ``LatentSettings``; empty for images.
        held_out: as in ``FeatureSettings``.
    """

    model: NoisyClassifierConfig = NoisyClassifierConfig()
    train: TrainConfig = TrainConfig(steps=4000, lr=1e-3, warmup=200, weight_decay=0.05, ema=0.998)
    batch_size: int = 128
    schedule: str = "cosine"
    T: int = 1000
    noisy: bool = True
    vae: str = "vae"
    held_out: int = added(0)


@dataclass(frozen=True)
class JointSettings(LatentSettings):
    """Settings of the joint training of a latent diffusion and its classifier.

    Of the earlier modes it inherits the weights of one, reconstruction: the frozen autoencoder
    that ``vae`` names. The diffusion network and the classifier start from random weights, as they
    do where each is trained alone, so that the two ways can be compared.

    Attributes:
        classifier: the shape of the classifier.
        classifier_weight: its cross-entropy counts so much beside the diffusion loss.
    """

    classifier: NoisyClassifierConfig = NoisyClassifierConfig()
    classifier_weight: float = 0.1


@dataclass(frozen=True)
class SceneVaeSettings(VaeSettings):
    """Settings of an autoencoder of coloured scenes.

    Attributes:
        two: the share of scenes with two digits.
        judged: how many scenes of each kind the finished model is judged with.
    """

    two: float = 0.5
    judged: int = 2000

    def __post_init__(self) -> None:
        if not 0 <= self.two <= 1 or self.judged < 1:
            raise InputError(
                f"two must lie between 0 and 1, and judged be 1 or more; "
                f"got {self.two} and {self.judged}"
            )


@dataclass(frozen=True)
class ReaderSettings(LatentSettings):
    """Settings of a latent diffusion that reads captions.

    Attributes:
        label_dropout: share of the captions that the empty one replaces.
        max_length, text_width, text_layers, text_heads: see ``TextConfig``.
        pooled: see ``TextToImageConfig``; the words reach the UNet where its ``context_dim`` is
            not 0.
    """

    max_length: int = 64
    text_width: int = 128
    text_layers: int = 2
    text_heads: int = 4
    pooled: bool = True


@dataclass(frozen=True)
class PromptSettings(ReaderSettings):
    """Settings of a latent diffusion that reads captions of scenes.

    Attributes:
        scenes: how many scenes are painted and encoded before the training, to draw from; their
            captions are new each time.
        two: as in ``SceneVaeSettings``.
        in_order: over so many steps, the share of captions that have to mention the left digit
            first falls from all to none (a curriculum, Bengio et al. 2009). Who is left hangs on
            the order and the word between; 16,000 steps that meet both at once do not find out.
        fine: as in ``describe``, for training; the judge's prompts keep to ``captions.SHARE``.
        as_decoded: captions name strokes and slants as the decoder shows them, not as painted.
        judged: how many samples of each kind the finished model is judged with.
    """

    vae: str = "rgb_vae"
    scenes: int = 160_000
    two: float = 0.5
    in_order: int = added(0)
    fine: float = added(0.5)
    as_decoded: bool = added(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.two <= 1 and 0 <= self.fine <= 1):
            raise InputError(f"two and fine must lie between 0 and 1; got {self.two}, {self.fine}")
        if self.scenes < 1 or self.in_order < 0:
            got = f"got {self.scenes}, {self.in_order}"
            raise InputError(f"scenes must be 1 or more, in_order 0 or more; {got}")
        if not self.vae:
            raise InputError("captions need an autoencoder of coloured scenes; name one with vae")


@dataclass(frozen=True)
class FolderVaeSettings(VaeSettings):
    """Settings of an autoencoder of the pictures in a folder.

    Attributes:
        folder: see ``folders.captioned_folder``.
        size: sides of the squares that the pictures are made, in pixels.
        judged: how many pictures the latent scale and the finished model are measured on, at most.
        held_out: how many of the folder's last pictures are kept from the training.
    """

    folder: str = ""
    size: int = 512
    judged: int = 128

    def __post_init__(self) -> None:
        if self.size < 1 or self.size % self.model.down or self.judged < 1:
            raise InputError(
                f"size must be a multiple of {self.model.down}, and judged be 1 or more; "
                f"got {self.size} and {self.judged}"
            )


@dataclass(frozen=True)
class FolderSettings(ReaderSettings):
    """Settings of a latent diffusion that reads the captions of the pictures in a folder.

    Attributes:
        folder, size, held_out: as in ``FolderVaeSettings``.
        max_length: the most tokens of a caption, the start included; longer ones are cut.
        judged: how many pictures the finished model is judged with, at most.
    """

    vae: str = "runs/folder_vae/folder_vae.safetensors"
    folder: str = ""
    size: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 1 or self.max_length < 2 or not self.vae:
            raise InputError(
                f"size must be positive, max_length 2 or more, and vae name an autoencoder; "
                f"got {self.size}, {self.max_length} and {self.vae!r}"
            )


Settings = FeatureSettings | DiffusionSettings | VaeSettings | ClassifierSettings
