"""Measure Gingham on one GPU, as much as fits into a few minutes.

    python benchmarks/gpu.py --minutes 8 --out DIR
    python benchmarks/gpu.py --minutes 3 --out DIR --only gpu-94 --recipe gpu-94:epochs=20 --seeds 20
    python benchmarks/gpu.py --rehearse --out DIR         # all stages at tiny sizes, on any machine
    python benchmarks/gpu.py --report DIR... --record     # afterwards: a results file, and records

The stages run in the order of STAGES, `environment` always. Each has a process and a time limit of its own, so
that a stage that fails does not affect the next one, and writes each result to DIR/results.jsonl at once. The exit code
is 1 if a stage did not end by itself. NAME:FIELD=VALUE:FIELD=VALUE changes fields of a recipe. The test split is used
once per seed, after the seeds of a stage have been trained. Needs no network and no git; GINGHAM_COMMIT is then the
commit.
"""

import argparse
import base64
import contextlib
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

import gingham
import gingham.training.fit as training_loop
import records
import step_time
import time_to_accuracy
from gingham.data.splits import DataSplits, Split
from gingham.device import choose_device, choose_precision, describe_environment, prepare_process
from gingham.errors import GinghamError, one_line
from gingham.evaluation.metrics import mean_interval
from gingham.io import write_text
from gingham.models.registry import build_classifier
from gingham.recipe import Recipe, parse_settings
from gingham.runs.predictions import load_predictions
from gingham.runs.run import Run
from gingham.training.batches import Batch
from gingham.training.step import CUDAGraphStep, TrainStep, compile_step, dummy_batch, warm_up

RESULTS = "results.jsonl"
RECIPES = ("gpu-94", "gpu-95", "gpu-96")
# The settings of each recipe that are tried on the validation split, and how many seeds of each.
CANDIDATES = {
    "gpu-94": ("gpu-94:epochs=10", "gpu-94", "gpu-94:epochs=20"),
    "gpu-95": ("gpu-95",),
    "gpu-96": ("gpu-96",),
}
TRIAL_SEEDS = 3
MIN_SECONDS = 5  # of a stage
COLUMNS = (
    "recipe",
    "split",
    "accuracy: mean ± std, 95 % interval of the mean",
    "seeds",
    "train_seconds, median",
    "seconds of `fit`",
    "steps",
    "share of the bfloat16 rate",
)


def parse_recipe(spec: str) -> Recipe:
    """Return the recipe NAME:FIELD=VALUE..."""
    name, *settings = spec.split(":")
    return gingham.RECIPES[name].replace(**parse_settings(settings))


