import pytest
import torch

from medisyn.errors import ConfigError
from medisyn.machine import choose_device, fast_dtype


@pytest.mark.parametrize(
    ("abilities", "expected"),
    [({"avx512_bf16": True}, "bfloat16"), ({"amx_bf16": True}, "bfloat16"), ({"avx2": True}, "float32")],
)
def test_the_fast_type_follows_the_processor(monkeypatch, abilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities, raising=False)
    assert fast_dtype("cpu") == expected
    assert fast_dtype("cuda") == fast_dtype("cuda:1") == "bfloat16"


def test_an_older_torch_that_cannot_tell_is_taken_for_slow(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert fast_dtype("cpu") == "float32"


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert (choose_device("auto"), choose_device("cpu")) == ("cpu", "cpu")
    with pytest.raises(ConfigError, match=r"device 'cdua' is unknown.*Did you mean 'cuda'"):
        choose_device("cdua")
    with pytest.raises(ConfigError, match="torch sees 0 GPUs here"):
        choose_device("cuda:1")
