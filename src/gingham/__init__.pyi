from ._version import __version__
from .data.load_data import load_data
from .data.splits import DataSplits, Split
from .deploy.export import ExportResult, export
from .diagnosis.check_data import check_data
from .diagnosis.check_run import check_run
from .errors import DataError, GinghamError, ModelError, RecipeError, RunError, TrainingError
from .evaluation.evaluate import EvaluationResult, evaluate
from .experiments.compare import Comparison, compare
from .experiments.trials import TrialOptions, Trials, trials
from .inference.evaluate_photos import evaluate_photographs
from .inference.packaged_model import load_packaged
from .inference.predict import ImagePrediction, embed, predict
from .models.classifier import Classifier, Predictions
from .models.layer_table import Summary
from .models.networks import NETWORKS
from .models.summary import summarize
from .presets import RECIPES
from .recipe import Recipe
from .reports.html import write_report
from .runs.run import Run, load, save
from .training.fit import fit
from .training.issue import Issue
from .training.options import FitOptions

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
    "TrialOptions",
    "Trials",
    "__version__",
    "check_data",
    "check_run",
    "compare",
    "embed",
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
