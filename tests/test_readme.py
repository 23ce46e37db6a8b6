"""README says what works: its commands parse, its files exist, CI runs them word for word."""

import re
import subprocess

import pytest
import tomli

from cosmos_wds.pipeline import Pipeline
from tests.commands import ROOT, check, parse

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines()]
OURS = [part.strip() for line in LINES for part in line.split("&&") if "cosmos" in part]
FIRST = "pip install -e . && cosmos-wds demo"
SECOND = "pip install -e '.[test]' && pytest"


def test_the_two_commands_of_a_newcomer():
    assert BLOCKS[0].strip() == FIRST
    assert SECOND in LINES


def test_every_line_of_a_block_is_a_command_that_is_checked_here():
    for line in LINES:
        assert line in (FIRST, SECOND) or line in OURS or line.startswith("pip install torch "), (
            line
        )


@pytest.mark.parametrize("line", OURS)
def test_a_command_of_readme_is_valid(line):
    check(line)


def test_scripts_for_a_cluster_are_scripts_that_start_valid_commands():
    scripts = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert scripts
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        assert script.startswith("#!/bin/bash\n#SBATCH --")
        (line,) = [line for line in script.splitlines() if not line.startswith("#")]
        assert line.startswith("srun cosmos-wds train")
        check(line.removeprefix("srun "))


def test_settings_and_options_in_sentences_exist():
    """`--strict`, `--set download.weights=[]`, `data.on_bad=skip` and their like."""
    for setting in re.findall(r"`(?:--set )?(\w+\.\w+=[^`]+)`", README):
        section = setting.split(".")[0]
        command = "shard" if section in Pipeline.model_fields else "train"
        check(f"cosmos-wds {command} --set '{setting}'")
    options = set(re.findall(r"`(?:cosmos-wds )?(?:\w+ )?(--[a-z-]+)", README)) - {
        "--help",
        "--set",
    }
    assert options
    commands = ("download", "shard", "train", "infer", "eval", "export x", "inspect x")
    commands += ("bench model x", "bench loader x", "bench train x", "bench rollout x")
    known = {
        f"--{key.replace('_', '-')}"
        for words in commands
        for key in parse(f"cosmos-wds {words}")[1]
    }
    assert options <= known


def test_the_four_commands_come_in_order_with_nothing_else():
    block = next(b for b in BLOCKS if "cosmos-wds download" in b)
    names = [parse(line)[0] for line in block.splitlines()]
    assert names == ["download", "shard", "train", "infer"]


def test_files_and_links_that_readme_names_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
    for name in re.findall(r"`((?:recipes|pipelines|tests)/[^`*]*)`", README):
        assert (ROOT / name).exists(), name
    layout = re.search(r"## Layout of the repository\n+```\n(.*?)```", README, re.DOTALL)[1]
    for folder in re.findall(r"([a-z_]+)/", layout):
        assert any((base / folder).is_dir() for base in (ROOT, ROOT / "cosmos_wds")), folder
    for file in re.findall(r"[a-z_]+\.py", layout):
        assert (ROOT / "cosmos_wds" / file).is_file(), file


def test_the_weights_that_readme_names_are_those_that_download_fetches():
    table = tomli.loads((ROOT / "pipelines" / "bridge.toml").read_text())
    for repository in table["download"]["weights"]:
        assert f"<https://huggingface.co/{repository}>" in README


def test_nothing_is_left_to_fill_in():
    assert "TODO" not in README


def test_ci_runs_the_commands_of_readme():
    script = (ROOT / ".ci" / "run").read_text()
    assert f'readme_command "{FIRST}"' in script
    assert f'readme_command "{SECOND}"' in script
    assert script.count('eval "$first"') == script.count('eval "$second"') == 1
    last = [line for line in script.splitlines() if line.strip()][-1]
    assert last == 'eval "$second"'  # pytest's summary ends the output
    subprocess.run(["bash", "-n", ROOT / ".ci" / "run"], check=True)


def test_the_changelog_has_a_place_for_what_comes():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert "\n## Unreleased\n" in text and "keepachangelog.com" in text


def test_the_licence_is_whole():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
