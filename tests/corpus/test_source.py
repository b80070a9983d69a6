"""Source descriptions: the shipped ones, unknown keys, and every refusal."""

import pytest
from PIL import Image

import build_source
from medisyn.corpus.source import load_source, parse_source, schema, shipped
from medisyn.corpus.takes import Boxes
from medisyn.errors import ConfigError, CorpusError


def test_every_shipped_description_is_valid_and_says_what_a_card_needs():
    assert {"cxr_hannover", "ct_chest_lungpetctdx", "micro_blood_bccd", "us_nerve_usgra"} <= set(shipped())
    for name in shipped():
        source, _ = load_source(name)
        assert source.name == name
        assert source.licence
        assert source.attribution
        assert source.known_defects, name


def test_a_yaml_file_is_read_with_the_folder_its_root_is_relative_to(tmp_path):
    import yaml

    path = tmp_path / "chest.yaml"
    path.write_text(yaml.safe_dump(build_source.description(root="files")))
    source, base = load_source(path)
    assert (source.name, source.root, base) == ("shapes", "files", tmp_path)
    assert source.samples[0].captions == ("Frontal chest X-ray image[ showing {finding}]",)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(CorpusError, match=r"neither a YAML file nor one of ours.*Did you mean 'cxr_hannover'"):
        load_source("cxr_hanover")
    with pytest.raises(CorpusError, match=r"nothing.yaml does not exist"):
        load_source(tmp_path / "nothing.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1, 2")
    with pytest.raises(ConfigError, match=r"bad.yaml is not YAML"):
        load_source(tmp_path / "bad.yaml")
    with pytest.raises(ConfigError, match="expected a mapping of keys, got list"):
        parse_source([1], "list.yaml")


BOXES = {"kind": "boxes", "file": "{a}", "format": "voc", "classes": {"A": "cell"}, "captions": ["a {class}"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"licens": "MIT"}, r"key 'licens' is unknown. Did you mean 'licence'\?"),
        ({"split": {"unit": "patient", "colum": "p"}}, r"'split.colum' is unknown. Did you mean 'column'\?"),
        ({"table": {"path": "t.csv", "were": {}}}, r"'table.were' is unknown. Did you mean 'where'\?"),
        ({"samples": [{**BOXES, "contxt": 1}]}, r"'samples.0.boxes.contxt' is unknown. Did you mean 'context'\?"),
        ({"fields": {"finding": {"value": {}}}}, r"'fields.finding.value' is unknown. Did you mean 'values'\?"),
        ({"split": {"unit": "patient"}}, "unit 'patient' needs a column"),
        ({"split": {"unit": "person"}}, "split.unit: Input should be 'patient', 'group', 'file', 'region' or 'none'"),
        ({"table": {}}, "give either path or rows"),
        ({"files": {"glob": "*.png"}}, "give either table or files"),
        (
            {"specialty": "radiologie"},
            r"specialty 'radiologie' is not in the list of terms.*Did you mean 'radiology'\?",
        ),
        ({"image_type": "chest xray"}, "image_type 'chest xray' is not in the list of terms"),
        ({"samples": [{"kind": "whole", "captions": ["a {findng}"]}]}, r"'findng' is not defined.*'finding'\?"),
        ({"samples": []}, "samples: Tuple should have at least 1 item"),
        ({"samples": [{"kind": "hole", "captions": ["a"]}]}, "does not match any of the expected tags"),
        ({"name": "No Spaces"}, "name: String should match pattern"),
    ],
)
def test_what_is_wrong_is_named_with_the_nearest_right_word(changes, message):
    with pytest.raises(ConfigError, match=message):
        parse_source(build_source.description(**changes))


def test_a_new_term_is_allowed_on_purpose():
    source = parse_source(build_source.description(specialty="dentistry", new_terms=True))
    assert source.specialty == "dentistry"


def test_the_schema_lists_every_kind_of_sample():
    text = str(schema())
    assert all(f"'const': '{kind}'" in text for kind in ("whole", "slices", "modalities", "boxes", "tiles", "arrays"))
    assert set(schema()["required"]) >= {"name", "licence", "attribution", "samples", "split"}


def test_defaults_of_a_box_take():
    take = parse_source(build_source.description(samples=[BOXES])).samples[0]
    assert isinstance(take, Boxes)
    assert (take.context, take.min_side, take.inside) == (0.1, 16, True)


def test_a_public_set_is_read_as_its_publisher_lays_it_out(tmp_path):
    """Two rows in CheXpert's layout: path, view, uncertain and positive findings."""
    from medisyn.corpus.curate import curate
    from medisyn.corpus.loader import Corpus

    source, _ = load_source("chexpert_small")
    flags = dict.fromkeys(source.fields["finding"].flags, "")
    rows = []
    for number, changes in enumerate([{"Edema": "1.0", "Fracture": "1.0", "Pneumonia": "-1.0"}, {"Edema": "0.0"}]):
        path = f"CheXpert-v1.0-small/train/patient0000{number}/study1/view1_frontal.jpg"
        (tmp_path / path).parent.mkdir(parents=True)
        Image.fromarray(build_source.picture(number)).save(tmp_path / path)
        view = {"Frontal/Lateral": "Frontal", "AP/PA": ("AP", "PA")[number]}
        rows.append({"Path": path, "Sex": "Female", "Age": "68", **view, **flags, **changes})
    build_source.write_table(tmp_path / "CheXpert-v1.0-small" / "train.csv", rows)
    curate("chexpert_small", tmp_path / "corpus", root=tmp_path, size=32)
    assert {row.caption for row in Corpus(tmp_path / "corpus").rows()} == {
        "Frontal (AP) chest X-ray image showing edema and fracture",
        "Frontal (PA) chest X-ray image",
    }


def test_every_labelled_open_source_has_a_description_that_curates(shared_data, tmp_path):
    """A row or two of each set on disk; the whole sets are curated by hand (minutes)."""
    from medisyn.corpus.curate import curate

    report = curate(
        ["endo_hyperkvasir_tiles", "ct_chest_lungpetctdx", "mri_pyradiomics_cases"],
        tmp_path / "corpus",
        root=shared_data / "open",
        size=32,
    )
    assert (report.read, report.quarantined) == (10, 0)
    assert report.kept == 6 + 94 + 69
