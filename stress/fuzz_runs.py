"""Fuzzed files of a run: model.json, weights, history, predictions and checkpoints; and recipes."""

import hashlib
import json
import math
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import load as safetensors_load
from safetensors.torch import save

import gingham
from gingham.cli.train import format_trained
from gingham.deploy.page import model_metadata
from gingham.evaluation.novelty import fit_novelty
from gingham.models.networks import NETWORKS
from gingham.models.registry import build_classifier
from gingham.presets import RECIPES
from gingham.recipe import Recipe, parse_settings
from gingham.reports.html import write_report
from gingham.runs.checkpoint import has_checkpoint, load_checkpoint
from gingham.runs.predictions import load_predictions, save_predictions
from gingham.runs.run import Run, load
from gingham.runs.schema import SECTIONS
from stress.mutations import mutate
from stress.verdicts import DECOY_MODULES, Judge

Case = Callable[[], object]
CLASSES = ("cat", "dog", "hen")
RECIPE = gingham.RECIPES["fast"].replace(network="tiny", epochs=2, batch_size=4, hard_share=0.5, precision="float32")
FIELDS = tuple(RECIPE.to_dict())
METADATA_KEYS = {(section, key) for section, rules in SECTIONS.items() for key in rules}
METADATA_KEYS |= {("data", "new")}
STEPS = 60  # enough losses for the diagnosis
REPORT_EVERY = 25  # the report of one in this many loaded runs is written, which takes 100 times as long as the rest

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from((-1, 10**6, 2**31, 2**63, 10**30, 10**400)),
    st.sampled_from(
        (
            "x" * 5000,
            "\ud800",
            "a\nb",
            "\x1b[2J",
            "\0",
            "tiny",
            "article",
            "huge",
            "os:system",
            *(f"{name}:Net" for name in DECOY_MODULES),
        )
    ),
)
VALUES = st.one_of(
    scalars,
    scalars,
    st.lists(scalars, max_size=3),
    st.dictionaries(st.text(max_size=4) | st.sampled_from(FIELDS), scalars, max_size=2),
    st.lists(st.lists(scalars, max_size=2), max_size=2),
    st.just([[[[[[]]]]]]),
    st.lists(st.integers(0, 5000), min_size=3, max_size=3),
)


def check_run(run: Run) -> None:
    """Check that a loaded run predicts, and that its metadata can be written and printed."""
    channels, height, width = run.model.input_shape
    if channels * height * width <= 10_000:
        random = torch.Generator().manual_seed(0)
        images = torch.randint(256, (2, channels, height, width), generator=random, dtype=torch.uint8)
        predictions = run.model.predict(images)
        probabilities = predictions.probabilities
        assert probabilities.isfinite().all(), "probabilities that are not finite"
        assert predictions.novelty.isfinite().all(), "novelty scores that are not finite"
        assert ((probabilities.sum(dim=1) - 1).abs() < 1e-3).all()
    assert Recipe.from_dict(json.loads(json.dumps(run.recipe.to_dict()))) == run.recipe
    json.dumps(run.metadata(), allow_nan=False, ensure_ascii=False).encode()
    json.dumps(model_metadata(run), allow_nan=False, ensure_ascii=False).encode()
    text = format_trained(run, Path("run"), None)
    assert text.replace("\n", "").isprintable(), "what could write to a terminal"


