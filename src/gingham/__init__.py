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

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gingham.comparison import Comparison, compare
    from gingham.datasets import Data, Split, load_data
    from gingham.diagnosis import Finding, diagnose_run
    from gingham.errors import DataError, GinghamError, ModelError, RecipeError, RunError, TrainingError
    from gingham.evaluation import Report, evaluate
    from gingham.examination import examine
    from gingham.exporting import Exported, export
    from gingham.inspection import summarize
    from gingham.layer_table import Summary
    from gingham.models import NETWORKS, Classifier, Predictions
    from gingham.prediction import Answer, evaluate_photographs, load_packaged, predict
    from gingham.recipe import RECIPES, Recipe
    from gingham.repetition import Trials, trials
    from gingham.reporting import write_report
    from gingham.storage import Run, load, save
    from gingham.training import fit

# Each public name and the module it lives in, imported on first use: `import gingham` alone takes no time.
_HOME = {
    "Answer": "prediction",
    "Classifier": "models",
    "Comparison": "comparison",
    "Data": "datasets",
    "DataError": "errors",
    "Exported": "exporting",
    "Finding": "diagnosis",
    "GinghamError": "errors",
    "ModelError": "errors",
    "NETWORKS": "models",
    "Predictions": "models",
    "RECIPES": "recipe",
    "Recipe": "recipe",
    "RecipeError": "errors",
    "Report": "evaluation",
    "Run": "storage",
    "RunError": "errors",
    "Split": "datasets",
    "Summary": "layer_table",
    "TrainingError": "errors",
    "Trials": "repetition",
    "compare": "comparison",
    "diagnose_run": "diagnosis",
    "evaluate": "evaluation",
    "evaluate_photographs": "prediction",
    "examine": "examination",
    "export": "exporting",
    "fit": "training",
    "load": "storage",
    "load_data": "datasets",
    "load_packaged": "prediction",
    "predict": "prediction",
    "save": "storage",
    "summarize": "inspection",
    "trials": "repetition",
    "write_report": "reporting",
}

__all__ = [
    "NETWORKS",
    "RECIPES",
    "Answer",
    "Classifier",
    "Comparison",
    "Data",
    "DataError",
    "Exported",
    "Finding",
    "GinghamError",
    "ModelError",
    "Predictions",
    "Recipe",
    "RecipeError",
    "Report",
    "Run",
    "RunError",
    "Split",
    "Summary",
    "TrainingError",
    "Trials",
    "__version__",
    "compare",
    "diagnose_run",
    "evaluate",
    "evaluate_photographs",
    "examine",
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