@dataclass
class Session:
    """What a stage needs: the options, where its results go, and when it has to end."""

    options: argparse.Namespace
    stage: str
    deadline: float

    @property
    def device(self) -> torch.device:
        return choose_device("auto")

    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def write(self, **values: Any) -> None:
        """Append a result to the results file."""
        line = json.dumps({"stage": self.stage, **values})
        with (self.options.out / RESULTS).open("a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        shown = {key: value for key, value in values.items() if key != "predicted"}
        print(f"{self.stage}: {json.dumps(shown)}", flush=True)

    def recipe(self, spec: str) -> Recipe:
        """Return the recipe of a specification, made tiny in a rehearsal."""
        recipe = parse_recipe(spec)
        if self.options.rehearse:
            return recipe.replace(network="tiny", epochs=0.5, batch_size=32, compile=False)
        return recipe

    def data(self, validation: int = 5000) -> DataSplits:
        data = gingham.load_data(self.options.data, validation=validation)
        if not self.options.rehearse:
            return data

        def first(split: Split, count: int) -> Split:
            return replace(split, images=split.images[:count], labels=split.labels[:count])

        held_out = first(data.validation, 100) if data.validation else None
        return replace(data, train=first(data.train, 300), validation=held_out, test=first(data.test, 100))


# --- the stages


def measure_environment(session: Session) -> None:
    """Versions, power limit, and the GPU's rates in matrix products and copies."""
    device = session.device
    rates = {name: time_to_accuracy.matmul_tflops(getattr(torch, name), device) for name in ("bfloat16", "float32")}
    source = torch.empty((1 << 16) if session.options.rehearse else (1 << 32), dtype=torch.uint8, device=device)
    seconds = measure(source.clone, device, calls=5)
    session.write(
        environment=describe_environment(device),
        commit=records.clean_commit(),
        command=" ".join(["python", "benchmarks/gpu.py", *sys.argv[1:]]),
        fingerprint=session.data().fingerprint,
        is_rehearsal=session.options.rehearse,
        matrix_tflops=rates,
        copy_bytes_per_second=2 * source.nbytes / seconds,  # read and written
    )


def run_tests(session: Session) -> None:
    """The tests that need a GPU."""
    files = ["tests/training/test_cuda.py", "tests/training/test_step.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no", *files]
    limit = session.seconds_left() - 1
    done = subprocess.run(command, cwd=records.ROOT, capture_output=True, text=True, check=False, timeout=limit)
    (session.options.out / "tests.txt").write_text(done.stdout + done.stderr)
    summary = done.stdout.strip().rpartition("\n")[2]
    session.write(summary=summary)
    if done.returncode:
        raise RuntimeError(f"{summary}; the output is in tests.txt")


def measure_article(session: Session) -> None:
    """The article's recipe, which has no validation split, over three seeds."""
    test_runs(session, "article", train_seeds(session, "article", range(3)))


def measure_steps(session: Session) -> None:
    """Milliseconds per step, eager and as a CUDA graph, and what the time of an eager step is spent on."""
    for name in RECIPES:
        for kind in ("eager", "graph") if session.device.type == "cuda" else ("eager",):
            write_step_time(session, name, kind)
        write_profile(session, name)


def measure_compiled_steps(session: Session) -> None:
    """Milliseconds per step of the compiled network, as a CUDA graph."""
    for name in RECIPES:
        write_step_time(session, name, "compiled")


def measure_94(session: Session) -> None:
    """`gpu-94` at three lengths on the validation split, and the chosen one on the test split."""
    measure_best(session, "gpu-94", num_seeds=100)


def measure_95(session: Session) -> None:
    """`gpu-95` on the test split."""
    measure_best(session, "gpu-95", num_seeds=50)


def measure_96(session: Session) -> None:
    """`gpu-96` on the test split."""
    measure_best(session, "gpu-96", num_seeds=20)


class Stage(NamedTuple):
    run: Callable[[Session], None]
    seconds: int  # its time limit, unless it is the last one, which may take the rest of the minutes


STAGES = {
    "environment": Stage(measure_environment, 30),
    "tests": Stage(run_tests, 75),
    "article": Stage(measure_article, 45),
    "steps": Stage(measure_steps, 45),
    "gpu-94": Stage(measure_94, 190),
    "gpu-95": Stage(measure_95, 240),
    "gpu-96": Stage(measure_96, 560),
    "compiled": Stage(measure_compiled_steps, 120),
}


# --- what they measure


def measure(function: Callable[[], object], device: torch.device, calls: int, rounds: int = 5) -> float:
    """Return the median seconds of a call, over rounds of `calls` calls that are queued together."""

    def wait() -> None:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    seconds = []
    for _ in range(rounds + 1):
        wait()
        started = time.perf_counter()
        for _ in range(calls):
            function()
        wait()
        seconds.append((time.perf_counter() - started) / calls)
    return statistics.median(seconds[1:])  # the first one is the warm-up


def create_step(session: Session, name: str, kind: str) -> tuple[TrainStep, Batch, float]:
    """Return a step of a recipe, a batch for it, and the floating-point operations of both passes."""
    recipe, device = session.recipe(name), session.device
    torch.manual_seed(0)
    model = build_classifier(recipe.network, list("0123456789"), (1, 28, 28), recipe.mean, recipe.std).to(device)
    flops = 3 * gingham.summarize(model.network.cpu(), (1, 28, 28)).flops * recipe.batch_size
    model.to(device).train()
    batch = dummy_batch(recipe.batch_size, model, recipe)
    step = step_time.create_step(model, recipe, choose_precision(recipe.precision, device))
    warm_up(model, step, [batch], recipe, 0)
    train_step: TrainStep = step
    if kind == "compiled":
        train_step = step = compile_step(step, [batch], f"{recipe.network} of {name}")
    if kind != "eager" and device.type == "cuda":
        train_step = CUDAGraphStep(step, [batch])
    return train_step, batch, flops


def write_step_time(session: Session, name: str, kind: str) -> None:
    train_step, batch, flops = create_step(session, name, kind)
    seconds = measure(lambda: train_step(batch), session.device, calls=20)
    session.write(recipe=name, step=kind, milliseconds=1000 * seconds, tflops=flops / seconds / 1e12)


def write_profile(session: Session, name: str) -> None:
    """Write the kernels of an eager step with the longest times; their sum is the time that the GPU is busy."""
    train_step, batch, _ = create_step(session, name, "eager")
    rows = step_time.operations(train_step, batch, steps=5)
    session.write(
        recipe=name,
        kernel_microseconds=sum(time for _, time, _ in rows),
        kernels=sum(count for _, _, count in rows),
        profile=[[round(time, 1), count, key[:160]] for key, time, count in rows[:40]],
    )


def measure_best(session: Session, name: str, num_seeds: int) -> None:
    """Train some seeds of each candidate, more of the best one, and evaluate the latter on the test split."""
    given = [spec for spec in session.options.recipe or [] if spec.partition(":")[0] == name]
    candidates = given or CANDIDATES[name]
    num_seeds = session.options.seeds or (TRIAL_SEEDS + 1 if session.options.rehearse else num_seeds)
    trials = range(min(TRIAL_SEEDS, num_seeds))
    runs = {spec: train_seeds(session, spec, trials) for spec in candidates}
    best = choose(runs, time_to_accuracy.TARGETS[name][1] or float("inf"))
    session.write(chosen=best)
    test_runs(session, best, train_seeds(session, best, range(len(trials), num_seeds), runs[best]))


def choose(runs: dict[str, list[Run]], seconds: float) -> str:
    """Return the settings with the best mean validation accuracy, of those that train within the recipe's seconds.

    If none do, return the fastest.
    """
    trained = {spec: seeds for spec, seeds in runs.items() if seeds}
    if not trained:
        raise RuntimeError("there was not enough time for a single seed")
    times = {spec: statistics.median(run.metrics["train_seconds"] for run in trained[spec]) for spec in trained}
    accuracies = {
        spec: statistics.mean(run.metrics["validation_accuracy"] for run in trained[spec])
        for spec in trained
        if times[spec] <= seconds
    }
    return max(accuracies, key=accuracies.__getitem__) if accuracies else min(times, key=times.__getitem__)


def predict(run: Run, split: Split) -> tuple[float, torch.Tensor]:
    """Return a run's accuracy on a split and the predicted classes, int64 (N,)."""
    with tempfile.TemporaryDirectory() as folder:  # `evaluate` saves the predictions there
        gingham.save(run, folder)
        accuracy = gingham.evaluate(run, split).accuracy
        predicted = load_predictions(run, split)
        run.folder = None
    assert predicted is not None
    return accuracy, predicted


def train_seeds(session: Session, spec: str, seeds: Iterable[int], before: Sequence[Run] = ()) -> list[Run]:
    """Train seeds of a recipe and write each; return the runs, after those from `before`.

    Stops when the rest of the stage's time is needed to evaluate the runs on the test split.
    """
    recipe = session.recipe(spec)
    data = session.data(recipe.validation_images)
    prepare_process(compile_steps=recipe.compile)
    # It changes no label, and would take as long as the training of `gpu-94`.
    training_loop.calibrate = lambda *_: None  # type: ignore[attr-defined]
    network = build_classifier(recipe.network, data.classes, (1, 28, 28)).network
    flops = 3 * gingham.summarize(network, (1, 28, 28)).flops
    runs: list[Run] = []
    training = evaluation = 0.0  # the longest seconds of one so far
    for seed in seeds:
        if 1.2 * training + 1.2 * evaluation * (len(runs) + len(before) + 1) + 2 > session.seconds_left():
            break
        started = time.monotonic()
        run = gingham.fit(recipe.replace(seed=seed), data.train, data.validation, progress=False)
        wall_seconds = time.monotonic() - started
        training = max(training, wall_seconds if runs else run.metrics["train_seconds"])  # the first loads libraries
        if not runs:
            held_out = data.validation or replace(
                data.train, images=data.train.images[:5000], labels=data.train.labels[:5000]
            )
            predict(run, held_out)  # loads libraries
            started = time.monotonic()
            predict(run, held_out)
            evaluation = (time.monotonic() - started) * len(data.test) / len(held_out)
        kept = ("precision", "epochs", "steps", "parameters", "validation_accuracy", "train_seconds")
        session.write(
            recipe=spec,
            seed=seed,
            wall_seconds=wall_seconds,
            tflops=flops * run.metrics["images_seen"] / run.metrics["train_seconds"] / 1e12,
            **{name: run.metrics[name] for name in kept},
        )
        runs.append(run)
    return [*before, *runs]


def test_runs(session: Session, spec: str, runs: Iterable[Run]) -> None:
    """Evaluate runs on the test split, and write each accuracy and the predictions."""
    test = session.data().test
    for run in runs:
        accuracy, predicted = predict(run, test)
        packed = base64.b64encode(zlib.compress(predicted.to(torch.uint8).numpy().tobytes(), 9)).decode()
        session.write(recipe=spec, seed=run.recipe.seed, test_accuracy=accuracy, predicted=packed)


# --- one after the other


def run_stage(name: str, options: argparse.Namespace, seconds: float) -> None:
    """Run a stage in this process, which leads a process group, so that its own processes can be stopped with it."""
    os.setsid()
    session = Session(options, name, time.monotonic() + seconds)
    try:
        STAGES[name].run(session)
    except BaseException as error:  # noqa: BLE001 - the other stages must still run
        traceback.print_exc()
        session.write(error=f"{type(error).__name__}: {one_line(error)}")
        sys.exit(1)


def run_all(options: argparse.Namespace) -> bool:
    """Run the stages one after the other until the minutes are over; return whether all ended by themselves."""
    end = time.monotonic() + 60 * options.minutes
    # Forked processes need not import torch again. This process uses neither the GPU nor threads before it forks.
    context = multiprocessing.get_context("fork")
    names = [name for name in STAGES if not options.only or name in options.only or name == "environment"]
    statuses = []
    for number, name in enumerate(names):
        session = Session(options, name, end)
        limit = STAGES[name].seconds if number < len(names) - 1 else float("inf")
        seconds = min(limit, session.seconds_left())
        if seconds < MIN_SECONDS:
            session.write(status="skipped: the minutes are over", seconds=0)
            statuses.append("skipped")
            continue
        started = time.monotonic()
        process = context.Process(target=run_stage, args=(name, options, seconds))
        process.start()
        process.join(seconds)
        statuses.append({0: "done", None: "stopped at its time limit"}.get(process.exitcode, "failed"))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.kill()  # if it had not yet become the leader of its group
        process.join()
        session.write(status=statuses[-1], seconds=time.monotonic() - started)
    return all(status == "done" for status in statuses)


# --- afterwards


def read_results(folders: Iterable[Path]) -> list[dict[str, Any]]:
    rows = []
    for folder in folders:
        path = folder / RESULTS
        if not path.exists():
            sys.exit(f"there is no {path}; give a folder that was --out")
        rows += [json.loads(line) for line in path.read_text().splitlines()]
    return rows


def by_recipe(rows: list[dict[str, Any]], key: str) -> dict[str, list[dict[str, Any]]]:
    """Return the last row of each seed that has a key, by recipe and in the order of the seeds."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        if key in row:
            found.setdefault(row["recipe"], {})[row["seed"]] = row
    return {spec: [row for _, row in sorted(seeds.items())] for spec, seeds in found.items()}


def summary(values: list[float]) -> str:
    low, high = mean_interval(values)
    spread = f" ± {statistics.stdev(values):.2%}, {low:.2%} to {high:.2%}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2%}{spread}"


def report(rows: list[dict[str, Any]]) -> tuple[str, dict[str, Any], str]:
    """Return a results file in Markdown, the environment and the commit."""
    (first, *others) = [row for row in rows if "environment" in row] or sys.exit("the stage environment did not end")
    if any(row["environment"] != first["environment"] or row["commit"] != first["commit"] for row in others):
        sys.exit("the results are of several machines, versions or commits; report them one by one")
    rate = first["matrix_tflops"]["bfloat16"]
    lines = [
        "# On one GPU",
        "",
        f"Command: `{first['command']}`, commit {first['commit'][:12]}.",
        f"Hardware: {first['environment']['hardware']}; torch {first['environment']['torch']}.",
        f"Matrix products: {rate:.0f} TFLOP/s in bfloat16, {first['matrix_tflops']['float32']:.0f} in float32.",
        f"Copies: {first['copy_bytes_per_second'] / 1e12:.1f} TB/s, read and written.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    tests = by_recipe(rows, "test_accuracy")
    for spec, seeds in by_recipe(rows, "train_seconds").items():
        found = {"validation": [row["validation_accuracy"] for row in seeds if row["validation_accuracy"] is not None]}
        found["test"] = [row["test_accuracy"] for row in tests.get(spec, [])]
        tested = {row["seed"] for row in tests.get(spec, [])}
        for split, accuracies in found.items():
            if accuracies:
                median = {
                    key: statistics.median(row[key] for row in seeds if split != "test" or row["seed"] in tested)
                    for key in ("train_seconds", "wall_seconds", "steps", "tflops")
                }
                lines.append(
                    f"| `{spec}` | {split} | {summary(accuracies)} | {len(accuracies)} | {median['train_seconds']:.3f} "
                    f"| {median['wall_seconds']:.1f} | {median['steps']:,.0f} | {median['tflops'] / rate:.0%} |"
                )
    lines += ["", "| recipe | step | milliseconds | share of the bfloat16 rate |", "| --- | --- | ---: | ---: |"]
    for row in rows:
        if "milliseconds" in row:
            share = f"{row['tflops'] / rate:.0%}"
            lines.append(f"| `{row['recipe']}` | {row['step']} | {row['milliseconds']:.2f} | {share} |")
    for row in rows:
        if "profile" in row:
            lines += ["", f"## The kernels of an eager step of `{row['recipe']}`", ""]
            lines += [f"{row['kernels']:.0f} kernels, {row['kernel_microseconds']:,.0f} microseconds in all.", ""]
            lines += ["| kernel | microseconds | calls |", "| --- | ---: | ---: |"]
            lines += [f"| `{key[:80]}` | {time:.0f} | {count:g} |" for time, count, key in row["profile"][:12]]
    lines += ["", "| stage | seconds | how it ended |", "| --- | ---: | --- |"]
    errors = {row["stage"]: row["error"] for row in rows if "error" in row}
    for row in rows:
        if "status" in row:
            reason = f": {errors[row['stage']]}" if row["status"] == "failed" and row["stage"] in errors else ""
            lines.append(f"| {row['stage']} | {row['seconds']:.0f} | {row['status']}{reason} |")
    return "\n".join([*lines, ""]), first["environment"], first["commit"]


def write_gpu_records(rows: list[dict[str, Any]], environment: dict[str, Any], commit: str) -> None:
    """Write a record for each recipe with enough seeds on the test split."""
    command = " && ".join(dict.fromkeys(row["command"] for row in rows if "command" in row))
    tests, trained = by_recipe(rows, "test_accuracy"), by_recipe(rows, "train_seconds")
    for spec, seeds in tests.items():
        name = spec.partition(":")[0]
        if len(seeds) < time_to_accuracy.MIN_SEEDS.get(name, 10):
            continue
        times = {row["seed"]: row for row in trained[spec]}
        packed = [zlib.decompress(base64.b64decode(row["predicted"])) for row in seeds]
        path = records.write_record(
            name,
            target=time_to_accuracy.TARGETS[name][0],
            accuracies=[row["test_accuracy"] for row in seeds],
            train_seconds=[times[row["seed"]]["train_seconds"] for row in seeds],
            wall_seconds=[times[row["seed"]]["wall_seconds"] for row in seeds],
            environment=environment,
            commit=commit,
            command=command,
            recipe=parse_recipe(spec).to_dict(),
            extra={
                "precision": times[seeds[0]["seed"]]["precision"],
                "seeds_a_process": len(times),
                "teachers": 0,
                "seeds_trained": len(times),
            },
            predictions=[torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in packed],
        )
        print(path)


def write_report(folders: list[Path], *, record: bool) -> None:
    """Print the results, and write them to benchmarks/results and with `record` to records/, unless of a rehearsal."""
    rows = read_results(folders)
    text, environment, commit = report(rows)
    print(text)
    if any(row.get("is_rehearsal") for row in rows):
        print("These are results of a rehearsal, so they are not written.")
        return
    path = records.write_result("gpu", environment, text)
    kept = [{key: value for key, value in row.items() if key != "predicted"} for row in rows]
    write_text(path.with_suffix(".jsonl"), "".join(json.dumps(row) + "\n" for row in kept))
    print(path)
    if record:
        write_gpu_records(rows, environment, commit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=8, help="stop after this many (default: 8)")
    parser.add_argument("--out", type=Path, help="the folder of the results, which are appended to those in it")
    parser.add_argument("--data", default="fashion-mnist", help="a folder with Fashion-MNIST (default: as load_data)")
    parser.add_argument("--only", action="append", choices=STAGES, help="run this stage only; repeatable")
    parser.add_argument(
        "--recipe", action="append", metavar="RECIPE[:FIELD=VALUE...]", help="a candidate of its stage; repeatable"
    )
    parser.add_argument(
        "--seeds", type=int, help="seeds of each recipe for GPUs on the test split, if there is time for them"
    )
    parser.add_argument("--rehearse", action="store_true", help="tiny networks and few images, to try the stages")
    parser.add_argument("--report", type=Path, nargs="+", metavar="DIR", help="write a results file instead")
    parser.add_argument("--record", action="store_true", help="with --report: write records too")
    options = parser.parse_args()
    for spec in options.recipe or []:
        if spec.partition(":")[0] not in CANDIDATES:
            parser.error(f"--recipe got {spec}; it takes settings of {', '.join(CANDIDATES)}")
        try:
            parse_recipe(spec)
        except GinghamError as error:
            parser.error(f"--recipe got {spec}: {error}")
    if options.seeds is not None and options.seeds < 1:
        parser.error(f"--seeds is {options.seeds}; it takes a number of at least 1")
    if options.report:
        write_report(options.report, record=options.record)
        return
    if options.out is None or options.record:
        parser.error("give --out DIR to measure, or --report DIR, with --record or without")
    if not options.rehearse and not torch.cuda.device_count():
        parser.error("there is no NVIDIA GPU; --rehearse runs the stages at tiny sizes")
    if not Path(options.data).is_dir() and options.data != "fashion-mnist":
        parser.error(f"--data is {options.data}, which is not a folder; give one with the four files of Fashion-MNIST")
    records.clean_commit()  # exits if the tree has changes
    options.out.mkdir(parents=True, exist_ok=True)
    sys.exit(0 if run_all(options) else 1)


if __name__ == "__main__":
    records.run(main)
