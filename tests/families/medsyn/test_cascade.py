"""The cascade: folders, parts that do not fit together, and the engine that trains each part."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import build_medsyn as build
from medisyn.errors import ModelError
from medisyn.families.base import Family
from medisyn.families.medsyn import folders
from medisyn.families.medsyn.cascade import MedSyn
from medisyn.families.medsyn.config import Grid, MedSynConfig
from medisyn.families.medsyn.report_encoder import open_encoder
from medisyn.families.medsyn.report_training import ReportPretraining, ReportTrainingConfig
from medisyn.families.medsyn.superres import MedSynSuperResolution
from medisyn.training.loop import train
from medisyn.training.settings import TrainSettings
from medisyn.types import Request

REQUEST = Request(key="a", prompt="Findings: Large right pleural effusion.", seed=5)


ONE_TILE = replace(build.DEFAULTS, steps=1, superres_steps=1, tile=(16, 16, 16))


def cascade() -> MedSyn:
    return MedSyn(build.base(defaults=ONE_TILE), build.superres(defaults=ONE_TILE))


def test_the_cascade_makes_fine_volumes_with_masks_and_spacing():
    model: Family = cascade()
    latents = model.sample([REQUEST])
    [volume] = model.decode(latents)
    assert volume.array_CDHW.shape == (1, 16, 16, 16)
    assert volume.spacing_mm == pytest.approx((20, 22, 22))
    assert -1024 <= volume.array_CDHW.min() <= volume.array_CDHW.max() <= 600
    [masks] = cascade().masks(latents)
    assert {mask.shape for mask in masks.values()} == {(16, 16, 16)}
    assert MedSyn(build.base()).sample([REQUEST]).shape == (1, 4, 8, 8, 8)


def test_given_anatomy_goes_through_the_cascade():
    model = cascade()
    known = [model.base.known_from(build.chest(), ["lobe"])]
    assert not torch.allclose(model.sample([REQUEST], known), model.sample([REQUEST]))


def test_saved_and_opened_again_makes_the_same_volume(tmp_path):
    base = build.base(config=MedSynConfig(long_reports="cut"), defaults=ONE_TILE)
    model = MedSyn(base, build.superres(defaults=ONE_TILE))
    model.save(tmp_path / "model")
    again = MedSyn.from_folder(tmp_path / "model")
    assert again.base.config == model.base.config
    assert (again.grid, again.base.defaults) == (model.grid, model.base.defaults)
    # the same weights at another place in memory: float32 sums may round differently
    torch.testing.assert_close(again.sample([REQUEST]), model.sample([REQUEST]), rtol=1e-3, atol=1e-4)
    assert folders.FOLDER.holds(tmp_path / "model")
    assert not folders.FOLDER.holds(tmp_path)
    assert not (tmp_path / "model" / "base" / "diffusion_pytorch_model.bin").exists()


def test_half_precision_on_disk_and_bfloat16_in_memory(tmp_path):
    model = MedSyn(build.base())
    model.save(tmp_path / "half", dtype="float16")
    assert model.base.unet.dtype == torch.float32
    opened = MedSyn.from_folder(tmp_path / "half", dtype="bfloat16")
    assert opened.base.unet.dtype == torch.bfloat16
    assert torch.isfinite(opened.sample([replace(REQUEST, guidance=2.0)])).all()
    difference = MedSyn.from_folder(tmp_path / "half").sample([REQUEST]) - model.sample([REQUEST])
    assert float(difference.abs().max()) < 0.05  # float16 weights


def test_defaults_can_be_changed_without_a_copy_of_the_weights():
    model = cascade()
    fast = model.with_defaults(solver="dpmpp-2m", steps=3)
    assert fast.base.unet is model.base.unet
    assert fast.base.resolve(REQUEST).steps == 3
    assert fast.superres.defaults.solver == "dpmpp-2m"
    assert model.with_defaults(steps=4).resolve(REQUEST).guidance == 1.0
    assert MedSyn(build.base()).with_defaults(steps=4).superres is None
    assert fast.lost_words("a word") == ""


def test_parts_that_do_not_belong_together_are_refused(tmp_path):
    other = MedSynSuperResolution(build.superres().unet, replace(build.GRID, shape=(4, 4, 4)), build.SUPERRES)
    with pytest.raises(ModelError, match=r"makes \(8, 8, 8\) voxels, the super-resolution model refines \(4, 4, 4\)"):
        MedSyn(build.base(), other)
    with pytest.raises(ModelError, match="NaN or infinite"):
        cascade().decode(torch.full((1, 4, 16, 16, 16), torch.inf))
    bent = MedSynSuperResolution(build.superres().unet, replace(build.GRID, hu_knots=(-1024, 0, 600)), build.SUPERRES)
    with pytest.raises(ModelError, match="scale HU differently"):
        MedSyn(build.base(), bent)


def test_folders_that_are_not_ours_or_not_whole_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"holds no medisyn.json: it is not a MedSyn model"):
        MedSyn.from_folder(tmp_path)
    folder = tmp_path / "model"
    MedSyn(build.base()).save(folder)
    with pytest.raises(ModelError, match="dtype 'float16' is not offered, allowed: float32, bfloat16"):
        MedSyn.from_folder(folder, dtype="float16")
    with pytest.raises(ModelError, match="dtype 'int8' is not offered"):
        MedSyn(build.base()).save(tmp_path / "x", dtype="int8")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.doc").write_text("x")
    with pytest.raises(ModelError, match=r"taken/ holds files that are no MedSyn model \(thesis.doc\)"):
        MedSyn(build.base()).save(tmp_path / "taken")

    settings = json.loads((folder / "medisyn.json").read_text())
    (folder / "medisyn.json").write_text(json.dumps({**settings, "grid": {"shapes": [1]}}))
    with pytest.raises(ModelError, match="'shapes' is no setting of Grid"):
        MedSyn.from_folder(folder)
    (folder / "medisyn.json").write_text(json.dumps({**settings, "family": "higen"}))
    with pytest.raises(ModelError, match="does not say family medsyn"):
        MedSyn.from_folder(folder)
    (folder / "medisyn.json").write_text("{")
    with pytest.raises(ModelError, match=r"medisyn.json is not readable JSON"):
        MedSyn.from_folder(folder)


def test_a_damaged_network_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    MedSyn(build.base()).save(folder)
    weights = folder / "base" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state.pop("stem.bias")
    save_file(state, weights)
    with pytest.raises(ModelError, match=r"base lacks 1 of its weights, the first is stem.bias"):
        folders.open_unet(folder / "base")
    weights.write_bytes(b"nothing")
    with pytest.raises(ModelError, match="the part base cannot be opened"):
        folders.open_unet(folder / "base")
    (folder / "base" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"model/ lacks the part base: base/config.json is missing"):
        folders.open_unet(folder / "base")


# ---- the engine


class Rows:
    """Encoded rows in memory, as the engine reads them."""

    def __init__(self, encoded: dict[str, torch.Tensor]) -> None:
        self.encoded = encoded
        self.keys = [f"chest-{number}" for number in range(len(next(iter(encoded.values()))))]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {name: tensor[row] for name, tensor in self.encoded.items()}


SETTINGS = TrainSettings(
    num_steps=3, batch_size=2, learning_rate=1e-3, ema_decay=0.9, checkpoint_every=2, precision="bf16"
)


def test_the_engine_trains_a_base_model_whose_run_can_be_sampled(tmp_path: Path):
    base = build.base()
    report = train(base, Rows(base.encode(build.chests(3))), SETTINGS, tmp_path, save_model=MedSyn(base).save)
    assert report.steps_done == 3
    assert report.loss is not None
    assert report.loss > 0
    opened = MedSyn.from_folder(tmp_path / "model")
    assert not torch.equal(opened.base.unet.stem.weight, build.base().unet.stem.weight)
    assert opened.sample([REQUEST]).shape == (1, 4, 8, 8, 8)


def test_the_engine_trains_a_super_resolution_model_and_resumes(tmp_path: Path):
    def run(steps: int, folder: Path) -> torch.Tensor:
        model = build.superres()
        rows = Rows(model.encode(build.chests(3)))
        save = lambda target: folders.save_part(model.unet, target)  # noqa: E731
        train(model, rows, replace(SETTINGS, num_steps=steps), folder, save_model=save)
        return model.unet.stem.weight.detach().clone()

    run(2, tmp_path / "a")
    resumed, straight = run(3, tmp_path / "a"), run(3, tmp_path / "b")
    assert torch.equal(resumed, straight)
    assert folders.open_unet(tmp_path / "a" / "model").reads_text is False


def test_the_engine_trains_a_report_encoder_that_a_base_model_reads(tmp_path: Path):
    from medisyn.families.medsyn.base_model import MedSynBase

    training = ReportPretraining(
        build.encoder(),
        build.tokenizer(),
        ["Normal chest.", "Cardiomegaly."],
        ReportTrainingConfig(window=32, findings_tokens=40, impression_tokens=16),
    )
    rows = Rows(training.encode_reports(list(build.REPORTS)))
    train(training, rows, SETTINGS, tmp_path, save_model=training.save)
    encoder, tokenizer = open_encoder(tmp_path / "model")
    model = MedSynBase(build.base().unet, encoder, tokenizer, Grid(shape=(8, 8, 8)))
    assert model.sample([replace(REQUEST, steps=1)]).shape == (1, 4, 8, 8, 8)
