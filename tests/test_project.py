"""What a stranger relies on before reading any code: the Dockerfile, the recipes, the words of the README."""

import re
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
SWEEPS = sorted((ROOT / "recipes/sweeps").glob("*.yaml"))


@pytest.mark.skipif(
    not (Path(sys.executable).parent / "hadolint").exists() and not shutil.which("hadolint"), reason="hadolint is not installed"
)
def test_the_dockerfile_passes_hadolint():
    beside = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([beside if beside.exists() else "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_and_each_of_its_profiles_is_good(recipe):
    done = subprocess.run([sys.executable, "-m", "pipeline", "check", recipe], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda p: p.stem)
def test_every_run_of_every_sweep_is_good(sweep):
    done = subprocess.run([sys.executable, "-m", "pipeline", "check", sweep], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "runs, good" in done.stdout, done.stderr


def test_the_readme_names_every_file_that_is_there_and_none_that_is_not():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in re.findall(r"`((?:pipeline|stages|kernels|recipes|tests|docs|benchmarks)/[\w./-]+)`", text):
        assert "NAME" in path or (ROOT / path).exists(), f"README names {path}"
    tree = text.partition("## The tree")[2].partition("\n## ")[0]
    for package in ("pipeline", "stages"):
        for file in (ROOT / package).glob("*.py"):
            if file.name != "__init__.py":
                assert re.search(rf"\b{file.stem}\b", tree), f"the README's tree does not name {package}/{file.name}"
    for table in ("models", "sources", "kd", "engines"):
        for row in import_module(f"stages.{table}").TABLE.names():
            assert re.search(rf"\b{row}\b", tree), f"the README's tree does not name stages/{table}/{row}"


def test_the_class_table_that_the_readme_shows_is_a_good_one(tmp_path):
    from stages.sources._classes import read_class_table

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (tmp_path / "classes.yaml").write_text("".join(re.findall(r"^    ((?:masks|classes|ignore|  - ).*\n)", text, re.M)))
    table = read_class_table(tmp_path, "classes.yaml")
    assert (table.names, table.raw, table.painted) == (("road", "car"), ((0, 0), (1, 1), (7, 1), (255, 255)), False)


def test_the_version_stays_below_what_transformers_would_take_for_another_package():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert tuple(int(n) for n in version.split(".")) < (0, 10)
    assert "__version__" not in (ROOT / "kernels/__init__.py").read_text()


def test_core_dependencies_hold_no_package_that_breaks_here():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = " ".join([*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)])
    assert not re.search("torchvision|timm|segmentation.models", text)
