"""Small CT volumes with masks, and a record, for the tests of volume files."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from medisyn.types import HU, ValueRange, Volume

RECORD = {
    "key": "00001-000",
    "prompt": "Large right pleural effusion. No cardiomegaly.",
    "seed": 17,
    "model": "starter-ct",
    "model_digest": "0123456789abcdef",
    "solver": "dpmpp",
    "steps": 20,
    "guidance": 4.0,
}


def upright_affine(spacing: tuple[float, float, float] = (3.0, 1.5, 1.25)) -> np.ndarray:
    """(d, h, w) along S, P, L, the first voxel at (-10, -20, -30) mm."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = spacing
    affine[:, 3] = (-10, -20, -30, 1)
    return affine


def oblique_affine() -> np.ndarray:
    """The upright axes turned by 25 degrees about x and then 40 degrees about z."""
    x, z = np.radians(25), np.radians(40)
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    affine = upright_affine()
    affine[:3, :3] = about_z @ about_x @ affine[:3, :3]
    return affine


def left_handed_affine() -> np.ndarray:
    """The upright axes with d running to the feet."""
    affine = upright_affine()
    affine[2, 0] = -3.0
    return affine


AFFINES = {
    "upright": upright_affine(),
    "oblique": oblique_affine(),
    "left-handed": left_handed_affine(),
    "coronal, w to the right": upright_affine()[:, [1, 0, 2, 3]] @ np.diag([1.0, -1.0, -1.0, 1.0]),
}


def ct(shape: tuple[int, int, int] = (4, 5, 6), affine: np.ndarray | None = None, **fields: Any) -> Volume:
    """A CT in which every voxel has another value: -1000, -993, -986, ... HU."""
    hu = (np.arange(np.prod(shape), dtype=np.float32) * 7 - 1000).reshape(1, *shape)
    return Volume(hu, upright_affine() if affine is None else affine, fields.get("value_range", HU))


def of(values: Any, affine: np.ndarray | None = None, value_range: ValueRange = HU) -> Volume:
    """A volume of these (D, H, W) values."""
    return Volume(np.asarray(values, np.float32)[None], upright_affine() if affine is None else affine, value_range)


def masks(shape: tuple[int, int, int] = (4, 5, 6)) -> dict[str, np.ndarray]:
    """Lobes 1 to 5 in blocks along w, an airway inside lobe 2, a vessel outside all lobes."""
    lobe, airway, vessel = (np.zeros(shape, np.uint8) for _ in range(3))
    for label in range(1, 6):
        lobe[1:3, :, label - 1] = label
    airway[1:3, 2, 1] = 1
    vessel[0, 0, :] = 1
    return {"lobe": lobe, "airway": airway, "vessel": vessel}


def same_patient(shape: tuple[int, int, int], one: np.ndarray, other: np.ndarray) -> Iterator[tuple[Any, Any]]:
    """Index pairs of two grids, the same place in the patient: (index in the first, index in the second)."""
    into = np.linalg.solve(other, one)
    for index in itertools.product(*map(range, shape)):
        place = into @ [*index, 1]
        nearest = np.rint(place[:3]).astype(int)
        np.testing.assert_allclose(place[:3], nearest, atol=1e-3)
        yield index, tuple(int(i) for i in nearest)


def assert_same_patient(written: np.ndarray, affine: np.ndarray, read: np.ndarray, read_affine: np.ndarray) -> None:
    """Both grids hold the same value at the same millimetre, voxel by voxel."""
    assert sorted(written.shape) == sorted(read.shape)
    for here, there in same_patient(written.shape, affine, read_affine):
        assert min(there) >= 0
        assert read[there] == written[here]
