"""A corpus of clips given to what reads pictures: one sentence, before anything is made."""

import pytest

from corpus.test_clip_corpus import described, videos
from medisyn.corpus.curate import curate
from medisyn.corpus.loader import Corpus
from medisyn.errors import CorpusError, InputError
from medisyn.recipes.corpus_images import corpus_images
from medisyn.recipes.finetune import open_corpus


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    videos(folder / "files", count=2)
    curate(described(folder / "files"), folder / "corpus")
    return folder / "corpus"


def test_training_on_pictures_refuses_clips(clips):
    with pytest.raises(CorpusError, match="holds clips, this preset learns pictures; train medisyn-v1-video"):
        open_corpus(clips, "train")


def test_comparing_images_refuses_clips(clips):
    with pytest.raises(InputError, match="holds clips, and this compares images"):
        corpus_images(Corpus(clips), "train")
