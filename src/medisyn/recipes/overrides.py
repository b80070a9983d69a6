"""`--set key=value`: a copy of a frozen configuration with some values changed, each read as its field's type."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from medisyn.errors import ConfigError, closest

Config = TypeVar("Config")


def with_overrides(config: Config, assignments: Sequence[str]) -> Config:
    """Apply `key=value` texts in order. A key is dotted (`train.learning_rate`), or its last part where that is unique.

    Raises ConfigError for text without "=", an unknown or ambiguous key (with the nearest), or a value that is not of
    the field's type; what the configuration itself refuses is raised by it.
    """
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set {assignment!r}: write key=value, for example --set learning_rate=1e-5")
        path = _find(config, key.strip())
        config = _replaced(config, path.split("."), text.strip(), path)
    return config


def keys_of(config: Any, prefix: str = "") -> Iterator[str]:
    """All dotted keys that hold a value, depth first."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from keys_of(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def _find(config: Any, key: str) -> str:
    keys = list(keys_of(config))
    if key in keys:
        return key
    found = [candidate for candidate in keys if candidate.rpartition(".")[2] == key]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"--set {key}: there is more than one such key, write {' or '.join(found)}")
    leaves = {candidate.rpartition(".")[2] for candidate in keys}
    raise ConfigError(f"--set {key}: unknown key.{closest(key, [*keys, *leaves])} All keys: {', '.join(keys)}")


def _replaced(config: Any, path: Sequence[str], text: str, key: str) -> Any:
    name, *rest = path
    if rest:
        return dataclasses.replace(config, **{name: _replaced(getattr(config, name), rest, text, key)})
    kind = typing.get_type_hints(type(config))[name]
    return dataclasses.replace(config, **{name: parse(text, kind, key)})


def parse(text: str, kind: Any, key: str) -> Any:
    """Text as a value of type `kind`: str, int, float, bool, `X | None` ("none") or `tuple[X, ...]` ("1,2,3")."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        if text.lower() == "none":
            return None
        (kind,) = (part for part in typing.get_args(kind) if part is not type(None))
    if typing.get_origin(kind) is tuple:
        return tuple(parse(part.strip(), typing.get_args(kind)[0], key) for part in text.split(",") if part.strip())
    try:
        if kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        if kind in (int, float, str):
            return kind(text)
    except (ValueError, KeyError):
        raise ConfigError(f"--set {key}={text}: expected {_described(kind)}") from None
    raise ConfigError(f"--set {key}: values of this kind cannot be set on the command line")


def _described(kind: Any) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number"}[kind]
