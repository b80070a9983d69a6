"""Fixtures that many tests use. Builders of test data are plain functions in build.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from medisyn.cli import ENVIRONMENT

for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach the network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # runs are compared bit for bit; sums depend on the number of threads


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; tests that need it skip where it is absent."""
    folder = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no shared/data folder beside the checkout")
    return folder