class RunFolder:
    """A small run in a folder whose files are restored before each case."""

    def __init__(self, judge: Judge) -> None:
        self.folder = judge.folder / "run"
        torch.manual_seed(0)
        model = build_classifier("tiny", CLASSES, (1, 8, 8), RECIPE.mean, RECIPE.std, RECIPE.tta)
        history = [
            {"step": step, "loss": 1.0 / step, "accuracy": 0.5, "learning_rate": 0.1} for step in range(1, STEPS + 1)
        ]
        evaluations = {"validation_loss": 1.1, "validation_accuracy": 0.5}
        history.append({"epoch": 1.0, "step": STEPS, "train_loss": 0.6, "train_accuracy": 0.5, **evaluations})
        metrics = {"validation_accuracy": 0.5, "train_seconds": 1.0, "epochs": 1.0}
        run = Run(
            model, RECIPE, history, metrics, {"name": "pets", "fingerprint": "f", "background": 0.0}, {"torch": "2"}
        )
        images = torch.randint(256, (12, 1, 8, 8), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
        self.splits = [
            gingham.Split(name, images, torch.arange(12) % 3, CLASSES, "pets", "f") for name in ("train", "validation")
        ]
        fit_novelty(model, *self.splits)
        gingham.save(run, self.folder)
        logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
        self.run = run
        self.predicted_split = gingham.Split("validation", images[:6], torch.arange(6) % 3, CLASSES, "pets", "f")
        save_predictions(run, self.predicted_split, logits)
        self.files = {path.name: path.read_bytes() for path in self.folder.iterdir()}
        write_report(
            run, *self.splits, None, judge.folder / "report.html"
        )  # libraries may write files on their first use
        self.metadata = json.loads(self.files["model.json"])
        self.dirty: set[str] = set()

    def write(self, **files: bytes) -> None:
        """Replace the files of these names (underscores for dots and hyphens) and restore all others."""
        contents = {
            name: files.get(name.replace(".", "_").replace("-", "_"), content) for name, content in self.files.items()
        }
        for name, content in contents.items():
            if name in self.dirty or content != self.files[name]:
                (self.folder / name).write_bytes(content)
        self.dirty = {name for name, content in contents.items() if content != self.files[name]}

    def metadata_for(self, weights: bytes, **changes: Any) -> bytes:
        """Return a model.json with the checksum of these weights."""
        return json.dumps({**self.metadata, **changes, "weights_sha256": hashlib.sha256(weights).hexdigest()}).encode()

    def read(self) -> None:
        run = load(self.folder)
        check_run(run)
        can_report = run.model.input_shape == (1, 8, 8) and run.model.classes == CLASSES
        content = b"".join((self.folder / name).read_bytes() for name in ("model.json", "history.jsonl"))
        if can_report and zlib.crc32(content) % REPORT_EVERY == 0:
            write_report(run, *self.splits, None, self.folder / "report.html")
            (self.folder / "report.html").unlink()


class ModelJson(RunFolder):
    """model.json and history.jsonl."""

    def __init__(self, judge: Judge) -> None:
        super().__init__(judge)
        keys = st.tuples(st.sampled_from((*self.metadata, "new"))) | st.tuples(
            st.just("recipe"), st.sampled_from((*FIELDS, "new"))
        )
        inner = st.sampled_from(sorted(METADATA_KEYS))
        change = st.tuples(keys | keys | inner, st.sampled_from(("set", "set", "set", "remove")), VALUES)
        word = st.sampled_from(("cat", "", "a\nb", "\ud800", "x" * 3000, "\x1b[2J", "\u202e")) | st.text(max_size=4)
        change |= st.tuples(st.just(("classes",)), st.just("set"), st.lists(word, min_size=3, max_size=3))
        layers = ["", "nowhere", *dict(self.run.model.network.named_modules())]
        stages = st.lists(st.sampled_from(layers), max_size=4)
        change |= st.tuples(st.just(("novelty", "stages")), st.just("set"), stages)
        shape = st.lists(st.sampled_from((1, 3, 8, 28, 64, 65, 4096)), min_size=3, max_size=3)
        change |= st.tuples(st.just(("input_shape",)), st.just("set"), shape)
        self.examples = st.tuples(
            st.sampled_from(("metadata",) * 8 + ("top", "history", "entry", "entry", "deep")),
            st.lists(change, min_size=1, max_size=3),
            VALUES,
            st.booleans(),
        )

    def mutated_case(self, random: Random) -> Case:
        name = "history.jsonl" if random.random() < 0.15 else "model.json"
        self.write(**{name.replace(".", "_"): mutate(random, [self.files[name]])})
        return self.read

    def generated_case(self, example: Any) -> Case:
        kind, changes, value, duplicated = example
        metadata = json.loads(self.files["model.json"])
        for path, what, new in changes:
            inner = metadata
            for key in path[:-1]:
                inner = inner.get(key) if isinstance(inner, dict) else None
            if not isinstance(inner, dict):
                continue
            if what == "set":
                inner[path[-1]] = new
            else:
                inner.pop(path[-1], None)
            if duplicated and path[0] == "recipe" and path[-1] in metadata:  # a field that is stored twice
                metadata[path[-1]] = new
        text = json.dumps(metadata if kind == "metadata" else value).encode()
        if kind == "deep":
            text = b'{"format":' + b"[" * 100_000
        if kind == "entry":  # one key of an entry changed or removed
            entries = [json.loads(line) for line in self.files["history.jsonl"].splitlines()]
            for number, (_, what, new) in enumerate(changes):
                entry = entries[-1 - number]
                keys = list(entry)
                key = keys[zlib.crc32(text) % len(keys)]
                entry.pop(key) if what == "remove" else entry.update({key: new})
            self.write(history_jsonl="\n".join(map(json.dumps, entries)).encode())
        elif kind == "history":
            self.write(history_jsonl=text + b"\n" + json.dumps(changes[0][2]).encode())
        else:
            self.write(model_json=text)
        return self.read


class Weights(RunFolder):
    """model.safetensors, with and without its checksum in model.json, and predictions-validation.safetensors."""

    def __init__(self, judge: Judge) -> None:
        super().__init__(judge)
        self.tensors = safetensors_load(self.files["model.safetensors"])
        self.predicted = safetensors_load(self.files["predictions-validation.safetensors"])
        names = st.sampled_from((*self.tensors, "mean", "temperature", "threshold", "extra", "__metadata__", ""))
        names |= st.sampled_from([name for name in self.tensors if name.startswith("novelty.")])
        numbers = st.sampled_from((math.nan, math.inf, -math.inf, 3e38, 1e30, 1e-38, 0.0, -1.0, 0.5, 1e9))
        change = st.tuples(
            names,
            st.sampled_from(("fill", "fill", "one", "half", "double", "bool", "shape", "empty", "remove")),
            numbers,
        )
        number = st.integers(-3, 300) | st.sampled_from((2**31, 2**63, 2**64, 10**30, 1.5, None, "1", True))
        entry = st.fixed_dictionaries(
            {},
            optional={
                "dtype": st.sampled_from(
                    ("F32", "F32", "F16", "F64", "I64", "BOOL", "F8_E4M3", "F4", "C64", "U7", "", None, 1)
                ),
                "shape": st.lists(number, max_size=4) | number,
                "data_offsets": st.lists(number, max_size=3) | number,
                "more": number,
            },
        )
        header = st.tuples(
            st.dictionaries(
                st.sampled_from((*self.tensors, "x", "__metadata__", "\ud800", "a\nb")), entry, min_size=1, max_size=4
            ),
            st.none() | st.integers(-2, 40) | st.sampled_from((0, 1, 10**6, 10**8, 2**31, 2**63, 2**64 - 1)),
            st.booleans(),
        )
        prediction_change = st.tuples(
            st.sampled_from(("predicted", "confidence", "labels", "extra")),
            st.sampled_from(("fill", "one", "shape", "double", "empty", "remove", "bool")),
            numbers,
        )
        self.examples = st.one_of(
            st.tuples(st.just("tensors"), st.lists(change, min_size=1, max_size=3)),
            st.tuples(st.just("header"), header),
            st.tuples(st.just("predictions"), st.lists(prediction_change, min_size=1, max_size=2)),
        )

    def mutated_case(self, random: Random) -> Case:
        kind = random.random()
        if kind < 0.25:
            self.write(
                predictions_validation_safetensors=mutate(random, [self.files["predictions-validation.safetensors"]])
            )
            return self.predictions
        weights = mutate(
            random, [self.files["model.safetensors"], self.files["model.safetensors"], *self.files.values()]
        )
        if kind < 0.9:
            self.write(model_safetensors=weights, model_json=self.metadata_for(weights))
        else:
            self.write(model_safetensors=weights)
        return self.read

    def predictions(self) -> None:
        predicted = load_predictions(self.run, self.predicted_split)
        if predicted is not None:
            assert predicted.shape == self.predicted_split.labels.shape
            assert predicted.dtype == torch.int64
            assert ((predicted >= 0) & (predicted < len(CLASSES))).all(), "a class that there is not"

    def generated_case(self, example: Any) -> Case:
        kind, values = example
        if kind == "predictions":
            tensors = change_tensors(self.predicted, values)
            head = json.loads(self.files["predictions-validation.safetensors"][8:].partition(b"}}")[0] + b"}}")
            self.write(predictions_validation_safetensors=save(tensors, head["__metadata__"]))
            return self.predictions
        if kind == "tensors":
            tensors = change_tensors(self.tensors, values)
            weights = save(tensors)
            thresholds: dict[str, Any] = {
                key: float(tensors[key])
                for key in ("temperature", "threshold", "photo_threshold")
                if key in tensors and tensors[key].numel() == 1
            }
            novelty = {
                key: float(tensors[f"novelty.{key}"])
                for key in ("threshold", "photo_threshold")
                if f"novelty.{key}" in tensors and tensors[f"novelty.{key}"].numel() == 1
            }
            thresholds["novelty"] = self.metadata["novelty"] | novelty
            self.write(model_safetensors=weights, model_json=self.metadata_for(weights, **thresholds))
            return self.read
        entries, length, keep_header = values
        head = json.loads(self.files["model.safetensors"][8:].partition(b"}}")[0] + b"}}") if keep_header else {}
        text = json.dumps(
            {**head, **{name: {**head.get(name, {}), **entry} for name, entry in entries.items()}}
        ).encode()
        size = len(text) if length is None else length if length > 50 or length < 0 else len(text) + length
        body = self.files["model.safetensors"][8:].partition(b"}}")[2]
        weights = struct.pack("<Q", size & (2**64 - 1)) + text + body
        self.write(model_safetensors=weights, model_json=self.metadata_for(weights))
        return self.read


def change_tensors(tensors: dict[str, torch.Tensor], changes: Any) -> dict[str, torch.Tensor]:
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    for name, what, number in changes:
        old = tensors.get(name, torch.ones(2))
        if what == "remove":
            tensors.pop(name, None)
            continue
        if what in ("fill", "one"):
            number = _clamp(number, old.dtype)  # noqa: PLW2901
        new = old.clone()
        if what == "fill":
            new.fill_(number)
        elif what == "one" and new.numel():
            new.view(-1)[0] = number
        elif what in ("half", "double", "bool"):
            new = getattr(new, what)()
        elif what == "shape":
            new = new.reshape(1, -1)
        elif what == "empty":
            new = new.reshape(-1)[:0]
        if name != "__metadata__":
            tensors[name] = new
    return tensors


def _clamp(number: float, kind: torch.dtype) -> float:
    """Clamp a number to the range of a dtype."""
    if kind.is_floating_point:
        return number if not math.isfinite(number) else max(torch.finfo(kind).min, min(torch.finfo(kind).max, number))
    if kind == torch.bool:
        return bool(number)
    limits = torch.iinfo(kind)
    return limits.min if math.isnan(number) else int(max(limits.min, min(limits.max, number)))


class _StopError(Exception):
    pass


class Checkpoints:
    """Checkpoints of an interrupted training: it resumes to the same weights, or the checkpoint is refused."""

    def __init__(self, judge: Judge) -> None:
        self.folder, self.original = judge.folder / "run", judge.folder / "original"
        random = torch.Generator().manual_seed(0)
        images = torch.randint(256, (12, 1, 8, 8), generator=random, dtype=torch.uint8)
        self.train = gingham.Split("train", images, torch.arange(12) % 3, CLASSES, "pets", "f")
        self.reference = self.fit()

        def stop(model: object, epoch: int) -> None:
            raise _StopError

        # One epoch has three steps, and each is saved.
        try:
            gingham.fit(
                self.recipe(),
                self.train,
                folder=self.folder,
                progress=False,
                options=gingham.FitOptions(on_epoch=stop, device="cpu"),
            )
        except _StopError:
            pass
        else:
            raise AssertionError("it was to be interrupted")
        self.folder.rename(self.original)
        self.files = {path.name: path.read_bytes() for path in sorted((self.original / "checkpoint").iterdir())}
        self.newest = max(name for name in self.files if name.endswith(".safetensors"))
        self.tensors = safetensors_load(self.files[self.newest])
        self.metadata = load_checkpoint(self.original).metadata
        names = st.sampled_from(
            (
                *self.tensors,
                "optimizer.x.y",
                "optimizer.99.momentum_buffer",
                "optimizer.-1.momentum_buffer",
                "best.x",
                "ema.x",
                "model",
            )
        )
        numbers = st.sampled_from((math.nan, math.inf, 3e38, 0.0, -1.0, 0.5, 1e9))
        change = st.tuples(
            names, st.sampled_from(("fill", "one", "double", "bool", "shape", "empty", "remove")), numbers
        )
        metadata_change = st.tuples(
            st.sampled_from((*self.metadata, *self.metadata, "new")), VALUES | st.integers(0, 9), st.booleans()
        )
        epoch = st.dictionaries(
            st.sampled_from(("epoch", "step", "train_loss", "validation_accuracy", "validation_loss")),
            scalars,
            max_size=5,
        )
        manifest = st.dictionaries(
            st.sampled_from(("format", "step", "bytes", "sha256", "x")), VALUES, min_size=1, max_size=2
        )
        self.examples = st.one_of(
            st.tuples(st.just("tensors"), st.lists(change, min_size=1, max_size=2)),
            st.tuples(st.just("metadata"), st.lists(metadata_change, min_size=1, max_size=2)),
            st.tuples(st.just("epochs"), st.lists(epoch, max_size=3)),
            st.tuples(st.just("manifest"), manifest),
            st.tuples(
                st.just("names"),
                st.sampled_from(("step-99999999.json", "step-.json", "step-x.json", "step-00000009.json", ".step-1")),
            ),
        )

    def recipe(self) -> Recipe:
        return RECIPE.replace(checkpoint_seconds=0, flip="random", shift_pixels=1, ema_decay=0.9)

    def fit(self, folder: Path | None = None, *, resume: bool = False) -> dict[str, torch.Tensor]:
        run = gingham.fit(
            self.recipe(),
            self.train,
            folder=folder,
            resume=resume,
            progress=False,
            options=gingham.FitOptions(device="cpu"),
        )
        return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}

    def write(self, files: dict[str, bytes]) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "checkpoint").mkdir(parents=True)
        for name, content in files.items():
            (self.folder / "checkpoint" / name).write_bytes(content)

    def mutated_case(self, random: Random) -> Case:
        files = dict(self.files)
        for _ in range(random.choice((1, 1, 2, 4))):
            name = random.choice([*files])
            if random.random() < 0.1:
                del files[name]
            else:
                files[name] = mutate(random, [self.files[name], self.files[name], *self.files.values()])
            if not files:
                break
        self.write(files)
        return lambda: self.read(exact=True, resume=random.random() < 0.02)

    def read(self, *, exact: bool, resume: bool) -> None:
        """Read the checkpoint, and rarely, since it takes longest, resume from it."""
        if has_checkpoint(self.folder):
            checkpoint = load_checkpoint(self.folder)
            assert isinstance(checkpoint.metadata, dict)
            if exact:
                assert checkpoint.metadata["step"] in (1, 2), "a checkpoint that was not kept"
        if resume:
            tensors = self.fit(self.folder, resume=True)
            if exact:
                for name, tensor in self.reference.items():
                    assert torch.equal(tensors[name], tensor), f"{name} is another than without the interruption"
        else:
            load(self.folder)
            raise AssertionError("a run was loaded that there is not")

    def generated_case(self, example: Any) -> Case:
        kind, values = example
        files = dict(self.files)
        manifest = self.newest.replace(".safetensors", ".json")
        if kind == "manifest":
            files[manifest] = json.dumps({**json.loads(files[manifest]), **values}).encode()
        elif kind == "names":
            files[values] = files[manifest]
        else:
            tensors, metadata = self.tensors, dict(self.metadata)
            if kind == "tensors":
                tensors = change_tensors(tensors, values)
            elif kind == "epochs":
                metadata["epochs"] = values
            else:
                for key, value, removed in values:
                    metadata[key] = value
                    if removed:
                        del metadata[key]
            text = json.dumps(metadata).encode()
            if "metadata" in tensors and kind != "tensors":
                tensors = {**tensors, "metadata": torch.tensor(list(text), dtype=torch.uint8)}
            content = save(tensors)
            manifest_values = {
                **json.loads(files[manifest]),
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
            files |= {self.newest: content, manifest: json.dumps(manifest_values).encode()}
        self.write(files)
        resume = int(hashlib.sha256(repr(example).encode()).hexdigest(), 16) % 25 == 0
        return lambda: self.read(exact=kind in ("manifest", "names"), resume=resume)


class Recipes:
    """Recipes: an accepted one is the same after a round trip through JSON and through settings."""

    def __init__(self, judge: Judge) -> None:
        texts = [
            f"{key}={','.join(map(str, value)) if isinstance(value, list) else value}"
            for recipe in RECIPES.values()
            for key, value in recipe.to_dict().items()
        ]
        self.settings = [text.encode() for text in texts]
        self.recipes = [json.dumps(recipe.to_dict()).encode() for recipe in RECIPES.values()]
        numbers = st.floats() | st.integers(-3, 3000) | st.sampled_from((2**31 - 1, 2**31, 10**400, 10**5000, 1e308))
        recipe_fields = st.dictionaries(
            st.sampled_from(FIELDS) | st.sampled_from((*FIELDS, "Learning_rate", "lr", "", "__class__", "a\nb")),
            VALUES | numbers,
            max_size=4,
        )
        words = st.sampled_from(
            (
                "1e3",
                "0x10",
                "1_000",
                "nan",
                "inf",
                "-0",
                "١",
                "1" * 5000,
                "true",
                "TRUE",
                "0.5,0.5",
                "0.5,,",
                "[]",
                "'",
                "=",
                "\0",
            )
        )
        setting = st.tuples(
            st.sampled_from((*FIELDS, "", "x", "--set")),
            st.sampled_from(("=", "=", "=", "", "==", " = ")),
            words | st.text(max_size=8),
        )
        self.examples = st.one_of(
            st.tuples(st.just("dict"), recipe_fields),
            st.tuples(st.just("any"), VALUES),
            st.tuples(st.just("replace"), recipe_fields),
            st.tuples(st.just("settings"), st.lists(setting.map("".join), max_size=3)),
        )

    def mutated_case(self, random: Random) -> Case:
        if random.random() < 0.5:
            texts = [
                mutate(random, self.settings).decode("utf-8", "surrogateescape") for _ in range(random.randrange(1, 4))
            ]
            return lambda: check_round_trip(RECIPES["fast"].replace(**parse_settings(texts)))
        try:
            value = json.loads(mutate(random, self.recipes))
        except (ValueError, RecursionError):  # reported by the reader of the file
            return lambda: None
        return lambda: check_round_trip(Recipe.from_dict(value))

    def generated_case(self, example: Any) -> Case:
        kind, values = example
        if kind == "settings":
            return lambda: check_round_trip(RECIPES["article"].replace(**parse_settings(values)))
        if kind == "replace":
            return lambda: check_round_trip(RECIPES["fast"].replace(**values))
        return lambda: check_round_trip(Recipe.from_dict(values))


def check_round_trip(recipe: Recipe) -> None:
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict(), allow_nan=False))) == recipe
    json.dumps(recipe.to_dict(), ensure_ascii=False).encode()
    assert recipe.network in NETWORKS or recipe.network
    settings = [
        f"{key}={','.join(map(repr, value)) if isinstance(value, list) else value}"
        for key, value in recipe.to_dict().items()
        if not isinstance(value, str)
    ]
    assert recipe.replace(**parse_settings(settings)) == recipe
