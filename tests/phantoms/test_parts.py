"""The parts of a phantom: grid, soft edges, noise lattice, capsules, trees."""

from __future__ import annotations

import numpy as np
import pytest

from medisyn.phantoms import grid
from medisyn.phantoms.chest import Chest
from medisyn.phantoms.grid import Pose, ellipsoid, slabs, smooth_union
from medisyn.phantoms.patient import draw_patient
from medisyn.phantoms.survey import survey
from medisyn.phantoms.trees import grow_trees, labels_at
from medisyn.phantoms.tubes import chain, curve, join, occupancy

STRAIGHT = Pose(0.0, (0.0, 0.0, 0.0))


@pytest.fixture(scope="module")
def chest() -> Chest:
    return Chest(draw_patient(np.random.default_rng(11), []))


def whole(size: int) -> grid.Grid:
    (only,) = slabs(size, STRAIGHT, slab_voxels=size**3)
    return only


# ---- grid


@pytest.mark.parametrize("size", [32, 65, 512])
def test_the_field_of_view_does_not_depend_on_the_size(size):
    affine = grid.affine(size)
    first, last = affine @ [-0.5, -0.5, -0.5, 1], affine @ [size - 0.5, size - 0.5, size - 0.5, 1]
    np.testing.assert_allclose(first[:3], [-176, -176, -160])
    np.testing.assert_allclose(last[:3], [176, 176, 160])


def test_slabs_hold_every_slice_once_and_know_where_they_are():
    parts = list(slabs(20, STRAIGHT, slab_voxels=20 * 20 * 7))
    assert [(part.first, part.shape[0]) for part in parts] == [(0, 7), (7, 7), (14, 6)]
    heights = np.concatenate([part.z_D for part in parts])
    np.testing.assert_allclose(heights, -152 + 16 * np.arange(20))


def test_body_coordinates_are_the_pose_undone():
    pose = Pose(20.0, (5.0, -3.0, 7.0))
    (part,) = slabs(8, pose, slab_voxels=512)
    body = np.array([part.body_x[0, 2, 5], part.body_y[0, 2, 5], part.body_z[3, 0, 0]])
    np.testing.assert_allclose(pose.to_world(body[None])[0], [part.x_W[5], part.y_H[2], part.z_D[3]], atol=1e-4)


def test_a_soft_edge_is_one_voxel_wide():
    part = whole(32)
    side = part.voxel_mm
    got = part.soft(np.array([-side, -side / 2, -side / 4, 0, side / 4, side / 2, side], dtype=np.float32))
    np.testing.assert_allclose(got, [1, 1, 0.75, 0.5, 0.25, 0, 0], atol=1e-6)


def test_the_noise_of_a_place_is_the_same_on_every_grid():
    lattice = grid.draw_lattice(np.random.default_rng(0), 11.0)
    coarse, fine = lattice.on(whole(16)), lattice.on(whole(48))
    # each voxel of the 16 grid has its centre on a voxel of the 48 grid
    np.testing.assert_allclose(coarse, fine[1::3, 1::3, 1::3], atol=1e-4)
    assert fine.std() > 0.3


def test_an_ellipsoid_is_zero_at_its_surface_and_a_sphere_is_exact():
    at = [np.array([v], dtype=np.float32) for v in (10, 0, 0)]
    assert ellipsoid(*at, (0, 0, 0), (10, 5, 4))[0] == pytest.approx(0, abs=1e-5)
    assert ellipsoid(*at, (0, 0, 0), (4, 4, 4))[0] == pytest.approx(6, rel=1e-5)


def test_a_smooth_union_lies_at_most_a_quarter_of_its_width_below():
    a, b = np.array([0.0, 0.0, 5.0]), np.array([0.0, 10.0, 7.0])
    np.testing.assert_allclose(smooth_union(a, b, 8.0), [-2.0, 0.0, 5 - 36 * 0.25 / 8])


# ---- capsules


