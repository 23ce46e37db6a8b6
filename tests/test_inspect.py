"""`inspect PATH`: what it says of a set, its contact sheet, and how it is called."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cosmos_wds.data.index import ShardIndex
from cosmos_wds.data.video import decode
from cosmos_wds.errors import DataError
from cosmos_wds.inspection import overview as module
from cosmos_wds.inspection.overview import COLUMNS, overview
from cosmos_wds.inspection.reach import plain, samples, spread
from cosmos_wds.inspection.sheet import FRAMES, GAP, LABEL, THUMB, write_sheet
from cosmos_wds.inspection.tables import tables
from cosmos_wds.pipeline import load_pipeline
from cosmos_wds.prepare import shard
from tests.commands import check, run
from tests.conftest import write_episode
from tests.remake import about, edit_index, remake


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Three training episodes, one of them with no text and larger, two bad ones; one to validate.

    The index tells two concerns.
    """
    root = tmp_path_factory.mktemp("inspect")
    write_episode(root / "raw", "train", 0, cameras=2)
    write_episode(root / "raw", "train", 1, frames=12, texts=None, height=48, width=64)
    write_episode(root / "raw", "train", 2)
    for number in (3, 4):
        write_episode(root / "raw", "train", number)
        (root / f"raw/videos/train/{number}/rgb.mp4").unlink()
    write_episode(root / "raw", "train", 5).write_text("{")
    write_episode(root / "raw", "val", 0, texts=["move block 0"])
    changes = [f"source.path={root}/raw", f"shards.path={root}/shards", "shards.workers=1"]
    shard(load_pipeline("bridge", changes))
    doubts = ["train_1: roll jumps by 3.1 rad", "[red]gripper[/red] never moves"]
    edit_index(root / "shards", lambda table: table.update(concerns=doubts))
    return root / "shards"


def latents_only(shards, folder):
    """The set with latents in place of videos."""

    def change(_, __, members):
        latent = io.BytesIO()
        frames = json.loads(members["json"])["frames"]
        np.save(latent, np.zeros((frames, 16, 4, 6), np.float16))
        kept = {name: data for name, data in members.items() if not name.endswith("mp4")}
        return {**about(kept, cameras=[]), "latent.npy": latent.getvalue()}

    return remake(shards, folder, change)


def words(found):
    """Table's title -> its rows."""
    return {table.title: table.rows for table in tables(found)}


def test_totals_and_content(shards):
    found = overview(str(shards))
    for name, counts in {"train": (3, 28, 1), "val": (1, 8, 1)}.items():
        totals = found.splits[name]
        assert (totals.episodes, totals.frames, totals.shards) == counts
        assert totals.bytes == (shards / f"{name}-000000.tar").stat().st_size
    assert found.splits["train"].hours == pytest.approx(28 / 5 / 3600)
    assert found.looked_at == 4
    assert found.cameras == {"0": 4, "1": 1}
    assert found.sizes == {"32x48": 3, "48x64": 1}
    assert found.codecs == {"h264 yuv420p": 4}
    assert (found.with_text, found.different_texts) == (3, 2)
    assert found.texts == ["move block 0", "move block 2"]
    assert found.contract == ShardIndex.read(shards).contract.to_dict()
    rows = dict(words(found)["content"])
    assert rows["cameras"] == "0 (4 episodes), 1 (1 episode)"
    assert rows["texts"] == "in 3 of 4 episodes, 2 different"
    assert rows["video"] == "h264 yuv420p: plays in every browser (4 videos opened)"
    assert rows["encoding"] == "the source's, byte for byte"
    assert words(found)["splits"][2][:3] == ("in all", "4", "36")


def test_statistics_stand_at_their_dimensions(shards):
    found = overview(str(shards))
    table = ShardIndex.read(shards).table["statistics"]
    rows = words(found)["actions of train, physical units"]
    assert [row[0] for row in rows[:4]] == ["x (m)", "y (m)", "z (m)", "roll (rad)"]
    for place, row in enumerate(rows):
        assert row[1:] == tuple(f"{table[name][place]:.4g}" for name in COLUMNS)


