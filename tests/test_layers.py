"""The shape of the code: who may import whom, what stays free of torch, how long a file may be."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "cosmos_wds"
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST = 300

LAYERS = [
    {"errors"},
    {"config", "console", "page"},
    {"sizes", "recipe_train", "recipe_infer", "recipe_eval"},
    {"recipe", "pipeline"},
    {"data", "model"},
    {"sources", "diffusion"},
    {"inspection"},
    {"prepare"},
    {"train"},
    {"rollout"},
    {"play"},
    {"demo"},
    {"cli_tools", "cli_download", "cli_play"},
    {"cli_shard", "cli_bench", "cli_infer", "cli_eval"},
    {"cli"},
    {"__main__"},
]
"""From the bottom: a part imports itself and what stands in the lines above its own."""

SISTERS = {"recipe": {"pipeline"}, "data": {"model"}, "model": {"data"}, "sources": {"diffusion"}}
"""Parts of one line that must not know each other, told apart for clear messages."""

LIGHT = (
    *("__init__", "__main__", "errors", "config", "console"),
    *("sizes", "recipe", "recipe_train", "recipe_infer", "recipe_eval", "pipeline"),
    *(
        "cli",
        "cli_tools",
        "cli_download",
        "cli_infer",
        "cli_eval",
        "cli_play",
        "cli_shard",
        "cli_bench",
    ),
)
"""Modules that a typo on the command line goes through: no torch, so that it is told at once."""

HEAVY = ("torch", "numpy", "webdataset", "decord", "av", "safetensors", "huggingface_hub", "PIL")


def part_of(path):
    """The top-level part that a file belongs to: `data` for data/plan.py, `cli` for cli.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path):
    """Names of the package's modules that a file imports, at any depth of its code."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "cosmos_wds")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports with the full name"
            if node.module == "cosmos_wds":
                yield from (f"cosmos_wds.{alias.name}" for alias in node.names)
            elif node.module and node.module.startswith("cosmos_wds."):
                yield node.module


def module_level(body):
    """Import statements that run when the module is imported."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.Try | ast.With):
            yield from module_level(node.body)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            yield from module_level([*node.body, *node.orelse])


def rank(part):
    return next((row for row, parts in enumerate(LAYERS) if part in parts), None)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    part = part_of(path)
    if part == "__init__":
        assert not list(imported(path))
        return
    assert rank(part) is not None, f"{part}: give it a place in LAYERS"
    for name in imported(path):
        other = name.split(".")[1]
        if other in (part, "__version__"):
            continue
        assert rank(other) is not None, f"{path}: {name}: no such part"
        assert other not in SISTERS.get(part, ()), f"{path}: {part} must not know {other}"
        assert rank(other) < rank(part), f"{path}: {part} must not import {name}"


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_import_nothing_heavy(name):
    for node in module_level(tree_of(PACKAGE / f"{name}.py").body):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
        assert not {n.split(".")[0] for n in names} & set(HEAVY), ast.unparse(node)


@pytest.mark.parametrize("name", ["cli", "recipe", "pipeline", "config", "errors", "console"])
def test_light_modules_load_no_torch(name):
    """Not even through something that they import."""
    code = f"import sys, cosmos_wds.{name}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    ).stdout.split()
    assert f"cosmos_wds.{name}" in loaded
    assert not set(HEAVY) & set(loaded)
    if name == "cli":  # what --help does not need either
        assert "pydantic" not in loaded


def test_data_without_tensors_needs_no_torch():
    """Sharding on a machine of many cores starts many processes; torch would cost each seconds."""
    code = "import sys, cosmos_wds.data.plan, cosmos_wds.data.actions, cosmos_wds.sources; "
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_are_short_and_begin_with_what_they_are(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LONGEST
    if lines:
        assert ast.get_docstring(tree_of(path))


def test_nothing_names_this_machine_or_the_one_before():
    machine = re.compile(r"""["'\s(=](/(?:work|farm|root|home|mnt|opt|Users)/)""")
    root = PACKAGE.parent
    texts = [*FILES, *root.glob("recipes/**/*.toml"), *root.glob("pipelines/*.toml")]
    for path in [*texts, root / "README.md", root / "pyproject.toml", root / ".ci" / "run"]:
        found = machine.search(path.read_text(encoding="utf-8"))
        assert not found, f"{path}: {found[1]}"


def test_nobody_prints_or_leaves_by_the_back_door():
    """Words go through console.py or the command line; only the command line ends the process."""
    for path in FILES:
        if path.name in ("cli.py", "__main__.py"):
            continue
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("sys.exit", "print", "exit"), path