def test_a_capsule_has_its_volume():
    # pi r^2 L + 4/3 pi r^3 with r 12, L 80 mm: 43,430 mm^3
    tube = chain([(-40, 3, 1), (40, 3, 1)], 12.0)
    part = whole(64)
    measured = occupancy(tube, part).sum() * part.voxel_mm**3
    assert measured == pytest.approx(np.pi * 144 * 80 + 4 / 3 * np.pi * 1728, rel=0.02)


def test_a_thin_capsule_keeps_its_volume_on_a_coarse_grid():
    tube = chain([(-60, 3, 1), (60, 10, 20)], 1.6)
    part = whole(64)
    measured = occupancy(tube, part).sum() * part.voxel_mm**3
    assert measured == pytest.approx(np.pi * 1.6**2 * tube.length_mm, rel=0.06)
    assert occupancy(tube, part, thin=0.5).sum() == 0  # 1.6 mm is less than half a voxel


def test_slabs_paint_what_the_whole_paints():
    tubes = join(
        [chain([(-40, -20, -90), (50, 30, 120)], [3.0, 9.0]), curve([(0, 0, 0), (20, 20, 60), (0, 50, 90)], 5)]
    )
    parts = [occupancy(tubes, part) for part in slabs(40, STRAIGHT, slab_voxels=40 * 40 * 3)]
    np.testing.assert_array_equal(np.concatenate(parts), occupancy(tubes, whole(40)))


def test_a_curve_passes_through_its_points():
    tubes = curve([(0, 0, 0), (10, 5, 3), (20, -4, 8)], [1.0, 2.0, 3.0], steps=4)
    assert len(tubes) == 8
    np.testing.assert_allclose(tubes.start_N3[4], [10, 5, 3], atol=1e-12)
    np.testing.assert_allclose(tubes.start_N[[0, 4]], [1, 2])


# ---- chest and trees


def test_lungs_lie_beside_the_heart_and_above_the_diaphragm(chest):
    seen = survey(chest)
    x, y, z = seen.points_S3.T.astype(np.float32)
    assert (chest.heart(x, y, z) > 0).all()
    assert (chest.diaphragm(x, y, z) > -3).all()
    litres = len(x) * seen.ml_per_point / 1000
    assert 2 < litres < 7


def test_there_are_five_lobes_in_their_places(chest):
    seen = survey(chest)
    assert set(np.unique(seen.lobe_S)) == {1, 2, 3, 4, 5}
    centre = {label: seen.points_S3[seen.lobe_S == label].mean(axis=0) for label in range(1, 6)}
    assert centre[1][0] > 0 > centre[3][0]  # the patient's left is +x
    assert centre[1][2] > centre[2][2]
    assert centre[3][2] > centre[4][2] > centre[5][2] - 40
    assert centre[5][1] > centre[4][1] + 20  # the lower lobe lies behind the middle lobe
    share = np.bincount(seen.lobe_S)[4] / len(seen.lobe_S)
    assert 0.05 < share < 0.16  # the middle lobe is the smallest


def test_trees_stay_in_their_lobes_and_grow_thinner(chest):
    trees = grow_trees(chest, survey(chest), np.random.default_rng(0))
    for tubes, least in ((trees.airway, 100), (trees.artery, 3000), (trees.vein, 3000)):
        inside = tubes.pick(tubes.lobe_N > 0)
        assert len(inside) > least
        labels = labels_at(chest, (inside.start_N3 + inside.end_N3) / 2)
        assert ((labels > 0) & (labels != inside.lobe_N)).mean() < 0.02
        for lobe in range(1, 6):
            radii = inside.start_N[inside.lobe_N == lobe]
            assert radii[0] == radii.max()  # the root is the widest


def test_every_branch_starts_where_another_ends(chest):
    trees = grow_trees(chest, survey(chest), np.random.default_rng(0))
    veins = trees.vein.pick(trees.vein.lobe_N == 5)
    ends = {tuple(point) for point in veins.end_N3.round(6)}
    starts = [tuple(point) for point in veins.start_N3.round(6)]
    assert sum(start not in ends for start in starts) == 1  # only the root
    counts = np.unique(starts, axis=0, return_counts=True)[1]
    assert counts.max() == 2  # every fork has two branches
