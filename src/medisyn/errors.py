"""The one exception tree.

A message says what happened, where, the value received, what was allowed and the next step. It never holds a
patient name, id, date or source path: only pseudonymous keys.
The command line prints the message on one line and leaves with `exit_code`: 2 for what the user can mend, 1 for a
failure.
"""

import difflib
from collections.abc import Iterable


class MedisynError(Exception):
    """Every error that MediSyn raises on purpose."""

    exit_code = 1


class InputError(MedisynError, ValueError):
    """A value, file or option that the user gave is wrong."""

    exit_code = 2


class ReadError(InputError):
    """A file cannot be read as what it claims to be; curation quarantines it with this message."""


class RangeError(InputError):
    """Pixel values do not fit the value range they are said to have."""


class SeriesError(ReadError):
    """The slices of a DICOM series do not form a volume."""


class ConfigError(InputError):
    """An unknown preset or key, or a value that a configuration refuses."""


class CorpusError(InputError):
    """A corpus or a source description that breaks the format."""


class ModelError(InputError):
    """A model folder or weight file that is missing, incomplete or of a kind we refuse."""


class MissingDependency(MedisynError):
    """A feature needs a package that is not installed; the message holds the install line."""

    exit_code = 2


class BusyError(MedisynError):
    """Another process works on the same output folder."""

    exit_code = 2


class TrainingError(MedisynError):
    """Training cannot go on, for instance because the loss is not finite."""


class WorkerError(MedisynError):
    """A task failed in a worker process."""


def closest(word: str, allowed: Iterable[str]) -> str:
    """The hint for an unknown name: ` Did you mean 'x'?`, or nothing when no allowed name is near."""
    matches = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f" Did you mean {matches[0]!r}?" if matches else ""
