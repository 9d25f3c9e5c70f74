"""Gingham trains image classifiers on small pictures: in seconds on a laptop, honest about how good they are.

import gingham

data = gingham.load_data("fashion-mnist", validation=0)
run = gingham.fit(gingham.RECIPES["article"], data.train)
print(gingham.evaluate(run, data.test))
gingham.save(run, "runs/article")
model = gingham.load("runs/article").model
"""

import importlib
from typing import TYPE_CHECKING, Any

from gingham._version import __version__

if TYPE_CHECKING:
    from gingham.data.load_data import load_data
    from gingham.data.splits import DataSplits, Split
    from gingham.deploy.export import ExportResult, export
    from gingham.diagnosis.check_data import check_data
    from gingham.diagnosis.check_run import check_run
    from gingham.errors import DataError, GinghamError, ModelError, RecipeError, RunError, TrainingError
    from gingham.evaluation.evaluate import EvaluationResult, evaluate
    from gingham.experiments.compare import Comparison, compare
    from gingham.experiments.trials import Trials, trials
    from gingham.inference.evaluate_photos import evaluate_photographs
    from gingham.inference.packaged_model import load_packaged
    from gingham.inference.predict import ImagePrediction, predict
    from gingham.models.classifier import Classifier, Predictions
    from gingham.models.layer_table import Summary
    from gingham.models.networks import NETWORKS
    from gingham.models.summary import summarize
    from gingham.presets import RECIPES
    from gingham.recipe import Recipe
    from gingham.reports.html import write_report
    from gingham.runs.run import Run, load, save
    from gingham.training.fit import fit
    from gingham.training.issue import Issue
    from gingham.training.options import FitOptions

# Each public name and the module it lives in, imported on first use: `import gingham` alone takes no time.
_HOME = {
    "ImagePrediction": "inference.predict",
    "Classifier": "models.classifier",
    "Comparison": "experiments.compare",
    "DataSplits": "data.splits",
    "DataError": "errors",
    "ExportResult": "deploy.export",
    "FitOptions": "training.options",
    "Issue": "training.issue",
    "GinghamError": "errors",
    "ModelError": "errors",
    "NETWORKS": "models.networks",
    "Predictions": "models.classifier",
    "RECIPES": "presets",
    "Recipe": "recipe",
    "RecipeError": "errors",
    "EvaluationResult": "evaluation.evaluate",
    "Run": "runs.run",
    "RunError": "errors",
    "Split": "data.splits",
    "Summary": "models.layer_table",
    "TrainingError": "errors",
    "Trials": "experiments.trials",
    "compare": "experiments.compare",
    "check_run": "diagnosis.check_run",
    "evaluate": "evaluation.evaluate",
    "evaluate_photographs": "inference.evaluate_photos",
    "check_data": "diagnosis.check_data",
    "export": "deploy.export",
    "fit": "training.fit",
    "load": "runs.run",
    "load_data": "data.load_data",
    "load_packaged": "inference.packaged_model",
    "predict": "inference.predict",
    "save": "runs.run",
    "summarize": "models.summary",
    "trials": "experiments.trials",
    "write_report": "reports.html",
}

__all__ = [
    "NETWORKS",
    "RECIPES",
    "Classifier",
    "Comparison",
    "DataError",
    "DataSplits",
    "EvaluationResult",
    "ExportResult",
    "FitOptions",
    "GinghamError",
    "ImagePrediction",
    "Issue",
    "ModelError",
    "Predictions",
    "Recipe",
    "RecipeError",
    "Run",
    "RunError",
    "Split",
    "Summary",
    "TrainingError",
    "Trials",
    "__version__",
    "check_data",
    "check_run",
    "compare",
    "evaluate",
    "evaluate_photographs",
    "export",
    "fit",
    "load",
    "load_data",
    "load_packaged",
    "predict",
    "save",
    "summarize",
    "trials",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'gingham' has no attribute {name!r}")
    return getattr(importlib.import_module(f"gingham.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
