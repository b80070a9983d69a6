"""The training of the utility classifiers: order of images, the state that is kept, losses, augmentation."""

import numpy as np
import pytest
import torch
from torch import nn

from medisyn.errors import InputError, TrainingError
from medisyn.evaluation.fit import (
    Augmentation,
    BestSettings,
    TrainingImages,
    View,
    apply_view,
    draw_view,
    fit_best,
    predict,
    to_inputs,
)
from medisyn.seeding import generator_for


class Recorder(nn.Module):
    """Scores from the mean colour; remembers the first pixel of every image that it was trained on."""

    def __init__(self, classes=2):
        super().__init__()
        self.head = nn.Linear(3, classes)
        self.seen = []

    def forward(self, rgb_BCHW):
        if self.training:
            self.seen.append(rgb_BCHW[:, 0, 0, 0].int().tolist())
        return self.head(rgb_BCHW.mean(dim=(2, 3)) / 255)


def data(count=10):
    images = np.zeros((count, 4, 4, 3), dtype=np.uint8)
    images[:, :, :, 0] = np.arange(count)[:, None, None]
    return TrainingImages(images, np.eye(2, dtype=np.float32)[np.arange(count) % 2])


def test_every_image_comes_once_per_epoch_in_whole_batches():
    network = Recorder()
    fit_best(network, data(), BestSettings(steps=5, seed=0, batch_size=4, evaluations=1), None)
    assert [len(batch) for batch in network.seen] == [4] * 5
    order = [number for batch in network.seen for number in batch]
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10] != order[10:]


def test_the_best_state_is_kept_and_the_first_of_equals():
    scores = iter([0.5, 0.9, 0.9, 0.1])
    states = []

    def score(network):
        states.append(network.head.weight.detach().clone())
        return next(scores)

    network = Recorder()
    done = fit_best(network, data(), BestSettings(steps=8, seed=0, batch_size=4, evaluations=4), score)
    assert done.best_step == 4
    assert [step for step, _ in done.scores] == [2, 4, 6, 8]
    assert torch.equal(network.head.weight, states[1])
    assert not torch.equal(states[1], states[3])
    assert not network.training


def test_training_repeats_with_its_seed_and_calls_back():
    steps = []
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        how = BestSettings(steps=3, seed=seed, batch_size=4, evaluations=1)
        losses.append(fit_best(Recorder(), data(), how, None, lambda step, loss: steps.append(step)).losses)
    assert losses[0] == losses[1] != losses[2]
    assert steps[:3] == [0, 1, 2]


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_one_step_is_torchs(optimizer):
    torch.manual_seed(0)
    network, twin = Recorder(), Recorder()
    twin.load_state_dict(network.state_dict())
    images = data(4)
    how = BestSettings(
        steps=1, seed=0, batch_size=4, evaluations=1, optimizer=optimizer, learning_rate=0.1, multi_label=True,
        precision="float32",
    )  # fmt: skip
    fit_best(network, images, how, None)
    theirs = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer](twin.parameters(), lr=0.1)
    order = network.seen[0]
    loss = nn.functional.binary_cross_entropy_with_logits(
        twin(to_inputs(images.images[order])), torch.from_numpy(images.targets_NK[order])
    )
    loss.backward()
    theirs.step()
    torch.testing.assert_close(network.head.weight, twin.head.weight, rtol=1e-6, atol=1e-7)


def test_chances_are_sigmoids_or_a_softmax():
    network = Recorder()
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.copy_(torch.tensor([0.0, np.log(3.0)]))
    how = BestSettings(steps=1, seed=0, evaluations=1)
    np.testing.assert_allclose(predict(network, data(3).images, how), [[0.25, 0.75]] * 3, rtol=1e-6)
    how = BestSettings(steps=1, seed=0, evaluations=1, multi_label=True)
    np.testing.assert_allclose(predict(network, data(3).images, how), [[0.5, 0.75]] * 3, rtol=1e-6)


def test_volumes_get_one_channel():
    assert to_inputs(np.zeros((2, 4, 5, 6), dtype=np.float16)).shape == (2, 1, 4, 5, 6)
    assert to_inputs(np.zeros((2, 5, 6, 3), dtype=np.uint8)).shape == (2, 3, 5, 6)


def test_channel_dropout_and_mirrors():
    ranges = Augmentation(channel_dropout=0.5, mirror_x=1.0, mirror_y=0.0)
    view = draw_view(generator_for(0, "views"), 4000, ranges)
    assert view.dropped_B is not None
    shares = [(view.dropped_B == channel).double().mean().item() for channel in (-1, 0, 1, 2)]
    np.testing.assert_allclose(shares, [0.5, 1 / 6, 1 / 6, 1 / 6], atol=0.03)  # four standard errors
    assert (view.affine_B23[:, 0, 0] < 0).all()
    assert (view.affine_B23[:, 1, 1] > 0).all()
    still = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]])
    drop = View(still, torch.ones(1, 3), torch.zeros(1, 3), 0.0, torch.tensor([1]))
    seen = apply_view(torch.full((1, 3, 4, 4), 100.0), drop, generator_for(0, "noise"))
    assert seen[0, :, 0, 0].tolist() == [100.0, 0.0, 100.0]


def test_bad_settings_and_losses_are_refused():
    with pytest.raises(InputError, match="2 or more images and 1 to 3 evaluations, got 3, 1 and 1"):
        BestSettings(steps=3, seed=0, batch_size=1, evaluations=1)
    with pytest.raises(InputError, match="optimizer is adam or adamw"):
        BestSettings(steps=3, seed=0, evaluations=1, optimizer="sgd")
    with pytest.raises(InputError, match="2 images but 3 targets"):
        TrainingImages(np.zeros((2, 4, 4, 3), dtype=np.uint8), np.zeros((3, 2)))
    network = Recorder()
    with torch.no_grad():
        network.head.bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match="the loss at step 0 is nan"):
        fit_best(network, data(), BestSettings(steps=3, seed=0, batch_size=4, evaluations=1), None)
