"""What is built from the tree: an installed wheel has all that it needs, and nothing else."""

import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from cosmos_wds import __version__
from tests.commands import ROOT

pytestmark = pytest.mark.slow

SHIPPED = ("recipes", "pipelines")
"""Folders beside the package that the wheel holds inside it."""


def build(kind, folder):
    """Build a wheel or an sdist of the tree, without the network; returns its path."""
    code = f"import sys, hatchling.build as b; print(b.build_{kind}(sys.argv[1]))"
    subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=ROOT, check=True, capture_output=True
    )
    [built] = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build("wheel", tmp_path_factory.mktemp("wheel"))


def files(folder, pattern="*"):
    """Files below a folder of the tree, as git would see them."""
    found = (p for p in (ROOT / folder).rglob(pattern) if p.is_file())
    return {p.relative_to(ROOT).as_posix() for p in found if "__pycache__" not in p.parts}


def test_the_wheel_holds_the_package_its_weights_and_the_settings(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert files("cosmos_wds") <= names
    assert "cosmos_wds/weights/cosmos-tiny/model.safetensors" in names
    for folder in SHIPPED:
        assert {f"cosmos_wds/{name}" for name in files(folder)} <= names
    about = f"cosmos_wds-{__version__}.dist-info"
    assert f"{about}/licenses/LICENSE" in names
    expected = {name for name in names if name.startswith(("cosmos_wds/", about))}
    assert names == expected, "nothing beside the package"


def test_the_wheel_is_small_enough_to_mail(wheel):
    assert wheel.stat().st_size < 20e6


def test_the_wheel_says_what_it_needs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"cosmos_wds-{__version__}.dist-info/METADATA").decode()
        scripts = archive.read(f"cosmos_wds-{__version__}.dist-info/entry_points.txt").decode()
    assert f"\nVersion: {__version__}\n" in text
    assert "\nRequires-Python: >=3.10\n" in text
    assert "\nLicense-Expression: Apache-2.0\n" in text
    decord = [line for line in text.splitlines() if line.startswith("Requires-Dist: decord")]
    assert decord and all("platform_machine" in line for line in decord)
    assert "\n# cosmos-wds\n" in text
    assert "cosmos-wds = cosmos_wds.cli:main" in scripts


def test_an_installed_wheel_works_far_from_the_tree(wheel, tmp_path):
    """Installed alone into an environment that borrows this one's libraries."""
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    bin_folder = tmp_path / "env" / ("Scripts" if sys.platform == "win32" else "bin")
    python = bin_folder / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.check_output([python, "-c", ask], text=True).strip())
    borrowed = [p for p in sys.path if p.endswith("site-packages")]
    (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = """
from pathlib import Path
import cosmos_wds
from cosmos_wds.config import shipped_folder
from cosmos_wds.pipeline import load_pipeline
from cosmos_wds.recipe import load_recipe
assert Path(cosmos_wds.__file__).is_relative_to(SITE), cosmos_wds.__file__
assert shipped_folder("recipes").is_relative_to(SITE)
for path in shipped_folder("recipes").glob("*.toml"):
    load_recipe(path.stem)
for path in shipped_folder("pipelines").glob("*.toml"):
    load_pipeline(path.stem)
from cosmos_wds.train.run import find_weights
assert find_weights("cosmos-tiny").file.is_relative_to(SITE)
"""
    code = f"from pathlib import Path\nSITE = Path({str(site)!r})\n{code}"
    subprocess.run([python, "-I", "-c", code], cwd=tmp_path, check=True)
    told = subprocess.run(
        [python, "-I", "-m", "cosmos_wds", "--version"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert told.stdout == f"cosmos-wds {__version__}\n"


def test_the_sdist_holds_what_the_wheel_is_built_from_and_the_tests(tmp_path):
    with tarfile.open(build("sdist", tmp_path)) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    wanted = {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", ".ci/run"}
    assert wanted | files("cosmos_wds") | files("tests") | files("recipes") <= names
    assert files("pipelines") <= names
    assert not any(
        name.startswith(("outputs/", "data/", "checkpoints/", ".venv")) for name in names
    )
