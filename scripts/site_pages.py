"""The pages of the documentation site that are not in docs/. mkdocs.yml names this file as a hook.

The reference is generated from the package. The records, the results of the benchmarks, the changelog and a few others
are taken from where they are in the repository.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import gingham
from gingham.cli.app import app
from gingham.recipe import FIELDS

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "records/**/*",
    "benchmarks/results/*",
    "examples/*.py",
    "notebooks/*.ipynb",
)
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
PYTHON = {
    "Data": ["load_data", "DataSplits", "Split", "check_data"],
    "Recipes": ["Recipe", "RECIPES", "NETWORKS"],
    "Training": ["fit", "FitOptions", "Run", "save", "load", "check_run", "Issue"],
    "Results": ["evaluate", "EvaluationResult", "trials", "TrialOptions", "Trials", "compare", "Comparison"],
    "Photos": ["predict", "ImagePrediction", "load_packaged", "evaluate_photographs", "embed"],
    "Networks": ["Classifier", "Predictions", "summarize", "Summary"],
    "Reports and exports": ["write_report", "export", "ExportResult"],
    "Errors": ["GinghamError", "DataError", "ModelError", "RecipeError", "RunError", "TrainingError"],
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and files from outside docs/, and the generated pages."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            if path.is_file() and path.suffix != ".npz":
                files.append(File(_name(path), str(ROOT), config.site_dir, use_directory_urls=False))
    pages: dict[str, Callable[[], str]] = {
        "commands": commands_page,
        "recipes": recipes_page,
        "networks": networks_page,
        "python": python_page,
    }
    for name, write in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=write()))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: Any) -> str:
    """Rewrite links between files of the repository to links between pages of the site."""
    if page.file.abs_src_path is None or page.file.generated_by:
        return markdown
    source, start = Path(page.file.abs_src_path).parent, PurePosixPath(page.file.src_uri).parent

    def rewrite(match: re.Match[str]) -> str:
        before, target, anchor, after = match.groups(default="")
        if ":" in target:
            return match[0]
        path = Path(os.path.normpath(source / target))
        name = "index.md" if path == ROOT / "README.md" else _name(path)
        return f"{before}{os.path.relpath(name, start)}{anchor}{after}" if name in files.src_uris else match[0]

    return LINK.sub(rewrite, markdown)


def _name(path: Path) -> str:
    """Return the path of a file of the repository within the site."""
    folder = ROOT / "docs" if path.is_relative_to(ROOT / "docs") else ROOT
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def commands_page() -> str:
    """Return the reference of the command line."""
    lines = [
        "# Commands",
        "",
        "Results go to stdout, progress and messages to stderr. `--json` prints one JSON value. The exit code is",
        "0 if all is done, 2 for an error that you can fix, 130 after Ctrl-C and 143 after SIGTERM.",
        "",
    ]
    root: Any = typer.main.get_command(app)
    for name, command in root.commands.items():
        arguments = [p.metavar or p.name.upper() for p in command.params if p.param_type_name == "argument"]
        lines += [f"## gingham {name}", "", command.help.splitlines()[0], ""]
        lines += ["```", " ".join(["gingham", name, *arguments, "[OPTIONS]"]), "```", ""]
        lines += ["| argument or option | meaning | default |", "| --- | --- | --- |"]
        lines += [_parameter_row(parameter) for parameter in command.params]
        lines.append("")
    return "\n".join(lines)


def _parameter_row(parameter: Any) -> str:
    names = ", ".join(f"`{name}`" for name in parameter.opts if parameter.param_type_name == "option")
    default = parameter.default
    shown = "" if default in (None, False, True) or callable(default) or "required" in str(default) else f"`{default}`"
    help_text = (parameter.help or "").replace("|", "\\|").replace("<", "&lt;")
    return f"| {names or f'`{parameter.metavar or parameter.name.upper()}`'} | {help_text} | {shown} |"


def recipes_page() -> str:
    """Return the reference of the recipes and their fields."""
    lines = [
        "# Recipes",
        "",
        "A recipe has all settings of a training. `gingham train --recipe NAME` chooses one, and `--set",
        "FIELD=VALUE` changes a field; in Python: `gingham.RECIPES[NAME].replace(FIELD=VALUE)`.",
        "",
        "## Fields",
        "",
        "| field | default | allowed |",
        "| --- | --- | --- |",
    ]
    default = gingham.Recipe()
    for name, field in FIELDS.items():
        lines.append(f"| `{name}` | `{_format(getattr(default, name))}` | {field.metadata['allowed']} |")
    lines += ["", "## Named recipes", "", "Each is listed with the fields that differ from their defaults.", ""]
    for name, recipe in gingham.RECIPES.items():
        changed = {field: value for field, value in vars(recipe).items() if value != getattr(default, field)}
        lines += [f"### {name}", "", "| field | value |", "| --- | --- |"]
        lines += [f"| `{field}` | `{_format(value)}` |" for field, value in changed.items() if field != "name"]
        lines.append("")
    return "\n".join(lines)


def _format(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def networks_page() -> str:
    """Return the reference of the networks: their size, operations and receptive field."""
    lines = [
        "# Networks",
        "",
        "The networks that come with Gingham, for grey images of 28x28 pixels and ten classes; other sizes,",
        "channels and numbers of classes work too. `gingham summary NAME` prints the layers of one. `timm/NAME`",
        "is a network of timm, and `package.module:Class` one of your own.",
        "",
        "| network | parameters | operations for an image | receptive field |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, create in gingham.NETWORKS.items():
        summary = gingham.summarize(create(1, 10), (1, 28, 28), name)
        lines.append(f"| `{name}` | {summary.parameters:,} | {summary.flops:,} | {summary.receptive_field} |")
    return "\n".join([*lines, ""])


def python_page() -> str:
    """Return the reference of the public names; mkdocstrings writes their descriptions."""
    documented = {name for names in PYTHON.values() for name in names}
    assert documented == {name for name in gingham.__all__ if not name.startswith("__")}, "a public name is missing"
    lines = [
        "# Python",
        "",
        "These names are public: they change only with a note in the [changelog](../CHANGELOG.md).",
        "",
    ]
    for title, names in PYTHON.items():
        lines += [f"## {title}", ""]
        for name in names:
            lines += [f"::: gingham.{name}", ""]
    return "\n".join(lines)
