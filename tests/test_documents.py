"""The documents: their examples run, their commands and links exist, their figures are those of the records."""

import doctest
import importlib
import json
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer

from gingham.cli.app import app
from gingham.presets import DEFAULT_RECIPE
from helpers import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

COMMANDS = (
    "train",
    "evaluate",
    "predict",
    "show",
    "summary",
    "trials",
    "compare",
    "report",
    "diagnose",
    "export",
    "serve",
)
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("records/*.md"), *ROOT.glob("benchmarks/results/*.md")]
)
SOURCES = ROOT / "src/gingham"
MODULES = sorted(
    ".".join(path.relative_to(SOURCES).with_suffix("").parts)
    for path in SOURCES.rglob("*.py")
    if not path.stem.startswith("__")
)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f"gingham.{name}")
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    names = {**vars(module), "torch": torch, "Path": Path}
    assert doctest.testmod(module, extraglobs=names, optionflags=flags).failed == 0


def python_blocks(path):
    return re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)


@pytest.mark.slow
def test_the_readmes_example_runs_twice(fashion_mnist_folder, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    (text,) = python_blocks("README.md")
    for _ in range(2):
        exec(text.replace("epochs=6", "epochs=0.05"), {})
    first, second = capsys.readouterr().out.rsplit("class ", 1)
    assert first == f"class {second}"


def test_the_packaged_model_knows_the_classes_of_the_documents_own_data(fashion_mnist_folder, command, monkeypatch):
    monkeypatch.chdir(command.folder)
    exec(python_blocks("docs/data.md")[-1], {})
    result = json.loads(command("evaluate", "packaged", "--data", "clothes", "--json").stdout)
    assert result["total"] == 200
    assert result["accuracy"] > 0.8


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_have_a_target(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / "Makefile"], ids=lambda path: str(path.relative_to(ROOT)))
def test_documented_commands_and_options_exist(path, command):
    helps = {name: command(name, "--help").stdout for name in COMMANDS}
    for line in re.findall(rf"gingham ((?:{'|'.join(COMMANDS)})\b[^`\n]*)", path.read_text()):
        name, *words = line.split()
        for word in words:
            if word.startswith("--"):
                assert f"{word} " in helps[name] or f"{word}\n" in helps[name], f"gingham {line}"


def shown_commands(path):
    """Return the lines of a document's code blocks that start a command of Gingham, without comments."""
    blocks = re.findall(r"^ *```[a-z]*\n(.*?)^ *```", path.read_text(), re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    pattern = re.compile(r"^(?:\$ )?(?:torchrun .*-m )?gingham (.*)")
    found = [match[1] for line in lines if (match := pattern.match(line.strip()))]
    return [line for line in found if "*" not in line and "..." not in line]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_shown_commands_are_understood(path):
    """Every command in a code block parses: its options exist, and their values are of the right type."""
    root = typer.main.get_command(app)
    for line in shown_commands(path):
        name, *words = shlex.split(line, comments=True)
        if name in root.commands:
            root.commands[name].make_context(name, words)
        else:
            assert name.startswith("-") or name == "gingham:", f"no command {name} in: gingham {line}"


def test_make_train_evaluates_the_default_recipe():
    text = (ROOT / "Makefile").read_text()
    assert re.search(rf"evaluate runs/{DEFAULT_RECIPE}-0\b(?!-)", text)


def test_records_table_is_up_to_date():
    import records

    text = (ROOT / "records/README.md").read_text()
    assert records.table() in text
    assert text.count("record.json)") == len(list(ROOT.glob("records/*/record.json")))


@pytest.mark.parametrize("file", sorted(ROOT.glob("records/*/record.json")), ids=lambda file: file.parent.name)
def test_records_are_complete_and_quoted(file):
    record = json.loads(file.read_text())
    wanted = {
        "target",
        "accuracies",
        "n",
        "split",
        "train_seconds",
        "wall_seconds",
        "hardware",
        "torch",
        "commit",
        "command",
        "recipe",
    }
    assert wanted <= set(record)
    assert record["n"] == len(record["accuracies"]) == len(record["train_seconds"])
    is_long, is_ensemble = statistics.median(record["train_seconds"]) >= 600, "ensemble.py" in record["command"]
    assert record["n"] >= (1 if is_ensemble else 5 if is_long else 10), "see records/RULES.md"
    assert record["split"] == "test"
    mean = statistics.mean(record["accuracies"])
    spread = f" ± {statistics.stdev(record['accuracies']):.2%}" if record["n"] > 1 else ""
    texts = [(ROOT / name).read_text() for name in ("README.md", "docs/training.md")]
    assert f"{mean:.2%}{spread}".replace("%", " %") in "".join(texts)


def test_article_record_is_close_to_the_articles_accuracy():
    (file,) = ROOT.glob("records/*-article/record.json")
    assert abs(statistics.mean(json.loads(file.read_text())["accuracies"]) - 0.8482) < 0.02


def test_no_tracked_file_names_a_path_of_this_machine():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in tracked:
        content = (ROOT / name).read_bytes()
        for word in (b"/ro" + b"ot/", b"/ho" + b"me/", b"/wo" + b"rk/"):
            assert word not in content, name


def figures_of(text):
    """Return the numbers of a text that are not part of a name, a link or a date, in order."""
    text = re.sub(r"\]\([^)]*\)|`[^`\n]*`", "", text)
    text = re.sub(r"24 November 2026|2026 年 11 月 24 日|1/(?=\d)", "", text)
    return re.findall(r"(?<![\w.+-])\d[\d,.]*\d|(?<![\w.+-])\d(?![\w.])", text)


def test_the_chinese_readme_has_the_code_the_links_and_the_figures_of_the_english_one():
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))
    code = re.compile(r"```[a-z]*\n.*?```", re.DOTALL)
    assert code.findall(chinese) == code.findall(english)
    english, chinese = code.sub("", english), code.sub("", chinese)
    for pattern in (r"\]\(([^)]+)\)", r"`([^`\n]+)`"):
        found = [sorted(re.findall(pattern, text)) for text in (english, chinese)]
        others = [{"README.md"}, {"README.zh-CN.md"}]
        assert [x for x in found[0] if x not in others[1]] == [x for x in found[1] if x not in others[0]]
    assert sorted(figures_of(chinese)) == sorted(figures_of(english))
    assert [
        len(re.findall(rf"^{mark} ", text, re.MULTILINE)) for mark in ("#", "##", "-", r"\|") for text in (chinese,)
    ] == [len(re.findall(rf"^{mark} ", english, re.MULTILINE)) for mark in ("#", "##", "-", r"\|")]
