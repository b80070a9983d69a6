from dataclasses import dataclass, field

import pytest

from medisyn.errors import ConfigError
from medisyn.recipes.overrides import keys_of, parse, with_overrides


@dataclass(frozen=True)
class Inner:
    seed: int = 0
    rate: float | None = None
    layers: tuple[str, ...] = ("a",)

    def __post_init__(self):
        if self.seed < 0:
            raise ConfigError("seed must be 0 or more")


@dataclass(frozen=True)
class Outer:
    name: str = "x"
    fast: bool = False
    seed: int = 7
    inner: Inner = field(default_factory=Inner)
    absent: Inner | None = None


def test_values_are_read_as_their_type():
    changed = with_overrides(
        Outer(), ["name=a=b", "fast=true", "inner.seed=3", "rate=1e-5", "layers=to_q, to_k", "seed = 9"]
    )
    assert changed == Outer("a=b", True, 9, Inner(3, 1e-5, ("to_q", "to_k")))
    assert with_overrides(changed, ["rate=none", "name="]) == Outer("", True, 9, Inner(3, None, ("to_q", "to_k")))
    assert with_overrides(Outer(), []) == Outer()


def test_all_keys_in_order():
    assert list(keys_of(Outer())) == ["name", "fast", "seed", "inner.seed", "inner.rate", "inner.layers", "absent"]


@pytest.mark.parametrize(
    ("assignment", "text"),
    [
        ("seed", "write key=value"),
        ("sede=3", r"unknown key. Did you mean 'seed'\?.*All keys: name, fast"),
        ("inner.sede=3", r"Did you mean 'inner.seed'\?"),
        ("seed=many", "--set seed=many: expected a whole number"),
        ("rate=fast", "--set inner.rate=fast: expected a number"),
        ("fast=maybe", "expected true or false"),
        ("inner.seed=-1", "seed must be 0 or more"),
        ("absent=1", "values of this kind cannot be set"),
    ],
)
def test_what_is_refused(assignment, text):
    with pytest.raises(ConfigError, match=text):
        with_overrides(Outer(), [assignment])


def test_an_ambiguous_key_lists_the_full_ones():
    @dataclass(frozen=True)
    class Two:
        a: Inner = field(default_factory=Inner)
        b: Inner = field(default_factory=Inner)

    with pytest.raises(ConfigError, match=r"more than one such key, write a.seed or b.seed"):
        with_overrides(Two(), ["seed=1"])


def test_whole_numbers_are_not_cut():
    with pytest.raises(ConfigError, match="whole number"):
        parse("1.5", int, "steps")
