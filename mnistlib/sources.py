"""What a training learns from, and what it never sees: digits, or the pictures of a folder."""

from typing import Any

from mnistlib.data import Digits, holdout, mnist, named_root
from mnistlib.folders import Captioned, captioned_folder
from mnistlib.types import InputError

__all__ = ["count", "described", "digits_of", "first", "learnt", "pictures_of", "unseen"]

Data = Digits | Captioned


def learnt(settings: Any, profile: str) -> tuple[Data, Data | None]:
    """What a training learns from, and what its result is judged by, if there is any.

    Of digits that is MNIST without those that the settings hold out, and the test digits. Where
    the settings name a folder, they are its pictures without those held out, and these.

    Raises:
        InputError: a network is to be told, or to name, fewer classes than the digits have.
    """
    if hasattr(settings, "folder"):
        return pictures_of(settings)
    digits, test = digits_of(profile)
    for shape in (settings.model, getattr(settings, "classifier", None)):
        if 0 < (classes := getattr(shape, "classes", 0)) <= int(digits.labels.max()):
            raise InputError(f"digits have 10 classes, not {classes}; change classes")
    return (holdout(digits, settings.held_out)[0] if settings.held_out else digits), test


def unseen(settings: Any, profile: str) -> tuple[str, Data]:
    """Digits that a training does not learn from, and what a measurement on them is called.

    "validation": the training digits that the settings hold out. A choice may rest on them, such
    as which step was the best. "test": where nothing is held out, because the settings are chosen
    and the final training learns from every digit, only test digits are left. One may look at
    them while it runs, and report them; a choice that rests on them would make them training data.

    A folder has no test pictures. Where nothing is held out, its pictures are measured
    themselves, and that is called "seen".

    A model of latents inherits an autoencoder, which should have held out the same digits.

    Raises:
        InputError: there are neither.
    """
    if hasattr(settings, "folder"):
        pictures, kept = pictures_of(settings)
        return ("seen", pictures) if kept is None else ("validation", kept)
    digits, test = digits_of(profile)
    if settings.held_out:
        return "validation", holdout(digits, settings.held_out)[1]
    if test is None:
        raise InputError("the small set has no test digits to watch; set held_out to 500, say")
    return "test", test


def digits_of(profile: str) -> tuple[Digits, Digits | None]:
    """Training digits, and the test digits where they can be had."""
    if profile == "smoke" and named_root() is None:
        return mnist(source="small"), None
    digits = mnist(source="auto" if profile == "smoke" else "full")
    return digits, mnist(train=False)


def pictures_of(settings: Any) -> tuple[Captioned, Captioned | None]:
    """The pictures of a folder that a training learns from, and the last ones, if held out.

    Raises:
        InputError: no folder is named, it cannot be used, or nothing would be left to train on.
    """
    if not settings.folder:
        raise InputError("name the folder of your pictures: --set folder=PATH")
    whole, n = captioned_folder(settings.folder), settings.held_out
    if n == 0:
        return whole, None
    if not 0 < n < len(whole.names):
        raise InputError(f"cannot hold out {n} of {len(whole.names)} pictures; change held_out")
    return whole.part(slice(None, -n)), whole.part(slice(-n, None))


def count(data: Data) -> int:
    """How many digits or pictures there are."""
    return len(data.texts if isinstance(data, Captioned) else data.labels)


def first(data: Data, n: int) -> Data:
    """The first n of them, or all."""
    if isinstance(data, Captioned):
        return data.part(slice(n))
    return Digits(data.images[:n], data.labels[:n], data.source)


def described(data: Data) -> dict[str, Any]:
    """What a record says of them."""
    of_folder = isinstance(data, Captioned)
    source = data.folder.resolve().name if of_folder else data.source
    what = "pictures" if of_folder else "digits"
    return {"source": source, "sha256": data.sha256(), what: count(data)}
