"""Closeness: every measure finds its copy, the paper's figure is kept apart, and strata that are unknown."""

import numpy as np
import pytest
from PIL import Image

from build_audit import smooth
from medisyn.corpus.duplicates import phash
from medisyn.errors import InputError
from medisyn.evaluation.copies import Looked, TrainingSet, closeness
from medisyn.evaluation.descriptor import CopyDescriptor
from medisyn.evaluation.patches import flipped, patch_distance
from medisyn.evaluation.search import hash_values


def means(images):
    """A poor encoder: the mean of each quarter, so that mirrored images differ."""
    return np.stack([i.reshape(2, i.shape[0] // 2, 2, -1).mean(axis=(1, 3)).ravel() for i in images]).astype(np.float32)


def hashes(images):
    return hash_values([phash(Image.fromarray(image)) for image in images])


def training_of(images, strata):
    def read(number, size):
        image = images[number]
        return image if image.shape[:2] == size else np.asarray(Image.fromarray(image).resize(size[::-1]))

    return TrainingSet(means(images), CopyDescriptor()(images), hashes(images), strata, read)


def looked_of(images, strata, flips=("none", "horizontal")):
    turned = {flip: [np.ascontiguousarray(flipped(image, flip)) for image in images] for flip in flips}
    return Looked(
        features_QD=means(images),
        descriptors={flip: CopyDescriptor()(turned[flip]) for flip in flips},
        hashes={flip: hashes(turned[flip]) for flip in flips},
        strata=strata,
        read=images.__getitem__,
    )


TRAINING = [smooth(number) for number in range(12)]
STRATA = ["x"] * 6 + ["y"] * 6


def test_each_measure_names_the_copy_and_its_flip():
    queries = [TRAINING[2], np.ascontiguousarray(TRAINING[4][:, ::-1]), smooth(50)]
    found = list(closeness(looked_of(queries, ["x"] * 3), training_of(TRAINING, STRATA), neighbours=3))
    for close, number, flip in zip(found, (2, 4), ("none", "horizontal"), strict=False):
        assert (close.distance.training, close.distance.flip, close.distance.value) == (number, flip, 0.0)
        assert (close.similarity.training, close.similarity.flip) == (number, flip)
        assert close.similarity.value == pytest.approx(1.0, abs=1e-6)
        assert (close.bits.training, close.bits.flip, close.bits.value) == (number, flip, 0.0)
    assert found[2].distance.value > 0.1
    assert found[2].bits.value > 4


def test_the_paper_s_figure_is_the_first_neighbour_of_the_stratum_unflipped():
    query = smooth(60)
    found = next(iter(closeness(looked_of([query], ["y"]), training_of(TRAINING, STRATA), neighbours=4)))
    unit = means([query])[0] / np.linalg.norm(means([query])[0])
    theirs = means(TRAINING) / np.linalg.norm(means(TRAINING), axis=1, keepdims=True)
    cosines = theirs @ unit
    first = 6 + int(np.argmax(cosines[6:]))
    assert (found.paper.training, found.paper.flip) == (first, "none")
    assert found.paper.value == patch_distance(query, TRAINING[first])
    assert found.cosine == pytest.approx(cosines[first], abs=1e-6)
    assert found.distance.value <= found.paper.value


def test_a_copy_in_another_stratum_is_found_by_its_hash_alone():
    copy = TRAINING[9]
    found = next(iter(closeness(looked_of([copy], ["x"]), training_of(TRAINING, STRATA), neighbours=1)))
    assert (found.bits.training, found.bits.value) == (9, 0.0)
    assert (found.distance.training, found.distance.value) == (9, 0.0)
    assert found.paper.training < 6


@pytest.mark.parametrize("stratum", ["", "z"])
def test_an_unknown_stratum_is_compared_with_all(stratum):
    found = list(closeness(looked_of([TRAINING[9], TRAINING[1]], [stratum, "x"]), training_of(TRAINING, STRATA)))
    assert (found[0].paper, found[0].cosine) == (None, None)
    assert (found[0].distance.training, found[0].distance.value) == (9, 0.0)
    assert found[1].paper is not None


def test_images_of_several_sizes():
    small = np.asarray(Image.fromarray(TRAINING[3]).resize((48, 32)))
    found = list(closeness(looked_of([small, TRAINING[5]], ["x", "x"]), training_of(TRAINING, STRATA)))
    assert [close.distance.training for close in found] == [3, 5]
    assert found[0].distance.value < 0.05


def test_the_answer_of_one_image_does_not_depend_on_the_others():
    training = training_of(TRAINING, STRATA)
    images = [smooth(number) for number in range(70, 76)]
    together = list(closeness(looked_of(images, ["x", "y"] * 3), training))
    alone = [
        next(iter(closeness(looked_of([image], [name]), training)))
        for image, name in zip(images, ["x", "y"] * 3, strict=True)
    ]
    assert [(c.distance, c.bits) for c in together] == [(c.distance, c.bits) for c in alone]


@pytest.mark.parametrize("flips", [("horizontal",), ("none", "sideways")])
def test_flips_are_checked(flips):
    looked = looked_of([smooth(0)], ["x"], ("none",))
    looked = Looked(looked.features_QD, dict.fromkeys(flips), dict.fromkeys(flips), looked.strata, looked.read)
    with pytest.raises(InputError, match="flips must hold 'none' and be among none, horizontal"):
        list(closeness(looked, training_of(TRAINING, STRATA)))


def test_a_training_set_must_be_whole():
    with pytest.raises(InputError, match="at least 1 of each, got 2, 2, 2 and 1"):
        TrainingSet(np.ones((2, 3)), np.ones((2, 3)), np.zeros(2, np.uint64), ["x"], lambda n, s: TRAINING[n])
    with pytest.raises(InputError, match="got 0, 0, 0 and 0"):
        TrainingSet(np.ones((0, 3)), np.ones((0, 3)), np.zeros(0, np.uint64), [], lambda n, s: TRAINING[n])
