r"""The prompt grammar: several prompts in one, each with its weight.

    <cardiomegaly> :0.75 AND <healthy> :0.25        weight behind its term, as in AUTOMATIC1111's user interface
    0.75*<cardiomegaly> AND 0.25*<healthy>          weight in front, as in "Medical diffusion on a budget", section 4.3

AND is a word of its own in capitals; a term without a weight has weight 1. A weight behind its term is a colon and a
number without a space between them, after a space or after a token's `>`. A weight in front is a number and `*`; in a
prompt without AND it counts only before a token, so that "2*3 mm nodule" stays what it is.
`\AND`, `\:`, `\*` and `\\` stand for the characters themselves. A word in angle brackets is always a token.
Everything else is plain text: "and", "1:1 ratio", "Findings: effusion".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from medisyn.errors import InputError, closest
from medisyn.types import Request

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
AND = re.compile(r"(?<!\S)AND(?!\S)")
WEIGHT_BEHIND = re.compile(rf"(?s)(?P<text>.*?(?:\s|>)):(?P<weight>{NUMBER})")
WEIGHT_IN_FRONT = re.compile(rf"(?s)(?P<weight>{NUMBER})\s*\*\s*(?P<text>.*)")
BROKEN_BEHIND = re.compile(rf"(?s).*(?:(?:\s|>):(?P<word>[^\s:]+)|(?<!\\):\s*(?P<number>{NUMBER})|\s:(?P<nothing>))")
BROKEN_IN_FRONT = re.compile(r"(?P<word>[^\s*<\\]+)\s*\*\s*<")
ESCAPED = re.compile(r"\\(\\|:|\*|AND(?!\S))")
LAST_COLON = re.compile(r"(?s)^(.*):(?=\s*[^\s:]*$)")
FIRST_STAR = re.compile(r"^(\S+?\s*|)\*")
TOKEN = re.compile(r"<[^\W\d_][\w-]*>")
ZERO = 1e-9  # of the sum of absolute weights: below it, a sum is rounding


@dataclass(frozen=True)
class Term:
    """One prompt of a composition. `text` is not empty and has no space at its ends; `weight` is finite."""

    text: str
    weight: float = 1.0


def parse_prompt(prompt: str) -> tuple[Term, ...]:
    """The terms of a prompt, at least one.

    Raises InputError for AND without a term on each side, a weight that is no number, two weights for one term, and
    weights that sum to zero.
    """
    parts = AND.split(prompt)
    terms = tuple(_term(part.strip(), number, len(parts)) for number, part in enumerate(parts, start=1))
    total, size = math.fsum(term.weight for term in terms), math.fsum(abs(term.weight) for term in terms)
    if abs(total) <= ZERO * size:
        raise InputError(
            f"the weights of the prompt sum to zero ({' '.join(f'{term.weight:+g}' for term in terms)}): nothing would "
            f"be asked for. Change one of them"
        )
    return terms


def format_prompt(terms: Sequence[Term]) -> str:
    """The prompt that `parse_prompt` reads as these terms, with the weights behind them."""
    return " AND ".join(_written(term) for term in terms)


def terms_for_request(prompt: str) -> tuple[tuple[str, float], ...]:
    """`parse_prompt` as `Request.terms` holds it: () for a prompt that is one plain text of weight 1."""
    terms = parse_prompt(prompt)
    if terms == (Term(prompt),):
        return ()
    return tuple((term.text, term.weight) for term in terms)


def effective_guidance(request: Request) -> float | None:
    """Sum of |weight| times the guidance scale: how far all terms together may push. None: the scale is open."""
    if request.guidance is None:
        return None
    return math.fsum(abs(weight) for _, weight in request.weighted_terms) * request.guidance


def lost_words(request: Request, of_text: Callable[[str], str]) -> str:
    """The words beyond the text window, each term in its own; `of_text` answers for one text. "" when all fit."""
    return " | ".join(lost for text in texts_of(request) if (lost := of_text(text)))


def texts_of(request: Request) -> list[str]:
    """The texts of a request that say what is wanted: its terms, and the prompt that it leads to."""
    return [*(text for text, _ in request.weighted_terms), *([request.toward_prompt] if request.toward_prompt else [])]


def check_tokens(requests: Sequence[Request], known: Callable[[], Collection[str]]) -> None:
    """Raise InputError for a <token> that the model's text encoder has not learnt; `known` lists those it has."""
    used = {
        token: request.key
        for request in requests
        for text in (*texts_of(request), request.negative_prompt)
        for token in TOKEN.findall(text)
    }
    if not used:
        return
    there = [token for token in known() if TOKEN.fullmatch(token)]
    for token, key in used.items():
        if token.casefold() not in {name.casefold() for name in there}:  # text encoders read lower case
            names = f"It knows {', '.join(sorted(there)[:10])}." if there else "It has learnt none."
            raise InputError(f"request {key}: the model knows no token {token}. {names}{closest(token, there)}")


def _term(part: str, number: int, of: int) -> Term:
    if not part:
        if of == 1:
            raise InputError("the prompt is empty: say what the picture shows")
        raise InputError(
            f"term {number} of {of} is empty: AND needs a prompt on each side. Write \\AND for the word itself"
        )
    text, weights = part, []
    if match := WEIGHT_BEHIND.fullmatch(text):
        text, weights = match["text"].strip(), [match["weight"]]
    match = WEIGHT_IN_FRONT.fullmatch(text)
    if match and (of > 1 or match["text"].startswith("<")):
        text, weights = match["text"].strip(), [*weights, match["weight"]]
    if of > 1 or weights:
        _check_weight(text, weights, number)
    weight = float(weights[0]) if weights else 1.0
    if not math.isfinite(weight):
        raise InputError(f"term {number}: weight {weights[0]} is too large; give a finite number")
    return Term(ESCAPED.sub(r"\1", text), weight)


def _check_weight(text: str, weights: list[str], number: int) -> None:
    """Refuse what looks like a weight and was not read as one."""
    if not text:
        raise InputError(f"term {number} has a weight and no text")
    if len(weights) == 2 or (weights and WEIGHT_BEHIND.fullmatch(text)):
        raise InputError(f"term {number} has two weights: give one, as in `text :0.5` or `0.5*text`")
    hint = "A weight is written `text :0.75`, with a space before the colon and none behind it"
    if match := BROKEN_BEHIND.fullmatch(text):
        shown = match["word"] or match["number"] or ""
        raise InputError(f"term {number}: weight {shown!r} is no number in its place. {hint}; write \\: for a colon")
    if match := BROKEN_IN_FRONT.match(text):
        raise InputError(f"term {number}: weight {match['word']!r} is no number. Write 0.75*<token>, or \\* for a star")


def _written(term: Term) -> str:
    text = AND.sub(r"\\AND", term.text.replace("\\", "\\\\"))
    text = LAST_COLON.sub(r"\1\\:", text)
    text = FIRST_STAR.sub(r"\1\\*", text)
    return text if term.weight == 1 else f"{text} :{_number(term.weight)}"


def _number(weight: float) -> str:
    return str(int(weight)) if weight == int(weight) and abs(weight) < 1e15 else repr(weight)