def test_rejected_episodes_are_grouped_by_reason(shards, tmp_path):
    found = overview(str(shards))
    assert [entry.episodes for entry in found.rejected] == [2, 1]
    many, one = found.rejected
    assert "annotation/train/3.json: " in many.example and "videos/train/3/rgb.mp4" in many.example
    assert "3" not in many.reason
    assert "annotation/train/5.json: " in one.example and "not JSON" in one.reason
    without = remake(shards, tmp_path / "set", lambda _, __, members: members)
    assert not (without / "rejected.jsonl").exists() and overview(str(without)).rejected == []


def test_few_episodes_stand_for_many(shards, monkeypatch):
    monkeypatch.setattr(module, "LOOKED_AT", 2)
    found = overview(str(shards))
    assert found.looked_at == 3
    assert dict(words(found)["content"])["looked at"] == "3 episodes, spread evenly"
    assert spread(10, 4) == [0, 3, 6, 9]
    assert spread(2, 4) == [0, 1] and spread(0, 4) == [] and spread(5, 1) == [0]


def test_a_set_of_latents(shards, tmp_path):
    folder = latents_only(shards, tmp_path / "latents")
    found = overview(str(folder))
    assert (found.latents, found.codecs, found.cameras) == (4, {}, {})
    rows = dict(words(found)["content"])
    assert (rows["video"], rows["latents"], rows["cameras"]) == ("none", "in 4 episodes", "none")
    latents = {"shape": [16, 4, 6], "tokenizer": "some/where"}
    made = dict(words(replace(found, latent_format=latents))["content"])["latents"]
    assert made == "in 4 episodes, 16x4x6 a frame, some/where"
    assert not write_sheet(tmp_path / "x.png", samples(ShardIndex.read(folder), 4))
    assert not (tmp_path / "x.png").exists()
    told = run("inspect", folder, cwd=tmp_path)
    assert told.returncode == 0 and "no contact sheet" in told.stderr


def test_an_index_without_statistics_or_concerns(shards, tmp_path):
    folder = remake(shards, tmp_path / "set", lambda _, __, members: members)
    for broken in (None, {"mean": "x"}, {name: [1.0] for name in COLUMNS}):
        edit_index(folder, lambda table, b=broken: table.update(statistics=b, concerns=None))
        found = overview(str(folder))
        assert (found.statistics, found.concerns) == ({}, [])
        assert list(words(found)) == ["splits", "content", "action contract"]


def test_damage_names_what_is_damaged(shards, tmp_path):
    folder = remake(
        shards, tmp_path / "set", lambda _, __, m: {**m, "mp4": b"noise"} if "mp4" in m else m
    )
    with pytest.raises(DataError, match=r"train-000000\.tar: train_0\.mp4: is no video"):
        overview(str(folder))


@pytest.mark.parametrize(
    "member, content, told",
    [
        ("json", b"[]", "json: not a table"),
        ("action.npy", None, r"action\.npy: shape \(8, 7\), must be \(7, 7\)"),
    ],
)
def test_damage_of_other_members_is_one_line_too(shards, tmp_path, member, content, told):
    def change(_, __, members):
        return {**members, member: members["state.npy"] if content is None else content}

    folder = remake(shards, tmp_path / "set", change)
    with pytest.raises(DataError, match=rf"train-000000\.tar: train_0\.{told}"):
        overview(str(folder))
        list(samples(ShardIndex.read(folder), 4))


def test_the_contact_sheet_shows_the_frames(shards, tmp_path):
    index = ShardIndex.read(shards)
    assert write_sheet(tmp_path / "sheet.png", samples(index, 4))
    sheet = np.array(Image.open(tmp_path / "sheet.png").convert("RGB"))
    heights = [round(THUMB * h / w) for h, w in ((32, 48), (48, 64), (32, 48), (32, 48))]
    rows = [LABEL + height + 2 * GAP for height in heights]
    assert sheet.shape == (sum(rows), FRAMES * (THUMB + GAP) + GAP, 3)
    train = index.split("train")
    frames = decode(train.read(1, "mp4"))
    top = rows[0] + LABEL + GAP
    for place, frame in enumerate(spread(12, FRAMES)):
        left = GAP + place * (THUMB + GAP)
        shown = sheet[top : top + heights[1], left : left + THUMB].astype(int)
        wanted = Image.fromarray(frames[frame]).resize((THUMB, heights[1]))
        assert np.abs(shown - np.array(wanted)).max() <= 1
    label = sheet[rows[0] : rows[0] + LABEL]
    assert label.min() < 100, "words stand above the strip"


