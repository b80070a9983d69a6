"""Captions from metadata: templates with `{field}` and optional parts, one drawn per sample by keyed hash.

MediSyn v2 section 4.1: "converting modality information and existing class labels into descriptive text captions".
Example: "Frontal[ ({projection})] chest X-ray image[ showing {finding}]".
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from medisyn.errors import ConfigError, ReadError, closest


@dataclass(frozen=True)
class Template:
    """A parsed caption. A part is text, a field name in a one-tuple, or an optional Template."""

    parts: tuple[str | tuple[str] | Template, ...]

    @property
    def fields(self) -> frozenset[str]:
        """Every field the template names, optional or not."""
        names: set[str] = set()
        for part in self.parts:
            if isinstance(part, Template):
                names |= part.fields
            elif isinstance(part, tuple):
                names.add(part[0])
        return frozenset(names)


def parse(text: str) -> Template:
    """Parse a template. Raises ConfigError for unbalanced brackets, braces or an empty field name."""
    if not text.strip():
        raise ConfigError("a caption template is empty; write at least one word")
    template, rest = _parse(text, 0, text)
    if rest != len(text):
        raise ConfigError(f"caption template {text!r}: ']' at character {rest + 1} closes nothing")
    return template


def _parse(text: str, start: int, whole: str) -> tuple[Template, int]:
    parts: list[str | tuple[str] | Template] = []
    position, literal = start, ""

    def flush() -> None:
        nonlocal literal
        if literal:
            parts.append(literal)
        literal = ""

    while position < len(text) and text[position] != "]":
        if text[position] == "[":
            flush()
            inner, position = _parse(text, position + 1, whole)
            if position >= len(text):
                raise ConfigError(f"caption template {whole!r}: '[' is never closed")
            parts.append(inner)
        elif text[position] == "{":
            flush()
            end = text.find("}", position)
            name = text[position + 1 : end].strip()
            if end < 0 or not name.replace("_", "a").replace(".", "a").isalnum():
                raise ConfigError(f"caption template {whole!r}: '{{' must be followed by a field name and '}}'")
            parts.append((name,))
            position = end
        elif text[position] == "}":
            raise ConfigError(f"caption template {whole!r}: '}}' at character {position + 1} closes nothing")
        else:
            literal += text[position]
        position += 1
    flush()
    return Template(tuple(parts)), position


def check_fields(template: Template, known: Iterable[str], text: str) -> None:
    """Raise ConfigError for a field that nothing fills, with the nearest known name."""
    known = sorted(known)
    for name in sorted(template.fields - set(known)):
        raise ConfigError(
            f"caption template {text!r}: field {name!r} is not defined; "
            f"known: {', '.join(known)}.{closest(name, known)}"
        )


def render(template: Template, values: Mapping[str, str]) -> str:
    """Fill the fields. An optional part with an empty field is dropped; an empty field elsewhere is a ReadError."""
    words = _render(template, values, optional=False)
    assert words is not None
    return " ".join(words.split())


def render_optional(template: Template, values: Mapping[str, str]) -> str:
    """Like `render`, but "" when a field is empty: a label that does not apply."""
    return " ".join((_render(template, values, optional=True) or "").split())


def _render(template: Template, values: Mapping[str, str], optional: bool) -> str | None:
    words = ""
    for part in template.parts:
        if isinstance(part, str):
            words += part
        elif isinstance(part, Template):
            words += _render(part, values, optional=True) or ""
        elif values.get(part[0]):
            words += values[part[0]]
        elif optional:
            return None
        else:
            raise ReadError(
                f"caption: field {part[0]!r} is empty; make that part optional with [ ], or fill the column"
            )
    return words


def draw(templates: Sequence[Template], key: str) -> Template:
    """The template of one sample: fixed by its key, evenly spread over many keys."""
    digest = hashlib.blake2b(key.encode(), digest_size=8, person=b"caption").digest()
    return templates[int.from_bytes(digest, "big") % len(templates)]


def join_words(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`: several findings as running text."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"
