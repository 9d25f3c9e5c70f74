"""Measure the time that networks of timm take for the features of an image.

    python benchmarks/backbones.py
    python benchmarks/backbones.py resnet18 hgnetv2_b0 --size 160

The weights are random: they do not change the time. Writes benchmarks/results/backbones-<hardware>-<date>.md.
"""

import argparse
import shlex
import statistics
import sys
import time

import timm
import torch

import records
from gingham.device import choose_device, describe_environment, retain_freed_memory
from gingham.models.backbones import PREFIX, Backbone
from gingham.models.registry import build_classifier

NAMES = (
    "tf_efficientnet_lite0",
    "efficientnet_lite0",
    "hgnetv2_b0",
    "mobilenetv4_conv_small",
    "regnety_004",
    "resnet18",
    "mobilenetv3_large_100",
    "vit_tiny_patch16_224",
)
IMAGES, ROUNDS = 64, 7


def unfolded(name: str, images: torch.Tensor) -> None:
    """Compute the same with BatchNorm, as timm creates the network."""
    network = timm.create_model(name, num_classes=0).eval().to(memory_format=torch.channels_last)
    with torch.no_grad():
        for batch in torch.split(images, 20):
            network(batch.float() / 255)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=records.positive, default=ROUNDS)
    options = parser.parse_args()
    commit = records.clean_commit()
    retain_freed_memory()
    images = torch.randint(256, (IMAGES, 3, options.size, options.size), dtype=torch.uint8)
    models = {
        name: build_classifier(PREFIX + name, list("0123456789"), (3, options.size, options.size))
        for name in options.names
    }
    times: dict[str, list[float]] = {name: [] for name in models}
    before: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(options.rounds + 1):  # the first round is not counted
        print(f"round {turn} of {options.rounds}", file=sys.stderr)
        for name, model in models.items():
            for results, compute in (
                (times, lambda model=model: model.features(images)),
                (before, lambda name=name: unfolded(name, images)),
            ):
                started = time.perf_counter()
                compute()
                results[name].append((time.perf_counter() - started) / IMAGES)
    rows = []
    base = times[options.names[0]][1:]
    for name, model in models.items():
        assert isinstance(model.network, Backbone)
        seconds, plain = times[name][1:], before[name][1:]
        ratio = statistics.median(a / b for a, b in zip(seconds, base, strict=True))
        folding = statistics.median(b / a for a, b in zip(seconds, plain, strict=True))
        parameters = sum(parameter.numel() for parameter in model.network.body.parameters())
        rows.append(
            f"| `{name}` | {parameters / 1e6:.1f} | {len(model.network.feature_mean):,} | {1000 * statistics.median(seconds):.1f} | "
            f"{1000 * min(seconds):.1f} to {1000 * max(seconds):.1f} | {ratio:.2f} | {folding:.2f} |"
        )
    environment = describe_environment(choose_device("auto"))
    text = f"""# The time of features

Command: `{shlex.join(["python", "benchmarks/backbones.py", *sys.argv[1:]])}`, commit {commit[:12]}.
Hardware: {environment["hardware"]}; torch {environment["torch"]}, timm {timm.__version__}; float32, {options.size}x{options.size} pixels.
Milliseconds per image, median of {options.rounds} rounds that alternate; the ratio is to the first network, and the last
column is the time with BatchNorm divided by the time with BatchNorm folded into the convolutions.

| network of timm | million parameters | features | ms | range | ratio | gain of folding |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
{chr(10).join(rows)}
"""
    print(records.write_result("backbones", environment, text))
    print(text)


if __name__ == "__main__":
    records.run(main)
