"""Settings are nested frozen dataclasses: changed from text here, and read back from JSON.

A field is named by its last word (``lr``); where two groups share a word, the second group's field
is ``group.word`` (``classifier.widths``).
"""

import dataclasses
import difflib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from mnistlib.types import InputError

__all__ = ["added", "as_json", "check_unchanged", "flat", "from_dict", "override"]


def added(default: Any) -> Any:
    """A field that older checkpoints lack: they mean its default."""
    return dataclasses.field(default=default, metadata={"added": True})


def override(settings: Any, changes: dict[str, str]) -> Any:
    """Settings with some fields set from text.

    Raises:
        InputError: unknown field, or text that is not of the field's type.
    """
    where = _fields(settings)
    by_group: dict[str | None, dict[str, Any]] = {}
    for key, text in changes.items():
        if key not in where:
            near = difflib.get_close_matches(key, where, n=3) or sorted(where)
            raise InputError(f"unknown setting {key!r}; did you mean {', '.join(near)}?")
        holder = settings if where[key] is None else getattr(settings, where[key])
        by_group.setdefault(where[key], {})[_word(key)] = _parse(key, text, holder)
    for group, values in by_group.items():  # all at once: a model's settings depend on each other
        if group is not None:
            values = {group: replace(getattr(settings, group), **values)}
        settings = replace(settings, **values)
    return settings


def flat(settings: Any) -> dict[str, Any]:
    """Every setting by the name that ``override`` knows it by."""
    return {
        key: getattr(settings if group is None else getattr(settings, group), _word(key))
        for key, group in _fields(settings).items()
    }


def as_json(settings: Any) -> str:
    """Every setting as text for people and for ``check_unchanged``."""
    return json.dumps(flat(settings), indent=1)


# What matters when a training is saved or judged, and to no weight.
_AFTERWARDS = {"checkpoint_every", "snapshots", "judged", "judge_steps", "judge_grid", "judge_eta"}


def check_unchanged(settings: Any, path: Path) -> None:
    """Refuse settings that differ from those which an earlier run wrote to ``path``.

    A setting that was ``added`` since meant its default then; what touches no weight may change.

    Raises:
        InputError: it names what differs, and what it was.
    """
    before, wanted = json.loads(path.read_text()), json.loads(as_json(settings))
    before = _meant_by_older_runs(settings) | before
    changed = [k for k in wanted if k not in _AFTERWARDS and before.get(k) != wanted[k]]
    if changed:
        was = ", ".join(f"{k}={before.get(k)}" for k in changed)
        raise InputError(f"{path.parent} was trained with {was}; use the same to resume")


def _meant_by_older_runs(settings: Any) -> dict[str, Any]:
    """The settings that were ``added``, with their defaults."""
    found = {}
    for key, group in _fields(settings).items():
        holder = settings if group is None else getattr(settings, group)
        field = next(f for f in dataclasses.fields(holder) if f.name == _word(key))
        if "added" in field.metadata:
            found[key] = field.default
    return found


def _fields(settings: Any) -> dict[str, str | None]:
    """Each field of the settings and of the dataclasses in it -> the dataclass it stands in."""
    found: dict[str, str | None] = {}
    for f in dataclasses.fields(settings):
        value = getattr(settings, f.name)
        if dataclasses.is_dataclass(value):
            for g in dataclasses.fields(value):
                found[f"{f.name}.{g.name}" if g.name in found else g.name] = f.name
        else:
            found[f.name] = None
    return found


def _word(key: str) -> str:
    return key.rpartition(".")[2]


def _parse(key: str, text: str, holder: Any) -> Any:
    """Text -> a value of the type that the field ``key`` of ``holder`` has now."""
    old = getattr(holder, _word(key))
    try:
        if isinstance(old, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(old, tuple):
            return tuple(int(part) for part in text.split(",") if part)
        value = type(old)(text)
    except (ValueError, KeyError) as e:
        kind = "a list such as 16,32" if isinstance(old, tuple) else f"a {type(old).__name__}"
        raise InputError(f"{key}={text!r} cannot be used; give {kind}") from e
    choices = get_args(next(f.type for f in dataclasses.fields(holder) if f.name == _word(key)))
    if choices and value not in choices:
        raise InputError(f"{key}={text!r} is unknown; choose one of {', '.join(choices)}")
    return value


def from_dict(cls: type, values: dict[str, Any]) -> Any:
    """Rebuild nested settings from the JSON of a checkpoint.

    Raises:
        KeyError: a field is missing, other than one that was ``added`` since.
        TypeError: a field is there that the class does not have.
    """
    unknown = values.keys() - {f.name for f in dataclasses.fields(cls)}
    if unknown:
        raise TypeError(f"{cls.__name__} has no field {', '.join(sorted(unknown))}")
    made = {}
    for f in dataclasses.fields(cls):
        value = values.get(f.name, f.default) if "added" in f.metadata else values[f.name]
        if dataclasses.is_dataclass(f.type):
            value = from_dict(f.type, value)
        made[f.name] = tuple(value) if isinstance(value, list) else value
    return cls(**made)
