"""What the JSON files of a pipeline folder must hold: model_index.json names classes, a config is an object.

They come from elsewhere, so that each is checked before anything reads a value of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adatsq_pipe.storage.errors import StorageError
from adatsq_pipe.storage.files import read_json_object

INDEX = "model_index.json"
CONFIGS = ("config.json", "*_config.json")
"""Patterns of the files from which a component is made."""


def read_index(folder: Path) -> dict[str, Any]:
    """The folder's model_index.json: class name, [library, class] by component, further values.

    Raises FileNotFoundError, or StorageError for a file in which a name or a component is of another type.
    """
    path = folder / INDEX
    index = _object(path)
    name = index.get("_class_name", "")
    if not isinstance(name, str) and not _is_pair(name):
        raise StorageError(f"{path}: _class_name is {name!r}, not the name of a pipeline class; restore the file")
    for key, value in index.items():
        if key == "_diffusers_version" and not isinstance(value, str):
            raise StorageError(f"{path}: {key} is {value!r}, not a version; restore the file")
        if not key.startswith("_") and not is_component(value) and _has_folder(folder, key):
            raise StorageError(
                f'{path}: {key} is {value!r} in place of ["library", "class"], and there is a folder of that name; '
                "restore the file"
            )
    return index


def is_component(value: object) -> bool:
    """Whether the value of a key of model_index.json names a component, present ([library, class]) or not."""
    return _is_pair(value) or value == [None, None]


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(item, str) for item in value)


def _has_folder(folder: Path, name: str) -> bool:
    try:
        return (folder / name).is_dir()
    except (OSError, ValueError):
        return False


def component_config(folder: Path, part: str) -> dict[str, Any]:
    """The config.json of the component `part`. Raises StorageError if there is none, or it is no config."""
    path = folder / part / "config.json"
    try:
        config = _object(path)
    except FileNotFoundError:
        raise StorageError(f"{folder / part} has no config.json; copy the model folder again") from None
    if not isinstance(name := config.get("_class_name", ""), str):
        raise StorageError(f"{path}: _class_name is {name!r}, not the name of a class; restore the file")
    return config


def check_configs(folder: Path, index: Mapping[str, object]) -> None:
    """Raise StorageError for a config of a component in the folder that is no JSON object."""
    for name in sorted(name for name, value in index.items() if is_component(value)):
        for path in sorted(path for pattern in CONFIGS for path in (folder / name).glob(pattern)):
            _object(path)


def _object(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except ValueError as error:
        raise StorageError(f"{path} is no JSON object ({error}); restore the file") from None
