import os
import subprocess
import sys
from pathlib import Path

import torch

from build_training import WIDTH, LinearFamily, Rows, settings
from medisyn.training import memory

MEASURE = """
import re, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from build_training import LinearFamily, Rows, WIDTH, run
family = LinearFamily()
WIDE = 1800
torch.manual_seed(0)
family.net = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDE), torch.nn.SiLU(), torch.nn.Linear(WIDE, WIDE),
    torch.nn.SiLU(), torch.nn.Linear(WIDE, WIDE), torch.nn.SiLU(), torch.nn.Linear(WIDE, WIDTH))
from medisyn import runs
run(Path(sys.argv[1]), family=family, num_steps=2, batch_size=2000, micro_batch_size=2000, ema_start=1, ema_interval=1)
# not ru_maxrss: a child starts with that of its parent
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
print(runs.read_run(Path(sys.argv[1]))["memory"]["peak_mib"], peak)
"""


def test_the_estimate_is_within_a_third_of_the_measured_peak(tmp_path):
    """6.5 M weights (26 MB, five times) and 2,000 rows of 7 maps of 1,800 (100 MB) beside the libraries."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], env=environment, capture_output=True, text=True, check=True
    )
    estimated, measured = map(float, done.stdout.split())
    assert measured > 400
    assert 0.75 < estimated / measured < 1.33


def test_parts_by_hand():
    family = LinearFamily()
    groups = family.trainable()
    count = 6 * 8 + 8 + 8 * 6 + 6
    estimate = memory.estimate(family, groups, Rows()[0], settings(micro_batch_size=3))
    assert estimate.gradients == estimate.average == 4 * count
    assert estimate.optimizer == 8 * count
    # kept per sample: input 6, SiLU's input 8, the second layer's input 8, and the difference that is squared 6
    assert estimate.activations == 3 * 4 * (6 + 8 + 8 + 6)
    assert estimate.total > estimate.loaded + estimate.activations
    assert memory.estimate(family, groups, Rows()[0], settings(ema_decay=0.0)).average == 0


def test_a_run_that_does_not_fit_is_warned_about():
    tight = memory.MemoryEstimate(0, 10 * 2**30, 0, 0, 0, available=2**30)
    assert not tight.fits
    assert "WARNING: this run may not fit" in "\n".join(tight.lines())
    assert memory.MemoryEstimate(0, 0, 0, 0, 0, available=None).fits


def test_bf16_halves_the_activations():
    family = LinearFamily()
    parameters = list(family.net.parameters())
    row = {"x": torch.randn(WIDTH)}
    cpu = torch.device("cpu")
    assert memory.activation_bytes(family, parameters, row, cpu, "bf16") < memory.activation_bytes(
        family, parameters, row, cpu, "fp32"
    )


class Frozen:
    """A trained scale in front of a frozen layer, which is kept where a dataclass and a tuple hold it."""

    def __init__(self):
        self.scale = torch.nn.Parameter(torch.ones(4))
        self.networks = memory.MemoryEstimate(0, 0, 0, 0, 0, available=(torch.nn.Linear(4, 4).requires_grad_(False),))

    def loss(self, encoded, draws):
        [layer] = self.networks.available
        return layer(encoded["x"] * self.scale).sum(dim=1)


def test_frozen_weights_are_no_activations():
    """The backward pass needs the layer's weight, which is loaded already, and the four numbers of the input."""
    family = Frozen()
    kept = memory.activation_bytes(family, [family.scale], {"x": torch.ones(4)}, torch.device("cpu"), "fp32")
    assert kept == 4 * 4
