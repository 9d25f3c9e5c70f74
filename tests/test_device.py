"""Devices and precisions, and the settings that all threads of a process share."""

import ctypes
import logging
import os
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import matplotlib as mpl
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import gingham
from gingham import GinghamError
from gingham.deploy.onnx import _quiet
from gingham.device import choose_device, choose_precision, cudnn_benchmark, without_tf32
from gingham.figures import svg_chart
from gingham.models.networks import NETWORKS
from helpers import ROOT


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


class ConvolutionRecorder(TorchDispatchMode):
    """Records whether each convolution may use TF32."""

    def __init__(self):
        super().__init__()
        self.allowed = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._convolution.default:
            self.allowed.append(args[-1])
        elif func is torch.ops.aten.convolution.default:
            self.allowed.append(torch.backends.cudnn.allow_tf32)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_float32_convolutions_on_a_gpu_do_not_use_tf32_and_give_the_same_bits(mode):
    """The dispatch mode that is used on a GPU also works on the CPU, where it changes nothing."""
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding="same"), nn.ConvTranspose2d(4, 2, 3, bias=False), nn.Flatten())
    network.append(nn.LazyLinear(3))
    images = torch.randn(5, 1, 8, 8)
    network(images)
    with mode(), ConvolutionRecorder() as recorder:
        with without_tf32(torch.device("cuda")):
            outputs = network(images)
        assert recorder.allowed == [False, False]
        assert torch.equal(outputs, network(images))
    assert torch.backends.cudnn.allow_tf32, "torch's default, for this and other threads"


def test_predictions_on_a_gpu_do_not_use_tf32(monkeypatch):
    monkeypatch.setattr("gingham.models.classifier.without_tf32", lambda device: without_tf32(torch.device("cuda")))
    with ConvolutionRecorder() as recorder:
        gingham.load_packaged().model.predict(torch.zeros(1, 1, 28, 28, dtype=torch.uint8))
    assert recorder.allowed
    assert not any(recorder.allowed)


def test_trainings_in_several_threads_share_the_benchmark_of_cudnn():
    """The setting stays on until the last training has ended. A training on the CPU does not change it."""
    cudnn, entered, leave = torch.backends.cudnn, threading.Event(), threading.Event()

    def hold():
        with cudnn_benchmark(torch.device("cuda")):
            entered.set()
            assert leave.wait(30)
            return cudnn.benchmark

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(hold)
        assert entered.wait(30)
        with cudnn_benchmark(torch.device("cuda")), cudnn_benchmark(torch.device("cpu")):
            leave.set()
            assert first.result()
            assert cudnn.benchmark
    assert not cudnn.benchmark


def test_many_threads_leave_the_settings_of_the_process_as_they_were(small_run, tmp_path):
    def settings():
        return (
            list(warnings.filters),
            [logging.getLogger(name).level for name in ("", "PIL", "matplotlib")],
            logging.root.manager.disable,
            (sys.stdout, sys.stderr),
            torch.backends.mha.get_fastpath_enabled(),
            torch.get_rng_state().tolist(),
            dict(mpl.rcParams),
        )

    def work(number):
        gingham.load(tmp_path / "run")
        gingham.summarize(attention, (1, 8, 8))
        svg_chart("a line", lambda axes: axes.plot([0, number]))
        with _quiet():
            print("nobody reads this")

    gingham.save(small_run[0], tmp_path / "run")
    attention = nn.Sequential(nn.Flatten(2), nn.TransformerEncoderLayer(64, 2, 16, batch_first=True))
    before, interval = settings(), sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(16)))
    finally:
        sys.setswitchinterval(interval)
    assert settings() == before


class SlowToCreate(nn.Sequential):
    """A network whose creation gives other threads time to draw random numbers between its layers."""

    def __init__(self, classes):
        super().__init__(nn.Flatten(), nn.Linear(28 * 28, 8))
        time.sleep(0.1)
        self.append(nn.Linear(8, classes))


def test_trainings_in_several_threads_give_the_weights_of_one_after_the_other(small_run, monkeypatch):
    run, data = small_run
    monkeypatch.setitem(NETWORKS, run.recipe.network, SlowToCreate)
    seeds = range(3)

    def weights(seed):
        trained = gingham.fit(run.recipe.replace(seed=seed, epochs=0.1), data.train, progress=False)
        return [tensor.clone() for tensor in trained.model.state_dict().values()]

    expected = [weights(seed) for seed in seeds]
    with ThreadPoolExecutor(len(seeds)) as pool:
        for parallel, alone in zip(pool.map(weights, seeds), expected, strict=True):
            assert all(map(torch.equal, parallel, alone))


# A script to run after a training in a new process. It prints whether malloc still requests 64 MB from the system and
# returns them at once. This is the default; once the two thresholds are set, freed memory is kept.
RETURNS_MEMORY = """
import ctypes
libc = ctypes.CDLL(None)
fields = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
libc.mallinfo2.restype = type("Info", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_size_t) for name in fields]})
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
mapped = libc.mallinfo2().hblkhd
libc.malloc(64 << 20)
print(libc.mallinfo2().hblkhd - mapped >= 64 << 20)
"""
FIT = """
import sys, gingham
data = gingham.load_data(sys.argv[1])
gingham.fit(gingham.RECIPES["article"].replace(epochs=0.1), data.train, progress=False)
"""
COMMAND = """
import contextlib, sys
from gingham.cli.app import main
with contextlib.suppress(SystemExit):
    main([*sys.argv[2:], "--recipe", "article", "--data", sys.argv[1], "--epochs", "0.1"])
"""
RETAIN_FREED_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "2147483647", "MALLOC_MMAP_THRESHOLD_": "1073741824"}


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"),
    reason="the C library is not glibc 2.33 or newer",
)
@pytest.mark.parametrize(
    ("script", "arguments", "environment", "returns_memory"),
    [
        (FIT, (), {}, "True"),
        (FIT, (), RETAIN_FREED_MEMORY, "False"),
        (COMMAND, ("train",), {}, "False"),
        (COMMAND, ("trials", "--seeds", "1"), {}, "False"),
    ],
)
def test_only_commands_let_the_c_library_keep_freed_memory(
    quadrants, tmp_path, script, arguments, environment, returns_memory
):
    """docs/training.md gives the environment variables for Python programs."""
    command = [sys.executable, "-c", script + RETURNS_MEMORY, quadrants, *arguments]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == returns_memory
    variables = " ".join(f"{name}={value}" for name, value in RETAIN_FREED_MEMORY.items())
    assert variables in (ROOT / "docs" / "training.md").read_text()
