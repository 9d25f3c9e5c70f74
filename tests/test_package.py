"""The package as a whole: what its modules import, and its public names."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gingham

PACKAGE = Path(gingham.__file__).parent


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_no_module_unpickles_or_executes_code(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = {name.name for name in node.names} | {getattr(node, "module", None)}
            assert not names & {"pickle", "marshal", "shelve", "joblib", "dill"}
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "torch.load", "torch.save"}


def loaded_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*(name for name in sys.modules if '.' not in name))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


SLOW = {"torch", "torchvision", "numpy", "scipy", "matplotlib"}


def test_importing_gingham_does_not_import_torch():
    assert not loaded_after("import gingham; gingham.RECIPES['article'].replace(seed=3)") & SLOW


def test_help_does_not_import_torch():
    code = (
        "from gingham.cli.app import main\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit as stop: assert not stop.code"
    )
    script = f"import io, contextlib\nwith contextlib.redirect_stdout(io.StringIO()):\n exec({code!r})"
    assert not loaded_after(script) & SLOW


def test_training_imports_neither_the_compiler_nor_scipy(tmp_path, quadrants):
    arguments = ["train", "--recipe", "fast", "--data", str(quadrants), "--epochs", "1", "--out", str(tmp_path / "run")]
    code = f"from gingham.cli.app import main\ntry: main({arguments})\nexcept SystemExit as stop: assert not stop.code"
    script = f"import io, contextlib\nwith contextlib.redirect_stdout(io.StringIO()):\n exec({code!r})"
    loaded = loaded_after(script)
    assert "torch" in loaded
    assert not loaded & {"sympy", "scipy", "torchvision"}, "torch._dynamo imports sympy"


def test_predicting_does_not_import_torchvision():
    code = "from gingham.models.registry import build_classifier\nbuild_classifier('article', ['a'] * 10, (1, 28, 28))"
    assert "torchvision" not in loaded_after(code)


def test_every_public_name_exists():
    for name in gingham.__all__:
        assert getattr(gingham, name) is getattr(gingham, name)
    assert set(dir(gingham)) == set(gingham.__all__)
    with pytest.raises(AttributeError, match="No gingham attribute fitt"):
        gingham.fitt  # noqa: B018


def test_the_stub_exports_every_name_that_it_imports():
    *_, exported = ast.parse((PACKAGE / "__init__.pyi").read_text()).body
    assert set(ast.literal_eval(exported.value)) == set(gingham.__all__)


def test_every_public_name_has_a_docstring():
    missing = [
        name
        for name in gingham.__all__
        if not name.startswith("__")
        and not isinstance(getattr(gingham, name), dict)
        and not (getattr(gingham, name).__doc__ or "").strip()
    ]
    assert not missing


def test_the_citation_names_this_version():
    citation = (Path(__file__).parents[1] / "CITATION.cff").read_text()
    assert f"\nversion: {gingham.__version__}\n" in citation
