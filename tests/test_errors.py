import re

import pytest

import gingham


@pytest.mark.parametrize("kind", [gingham.GinghamError, gingham.DataError, gingham.RunError])
def test_messages_are_one_printable_line_of_limited_length(kind):
    assert (
        str(kind("no class 'a\nb\x1b[2J\ud800' here; name another"))
        == "no class 'a b\\x1b[2J\\ud800' here; name another"
    )
    message = str(kind(f"got {'x' * 10**6}; give less"))
    assert len(message) == 1500
    assert message.startswith("got xxx")
    assert message.endswith("xxx; give less")
    assert " ... " in message
    assert len(str(kind("\x1b" * 10**6))) == 1500


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda run, data: gingham.fit("fast", data.train), "fit got 'fast' as recipe; it takes a Recipe, such as"),
        (lambda run, data: gingham.fit(run.recipe, data), "fit got a DataSplits as train; it takes a Split, such as"),
        (lambda run, data: gingham.fit(run.recipe, data.train, data), "fit got a DataSplits as validation; it takes"),
        (lambda run, data: gingham.evaluate(run.model, data.test), "evaluate got a Classifier as run; it takes a Run"),
        (gingham.evaluate, "evaluate got a DataSplits as split; it takes a Split"),
        (lambda run, data: gingham.load(None), 'load got None as folder; it takes a path, such as "runs/fast-0"'),
        (lambda run, data: gingham.load(run), "load got a Run as folder; it takes a path"),
        (lambda run, data: gingham.save(run.model, "x"), "save got a Classifier as run; it takes a Run"),
        (lambda run, data: gingham.save("x", run), "save got 'x' as run; it takes a Run"),
        (lambda run, data: gingham.trials("fast", data, [0], "x"), "trials got 'fast' as recipe; it takes a Recipe"),
        (lambda run, data: gingham.trials(run.recipe, data.train, [0], "x"), "trials got a Split as data; it takes a"),
        (lambda run, data: gingham.check_run(run.model, data.train), "check_run got a Classifier as run; it takes a"),
        (gingham.check_run, "check_run got a DataSplits as train; it takes a Split"),
        (lambda run, data: gingham.check_data(data.train), "check_data got a Split as data; it takes a DataSplits"),
        (lambda run, data: gingham.predict("runs/x", ["y.jpg"]), "predict got 'runs/x' as run; it takes a Run"),
        (lambda run, data: gingham.evaluate_photographs("x", "y"), "evaluate_photographs got 'x' as run; it takes a"),
        (lambda run, data: gingham.export(run.model, "x.onnx"), "export got a Classifier as run; it takes a Run"),
        (lambda run, data: gingham.write_report("x", data.train, None, None, "y"), "write_report got 'x' as run"),
    ],
)
def test_an_argument_of_another_type_is_an_error_of_one_sentence(small_run, call, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(gingham.GinghamError, match=re.escape(f"gingham.{text}")) as caught:
        call(*small_run)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_is_an_error_that_suggests_a_known_one():
    with pytest.raises(gingham.RecipeError, match=r"unknown recipe 'fsat'; did you mean 'fast'\? \(known: fast, "):
        gingham.RECIPES["fsat"]
    with pytest.raises(gingham.RecipeError, match="unknown recipe None; known: fast, "):
        gingham.RECIPES[None]
    with pytest.raises(gingham.ModelError, match=r"unknown network 'smal'; did you mean 'small'\? \(known: article, "):
        gingham.NETWORKS["smal"]
    assert "fsat" not in gingham.RECIPES
    assert gingham.RECIPES.get("fsat") is None
