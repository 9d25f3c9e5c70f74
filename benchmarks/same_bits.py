"""Show whether two commits train the same weights and predict the same probabilities, to the bit.

    python benchmarks/same_bits.py BASE [HEAD] [--only fast-85 ...]

Extracts both commits side by side and, in turn and with the Python that runs this script, trains each recipe of CASES
with seed 0 and predicts probabilities with the packaged model for 1,000 test images of Fashion-MNIST. Prints a table of
SHA-256 sums and exits with 1 if any differ. Names of tensors are not compared, so a commit that only renames things changes no
sum.

Uses only the public API of the package, which both commits must have: load_data, RECIPES, fit and load_packaged.
"""

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

# Recipe and number of epochs; None for all epochs of the recipe.
CASES: dict[str, float | None] = {"article": 0.1, "fast-85": None, "fast-90": None, "fast": None, "photo": 2}
PACKAGED = "packaged model"
# What gingham train sets in its own process; commits differ in whether fit does too.
RETAIN_FREED_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "2147483647", "MALLOC_MMAP_THRESHOLD_": "1073741824"}

# Runs in a checkout and prints the sum last.
TRAIN = """
import hashlib, inspect, os, sys
import gingham

assert gingham.__file__.startswith(os.getcwd()), f"another gingham is imported: {gingham.__file__}"
name, epochs = sys.argv[1:]
recipe = gingham.RECIPES[name].replace(seed=0)
recipe = recipe.replace(epochs=float(epochs)) if epochs else recipe
data = gingham.load_data("fashion-mnist", recipe.validation_images)
old = "device" in inspect.signature(gingham.fit).parameters  # commits from before FitOptions
device = {"device": "cpu"} if old else {"options": gingham.FitOptions(device="cpu")}
run = gingham.fit(recipe, data.train, data.validation, progress=False, **device)
tensors = [tensor.contiguous() for tensor in run.model.state_dict().values()]
contents = sorted((tuple(tensor.shape), str(tensor.dtype), tensor.numpy().tobytes()) for tensor in tensors)
digest = hashlib.sha256()
for shape, dtype, content in contents:
    digest.update(f"{shape} {dtype} ".encode() + content)
print(digest.hexdigest())
"""
PREDICT = """
import hashlib, os
import gingham

assert gingham.__file__.startswith(os.getcwd()), f"another gingham is imported: {gingham.__file__}"
images = gingham.load_data("fashion-mnist").test.images[:1000]
probabilities = gingham.load_packaged().model.predict(images).probabilities
print(hashlib.sha256(probabilities.contiguous().numpy().tobytes()).hexdigest())
"""


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()


def extract(commit: str, folder: Path) -> Path:
    """Extract the files of a commit into a folder and return the folder. Unlike a work tree, git does not record it."""
    archive = subprocess.run(["git", "archive", commit], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return folder


def sha256_of(checkout: Path, case: str) -> str:
    """Return the SHA-256 of a checkout's result in a case."""
    epochs = CASES.get(case)
    script = [PREDICT] if case == PACKAGED else [TRAIN, case, "" if epochs is None else str(epochs)]
    process = subprocess.run(
        [sys.executable, "-c", *script],
        env={**os.environ, **RETAIN_FREED_MEMORY, "PYTHONPATH": str(checkout / "src")},
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        raise SystemExit(f"{case} failed in {checkout}:\n{process.stderr}")
    return process.stdout.split()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the weights and probabilities of two commits to the bit.")
    parser.add_argument("base", help="the commit to compare with")
    parser.add_argument("head", nargs="?", default="HEAD", help="the commit that should not differ; HEAD by default")
    parser.add_argument(
        "--only", nargs="+", choices=[*CASES, PACKAGED], default=[*CASES, PACKAGED], help="some of the cases"
    )
    arguments = parser.parse_args()
    commits = [git("rev-parse", "--short", f"{name}^{{commit}}") for name in (arguments.base, arguments.head)]
    differing = 0
    with tempfile.TemporaryDirectory() as folder:
        checkouts = [
            extract(commit, Path(folder, side)) for side, commit in zip(("base", "head"), commits, strict=True)
        ]
        print(f"| case | {commits[0]} | {commits[1]} | |\n|---|---|---|---|", flush=True)
        for case in arguments.only:
            base, head = (sha256_of(checkout, case) for checkout in checkouts)
            differing += base != head
            epochs = f", {CASES[case]:g} epochs" if CASES.get(case) else ""
            print(
                f"| {case}{epochs} | {base[:16]} | {head[:16]} | {'equal' if base == head else 'DIFFERENT'} |",
                flush=True,
            )
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
