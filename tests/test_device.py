"""Devices and precisions."""

import pytest
import torch

from gingham import GinghamError
from gingham.device import choose_device, choose_precision


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "", "cpu:1:2"])
def test_unknown_device_is_an_error(device):
    with pytest.raises(GinghamError, match="allowed: auto, cpu"):
        choose_device(device)


def test_auto_chooses_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("auto").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"


def test_auto_precision_depends_on_the_hardware(monkeypatch):
    cpu = torch.device("cpu")
    assert choose_precision("float32", cpu) == "float32"
    for tile, avx, expected in ((True, False, "bfloat16"), (False, True, "bfloat16"), (False, False, "float32")):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda tile=tile: tile)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        assert choose_precision("auto", cpu) == expected
