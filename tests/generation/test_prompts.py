"""Prompt tables in, requests out: values worked by hand, properties over keys and seeds, and every error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medisyn.errors import InputError
from medisyn.generation.prompts import (
    Defaults,
    request_from_record,
    request_record,
    requests_from_prompt,
    requests_from_prompts,
    requests_from_table,
)
from medisyn.seeding import seed_for
from medisyn.types import Request


def table(folder: Path, content: str | bytes, name: str = "prompts.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(folder: Path, content: str | bytes, name: str = "prompts.csv", **defaults: object) -> list[Request]:
    return requests_from_table(table(folder, content, name), Defaults(**defaults))  # type: ignore[arg-type]


def test_one_prompt_four_times() -> None:
    requests = requests_from_prompt("  Chest X-ray ", Defaults(n=4, seed=7, steps=30, guidance=5.0, width=64))
    assert [r.key for r in requests] == ["00001-000", "00001-001", "00001-002", "00001-003"]
    assert requests[2] == Request(
        "00001-002", "Chest X-ray", seed_for(7, "00001-002"), "", None, 64, steps=30, guidance=5.0
    )


def test_a_row_overrides_the_defaults_and_keeps_other_columns(tmp_path: Path) -> None:
    content = (
        "key,prompt,seed,negative_prompt,n,height,width,steps,guidance,specialty\n"
        'cxr,"Frontal (PA), chest X-ray",11,text,2,64,96,30.0,4.5,radiology\n'
        ",Blood smear,,,,,,,,hematology\n"
    )
    first, second, third = read(tmp_path, content, seed=3, steps=50, guidance=7.0, negative_prompt="blur")
    metadata = {"specialty": "radiology"}
    assert first == Request("cxr", "Frontal (PA), chest X-ray", 11, "text", 64, 96, 30, 4.5, metadata)
    assert (second.key, second.seed) == ("cxr-001", seed_for(11, "1"))
    assert third == Request(
        "00002-000", "Blood smear", seed_for(3, "00002-000"), "blur", None, None, 50, 7.0, {"specialty": "hematology"}
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", "prompt\nA\n\nB\n"),
        ("p.csv", b"\xef\xbb\xbfcaption\r\nA\r\nB\r\n"),  # a spreadsheet's byte-order mark and line ends
        ("p.csv", " text \nA\nB"),
        ("p.tsv", "prompt\tn\nA\t1\nB\t\n"),
        ("p.csv", "prompt;n\nA;1\nB;\n"),
        ("p.jsonl", '{"prompt": "A"}\n\n{"prompt": "B", "n": null}\n'),
        ("p.txt", "A\n\n  B  \n"),
    ],
)
def test_every_form_of_a_table_gives_the_same_requests(tmp_path: Path, name: str, content: str | bytes) -> None:
    assert read(tmp_path, content, name) == requests_from_prompts(["A", "B"], Defaults())
    assert [r.prompt for r in read(tmp_path, content, name)] == ["A", "B"]


def test_prompt_comes_before_caption_and_caption_is_kept(tmp_path: Path) -> None:
    (request,) = read(tmp_path, "caption,prompt\nlong,short\n")
    assert (request.prompt, request.metadata) == ("short", {"caption": "long"})


def test_columns_that_medisyn_writes_are_read_over(tmp_path: Path) -> None:
    row = {"file_name": "x.png", "text": "A", "prompt": "A", "key": "x", "seed": 5, "model": "old", "site": 3}
    (request,) = read(tmp_path, json.dumps(row), "metadata.jsonl")
    assert request == Request("x", "A", 5, metadata={"site": 3})


def test_unicode_survives(tmp_path: Path) -> None:
    prompt = "Röntgenbild «Thorax», 胸部X線, 🫁"
    assert read(tmp_path, json.dumps({"prompt": prompt}), "p.jsonl")[0].prompt == prompt
    assert read(tmp_path, f'prompt\n"{prompt}"\n')[0].prompt == prompt


@given(
    st.lists(st.text(min_size=1).filter(str.strip), min_size=2, max_size=8), st.integers(1, 4), st.integers(0, 2**32)
)
@settings(max_examples=40, deadline=None)
def test_adding_prompts_and_pictures_changes_no_earlier_request(prompts: list[str], n: int, seed: int) -> None:
    before = requests_from_prompts(prompts[:-1], Defaults(n=n, seed=seed))
    after = {r.key: r for r in requests_from_prompts(prompts, Defaults(n=n + 1, seed=seed))}
    assert all(after[r.key] == r for r in before)
    assert len(after) == len(prompts) * (n + 1)
    assert len({r.seed for r in after.values()}) == len(after)


def test_a_request_survives_json() -> None:
    request = Request("k", "p", 2**63 - 1, "no", 64, 32, 20, 3.5, {"specialty": "radiology", "count": 2})
    assert request_from_record(json.loads(json.dumps(request_record(request)))) == request


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no prompts in it"),
        ("prompt,key\n", "no prompts in it"),
        ("promt,label\nA,b\n", r"no column 'prompt'.*Columns there: promt, label\. Did you mean 'promt'"),
        ("prompt,n\nA,1\n  ,1\n", r"row 2: the prompt is empty or not text \(got '  '\)"),
        ("prompt,seed\nA,x1\n", "row 1: seed must be a whole number from 0 to 9223372036854775807, got 'x1'"),
        ("prompt,seed\nA,-1\n", "row 1: seed must be a whole number"),
        ("prompt,n\nA,0\n", "row 1: n must be a whole number from 1 to"),
        ("prompt,steps\nA,20.5\n", "row 1: steps must be a whole number from 1 to 10000, got '20.5'"),
        ("prompt,width\nA,inf\n", "row 1: width must be a whole number from 8"),
        ("prompt,guidance\nA,nan\n", "row 1: guidance must be a number of 0 or more, got 'nan'"),
        ("prompt,guidance\nA,strong\n", "row 1: guidance must be a number"),
        ("prompt,key\nA,../x\n", r"row 1: key '\.\./x' cannot be a file name"),
        ("prompt,key\nA,x\nB,x\n", "the key 'x' occurs twice"),
        ("prompt,key\nA,x\nB,X\n", "the key 'x' and 'X' occurs twice"),
        ("prompt,key,n\nA,x,2\nB,x-001,1\n", "the key 'x-001' occurs twice"),
        ("prompt\nA, with a comma\n", r"row 1: 2 fields for 1 columns.*must stand in \"double quotes\""),
        ("prompt,prompt\nA,B\n", "a column name occurs twice in the header: prompt, prompt"),
        ('prompt\n"A\n', "not a table of separated values"),
        (b"prompt\n\xff\xfe\n", "not UTF-8 text at byte 7"),
    ],
)
def test_errors_of_a_table(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "A"}\n{"prompt": \n', "row 2: not JSON"),
        ('["A"]\n', r"row 1: expected an object such as .*got '\[\"A\"\]'"),
        ('{"prompt": "A"}\n{"caption": "B"}\n', r"row 2: the prompt is empty or not text \(got None\)"),
        ('{"prompt": 5}\n', r"row 1: the prompt is empty or not text \(got 5\)"),
        ('{"prompt": "A", "seed": true}\n', "row 1: seed must be a whole number .* got True"),
        ('{"prompt": "A", "steps": [1]}\n', r"row 1: steps must be a whole number .* got \[1\]"),
        ('{"prompt": "A", "guidance": true}\n', "row 1: guidance must be a number"),
        ('{"prompt": "A", "guidance": {}}\n', "row 1: guidance must be a number"),
    ],
)
def test_errors_of_json_lines(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, content, "p.jsonl")


def test_errors_of_files_and_values(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"prompts.xlsx: a prompt table ends with .csv, .tsv, .jsonl, .txt, not .xlsx"):
        read(tmp_path, "prompt\nA\n", "prompts.xlsx")
    with pytest.raises(InputError, match=r"absent.csv: cannot be read \(No such file or directory\)"):
        requests_from_table(tmp_path / "absent.csv", Defaults())
    with pytest.raises(InputError, match="the prompt is empty"):
        requests_from_prompt(" \n", Defaults())
    with pytest.raises(InputError, match="n must be a whole number from 1"):
        Defaults(n=0)
    with pytest.raises(InputError, match="guidance must be a number of 0 or more, got -1"):
        Defaults(guidance=-1.0)


def test_a_table_holds_combined_prompts_and_the_way_to_another(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,toward_prompt,toward_seed,toward_share\n0.75*a AND b,,5,0.5\nplain,c,,1\n")
    combined, plain = requests_from_table(tmp_path / "p.csv", Defaults())
    assert combined.terms == (("a", 0.75), ("b", 1.0))
    assert (combined.toward_seed, combined.toward_share, combined.toward_prompt) == (5, 0.5, "")
    assert (plain.terms, plain.toward_prompt, plain.toward_share) == ((), "c", 1.0)
    assert request_from_record(json.loads(json.dumps(request_record(combined)))) == combined
    (tmp_path / "p.csv").write_text("prompt,toward_share\na,1.5\n")
    with pytest.raises(InputError, match=r"row 1: toward_share must be a number from 0 to 1, got '1.5'"):
        requests_from_table(tmp_path / "p.csv", Defaults())