def test_words_of_strangers_do_no_harm(shards, tmp_path):
    evil = "\x1b[31mred \x1b]0;title\x07 [bold]x[/bold] \n two 手"

    def change(_, __, members):
        return about(members, text=evil)

    folder = remake(shards, tmp_path / "set", change)
    told = run("inspect", folder, cwd=tmp_path, COLUMNS="160")
    assert told.returncode == 0, told.stderr
    assert "\x1b" not in told.stdout and "\x07" not in told.stdout
    assert "[31mred  ]0;title  [bold]x[/bold]   two 手" in told.stdout
    assert "[red]gripper[/red] never moves" in run("inspect", shards, cwd=tmp_path).stdout
    assert plain("a\tb\u202ec") == "a b c"


# How it is called


def test_the_command_prints_and_writes(shards, tmp_path):
    told = run("inspect", shards, cwd=tmp_path, COLUMNS="160")
    assert told.returncode == 0, told.stderr
    for part in (
        "48x64",
        "move block 2",
        "roll (rad)",
        "roll jumps by 3.1 rad",
        "in all",
        "digest",
    ):
        assert part in told.stdout
    name = f"{shards.parent.name}-shards"
    assert told.stderr == f"contact sheet: outputs/inspect/{name}.png\n"
    assert [p.name for p in (tmp_path / "outputs/inspect").iterdir()] == [f"{name}.png"]
    told = run("inspect", shards, "--html", "--output", "here", "--episodes", 1, cwd=tmp_path)
    assert told.returncode == 0
    assert sorted(p.name for p in (tmp_path / "here").iterdir()) == [f"{name}.html", f"{name}.png"]


def test_json_for_scripts(shards, tmp_path):
    told = run("inspect", shards, "--json", cwd=tmp_path)
    assert (told.returncode, told.stderr) == (0, "")
    [line] = told.stdout.splitlines()
    assert json.loads(line) == json.loads(overview(str(shards)).to_json())
    assert not (tmp_path / "outputs").exists()


def test_a_folder_may_be_called_like_a_command(shards, tmp_path):
    (tmp_path / "model").symlink_to(shards)
    assert "no such file" in run("inspect", "model", "nonsense", cwd=tmp_path).stderr
    told = run("inspect", "./model", "--json", cwd=tmp_path)
    assert json.loads(told.stdout)["path"] == "./model"


def test_a_mistake_is_one_line(tmp_path):
    told = run("inspect", "nowhere", cwd=tmp_path)
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr.startswith("error: nowhere: no such folder")
    assert run("inspect", "nowhere", "--nope", cwd=tmp_path).returncode == 2


def test_an_output_that_cannot_be_written(shards, tmp_path):
    (tmp_path / "file").write_text("in the way")
    told = run("inspect", shards, "--output", "file/x", cwd=tmp_path)
    assert told.returncode == 1
    assert told.stderr.splitlines()[-1].startswith("error: file/x")


@pytest.mark.parametrize("command", [("inspect",), ("inspect", "shards"), ("inspect", "x")])
def test_help_shows_examples_that_work(command, tmp_path):
    told = run(*command, "--help", cwd=tmp_path, COLUMNS="200")
    assert (told.returncode, told.stderr) == (0, "")
    examples = [line.strip() for line in told.stdout.splitlines() if "cosmos-wds inspect " in line]
    examples = [line for line in examples if not line.startswith("Usage")]
    parsed = {check(line)[0] for line in examples}
    assert parsed == (
        {"inspect shards", "inspect model"} if len(command) == 1 else {"inspect shards"}
    )
