"""Pictures of your own: a folder of them, and a file that says what each one shows.

The layout is that of Hugging Face's ImageFolder: ``metadata.csv`` with the columns ``file_name``
and ``text``, or ``metadata.jsonl`` with a line ``{"file_name": ..., "text": ...}`` for each
picture. Other columns are passed over. Legend: B pictures.
"""

import csv
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mnistlib.pngs import opened
from mnistlib.text import split
from mnistlib.types import InputError

__all__ = ["Captioned", "captioned_folder", "read_pictures"]

_KEYS = ("file_name", "text")


class Captioned(NamedTuple):
    """The pictures of a folder, in the order in which its metadata lists them.

    Attributes:
        folder: where they are.
        names: of their files, seen from the folder.
        texts: what is written of each; the empty text says nothing.
    """

    folder: Path
    names: tuple[str, ...]
    texts: tuple[str, ...]

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files."""
        return tuple(self.folder / name for name in self.names)

    def part(self, which: slice) -> "Captioned":
        """Some of the pictures."""
        return self._replace(names=self.names[which], texts=self.texts[which])

    def sha256(self) -> str:
        """Hash of all names, texts and files, for records; wherever the folder lies."""
        h = hashlib.sha256()
        for name, text, path in zip(self.names, self.texts, self.paths, strict=True):
            h.update(json.dumps([name, text]).encode())
            with open(path, "rb") as f:
                h.update(hashlib.file_digest(f, "sha256").digest())
        return h.hexdigest()


# ---- what is written -----------------------------------------------------------------------


def captioned_folder(path: str | Path) -> Captioned:
    """The pictures that the metadata of a folder lists. They are not opened yet.

    Raises:
        InputError: there is no folder, no metadata or two files of it; a row that cannot be read,
            that is there twice, or that names a file which is missing or outside the folder; no
            row at all, or no word in any text.
    """
    folder = Path(path)
    found, file = {}, _metadata_of(folder)
    for where, row in _rows(file):
        name, text = (_entry(row, key, where) for key in _KEYS)
        name = Path(os.path.normpath(name)).as_posix()
        if Path(name).is_absolute() or name.startswith("../"):
            raise InputError(f"{where}: {name} leaves the folder; move the picture into it")
        if name in found:
            raise InputError(f"{where}: {name} is listed a second time; a picture has one text")
        if not (folder / name).is_file():
            raise InputError(f"{where}: {name} is not there; add the picture or remove the line")
        found[name] = text
    if not found:
        raise InputError(f"{file} lists no picture; write a line for each")
    if not any(map(split, found.values())):
        raise InputError(f"{file} holds no word about any picture; say in text what they show")
    return Captioned(folder, tuple(found), tuple(found.values()))


def _metadata_of(folder: Path) -> Path:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name one that holds pictures and metadata.csv")
    found = [folder / f"metadata.{kind}" for kind in ("csv", "jsonl")]
    found = [path for path in found if path.is_file()]
    if not found:
        raise InputError(
            f"{folder} holds neither metadata.csv nor metadata.jsonl; write one with the "
            "file_name and the text of each picture"
        )
    if len(found) > 1:
        raise InputError(f"{folder} holds both metadata.csv and metadata.jsonl; remove one")
    return found[0]


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row of a metadata file, and where it stands."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            yield from (_csv_rows if file.suffix == ".csv" else _json_rows)(file, lines)
    except UnicodeDecodeError as e:
        raise InputError(f"{file} is not text in UTF-8 ({e.reason}); save it as such") from e


def _csv_rows(file: Path, lines) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(lines, strict=True)
    try:
        missing = set(_KEYS) - set(reader.fieldnames or ())
        if missing:
            raise InputError(f"{file} has no column {min(missing)}; its first line names columns")
        for row in reader:
            yield f"{file}, line {reader.line_num}", row
    except csv.Error as e:
        raise InputError(f"{file}, near line {reader.line_num + 1}: this is not CSV ({e})") from e


def _json_rows(file: Path, lines) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        where = f"{file}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as e:
            raise InputError(f"{where}: this is not JSON ({e.msg}, column {e.colno})") from e
        if not isinstance(row, dict):
            raise InputError(f'{where}: write {{"file_name": "cat.png", "text": "a cat"}}')
        yield where, row


def _entry(row: dict[str, Any], key: str, where: str) -> str:
    """What a row says under a key; only a text may be empty."""
    value = row.get(key)
    if not isinstance(value, str) or (key == "file_name" and not value.strip()):
        raise InputError(f"{where}: there is no {key}; give one, as text")
    return value.strip()


# ---- what is shown -------------------------------------------------------------------------


def read_pictures(paths: Sequence[Path], size: int) -> Tensor:
    """Pictures of any size as squares: float32 (B, 3, size, size) in [-1, 1].

    The largest square around the middle is cut out and resized, several files at a time.

    Raises:
        InputError: as ``pngs.opened``.
    """
    with ThreadPoolExecutor() as pool:
        squares = [*pool.map(lambda path: _square(path, size), paths)]
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _square(path: Path, size: int) -> np.ndarray:
    """One picture, uint8 (size, size, 3)."""
    from PIL import Image, ImageOps

    return np.asarray(ImageOps.fit(opened(path), (size, size), Image.Resampling.BICUBIC))
