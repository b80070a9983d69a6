"""The exception tree: exit codes, and the hint for an unknown name."""

from __future__ import annotations

import inspect
import pickle

import pytest

from medisyn import errors

# Exit code 2 is what the user can mend, 1 a failure.
EXIT_CODES = {
    "MedisynError": 1,
    "InputError": 2,
    "ReadError": 2,
    "RangeError": 2,
    "SeriesError": 2,
    "ConfigError": 2,
    "CorpusError": 2,
    "ModelError": 2,
    "MissingDependency": 2,
    "BusyError": 2,
    "TrainingError": 1,
    "WorkerError": 1,
}


def test_every_error_stands_in_the_table_with_its_exit_code():
    classes = {name: thing for name, thing in vars(errors).items() if inspect.isclass(thing)}
    ours = {name: thing for name, thing in classes.items() if thing.__module__ == "medisyn.errors"}
    tree = {name: thing.exit_code for name, thing in ours.items()}
    assert tree == EXIT_CODES


@pytest.mark.parametrize("name", EXIT_CODES)
def test_an_error_is_ours_and_keeps_its_text_between_processes(name):
    error = getattr(errors, name)("series 12: a slice is missing")
    assert isinstance(error, errors.MedisynError)
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == "series 12: a slice is missing"


def test_input_errors_are_value_errors_for_a_notebook():
    assert issubclass(errors.InputError, ValueError)
    assert not issubclass(errors.TrainingError, ValueError)


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("medisyn-v2-tyni", " Did you mean 'medisyn-v2-tiny'?"),
        ("medisyn-v2-tiny", " Did you mean 'medisyn-v2-tiny'?"),
        ("something else", ""),
        ("", ""),
    ],
)
def test_the_nearest_name_is_suggested(word, hint):
    assert errors.closest(word, ["starter-image", "medisyn-v2-tiny"]) == hint
