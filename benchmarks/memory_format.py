"""Time training steps of the article's network with channels first and channels last, alternating in one process.

    python benchmarks/memory_format.py

Writes benchmarks/results/memory-format-<hardware>-<date>.md.
"""

import statistics
import time

import torch
import torch.nn.functional as F

import records
from gingham.models import build
from gingham.optimization import build_optimizer
from gingham.recipe import RECIPES
from gingham.storage import describe_environment
from gingham.training import choose_device

FORMATS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}
STEPS, ROUNDS = 100, 8


def main() -> None:
    commit = records.clean_commit()
    recipe, device = RECIPES["article"], choose_device("auto")
    torch.manual_seed(0)
    images = torch.randint(0, 256, (recipe.batch_size, 1, 28, 28), dtype=torch.uint8, device=device)
    labels = torch.randint(0, 10, (recipe.batch_size,), device=device)
    models = {}
    for name, memory_format in FORMATS.items():
        model = build(recipe.network, list("0123456789"), (1, 28, 28)).to(device).to(memory_format=memory_format)
        models[name] = (model, build_optimizer(model, recipe))

    def seconds_a_step(name: str) -> float:
        model, optimizer = models[name]
        started = time.perf_counter()
        for _ in range(STEPS):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - started) / STEPS

    times: dict[str, list[float]] = {name: [] for name in FORMATS}
    for turn in range(ROUNDS + 1):
        for name in FORMATS:
            seconds = seconds_a_step(name)
            if turn:  # the first turn warms up
                times[name].append(seconds)
    environment = describe_environment(device)
    ratios = [first / last for first, last in zip(*times.values(), strict=True)]
    rows = "\n".join(
        f"| {name} | {1000 * statistics.median(values):.1f} | {1000 * min(values):.1f} to {1000 * max(values):.1f} |"
        for name, values in times.items()
    )
    text = f"""# Channels first or last

Command: `python benchmarks/memory_format.py`, commit {commit[:12]}.
Hardware: {environment["hardware"]}; torch {environment["torch"]}; float32; one seed, as only time is measured.

Milliseconds a training step of the article's network, batches of {recipe.batch_size}, {ROUNDS} alternating rounds of {STEPS} steps:

| memory format | median | range |
| --- | ---: | --- |
{rows}

Channels last is {statistics.median(ratios):.2f} times as fast (median of the rounds' ratios, {min(ratios):.2f} to {max(ratios):.2f}).
"""
    print(records.write_result("memory-format", environment, text))
    print(text)


if __name__ == "__main__":
    main()
