"""`inspect --verify`: a good set passes, and each kind of damage is told, naming shard and key."""

import io
import json
import os
import shutil
import signal
import sys
import time

import numpy as np
import pytest

from cosmos_wds.data.index import BLOCK
from cosmos_wds.data.video import write_video
from cosmos_wds.errors import DataError
from cosmos_wds.inspection import verify as module
from cosmos_wds.inspection.verify import SHOWN, Verification, verify
from cosmos_wds.pipeline import load_pipeline
from cosmos_wds.prepare import shard
from tests import forked
from tests.commands import environment, run
from tests.conftest import moving_frames, write_episode
from tests.killing import wait_for
from tests.remake import about, edit_index, edit_rows, overwrite, places, remake, rename
from tests.test_loader import living_of_group


@pytest.fixture(scope="session")
def good(tmp_path_factory):
    """A set of four training and two validation episodes with two cameras."""
    root = tmp_path_factory.mktemp("verify")
    for split, count in (("train", 4), ("val", 2)):
        for number in range(count):
            write_episode(root / "raw", split, number, cameras=2, grain=8)
    changes = [f"source.path={root}/raw", f"shards.path={root}/shards", "shards.workers=1"]
    shard(load_pipeline("bridge", changes))
    return root / "shards"


@pytest.fixture
def copy(good, tmp_path):
    """A copy of the set, to be damaged."""
    return shutil.copytree(good, tmp_path / "copy")


def problems(folder, **settings):
    """The problems of a set, without the folder's name that each begins with."""
    lines = verify(str(folder), workers=1, **settings).problems
    assert all(line.startswith(f"{folder}/") and "\n" not in line for line in lines), lines
    return [line.removeprefix(f"{folder}/") for line in lines]


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def changed(good, folder, key, change):
    """A set whose index fits, with the members of one episode changed."""
    return remake(good, folder, lambda _, k, m: change(dict(m)) if k == key else m)


# A good set


def test_a_good_set_is_in_order(good):
    done = verify(str(good), workers=1)
    assert (done.problems, done.notes) == ((), ())
    assert (done.episodes, done.frames) == (6, 48)
    assert done.bytes == sum(tar.stat().st_size for tar in good.glob("*.tar"))
    assert done.verdict().startswith(f"verified: {good}: 6 episodes, 48 frames")


def test_a_set_at_a_url_is_read_like_a_folder(good, copy):
    """local:// is what fsspec opens, as s3:// is."""
    assert verify(f"local://{good}", workers=1).problems == ()
    os.truncate(copy / "val-000000.tar", 5000)
    here, there = verify(str(copy), workers=1), verify(f"local://{copy}", workers=1)
    assert [line.replace(str(copy), f"local://{copy}") for line in here.problems] == [
        *there.problems
    ]


def test_a_set_that_was_made_again_is_in_order(good, tmp_path):
    assert problems(remake(good, tmp_path / "again", lambda _, __, members: members)) == []


def test_the_command_says_so_and_ends_with_0_or_1(copy, tmp_path):
    told = run("inspect", copy, "--verify", cwd=tmp_path)
    assert (told.returncode, told.stdout) == (0, verify(str(copy)).verdict() + "\n"), told.stderr
    tar, offset, _ = places(copy, "train")["train_1", "action.npy"]
    overwrite(tar, offset + 90, b"?")
    told = run("inspect", "--verify", copy, cwd=tmp_path)
    assert told.returncode == 1
    assert told.stderr.splitlines()[-1].startswith(f"error: {copy}: not in order: ")
    assert told.stdout.splitlines() == list(verify(str(copy)).problems)
    told = run("inspect", copy, "--verify", "--json", cwd=tmp_path)
    assert told.returncode == 1
    assert json.loads(told.stdout)["problems"] == list(verify(str(copy)).problems)
    assert not (tmp_path / "outputs").exists()


# Damage behind the index's back


def test_a_flipped_byte_in_a_video(copy):
    """The tar's checksum tells; the episode too where the flip breaks the video's structure."""
    tar, offset, size = places(copy, "train")["train_2", "1.mp4"]
    place = tar.read_bytes().index(b"stsz", offset, offset + size) + 15
    overwrite(tar, place, bytes([tar.read_bytes()[place] ^ 1]))
    found = problems(copy)
    assert found[0].startswith("train-000000.tar: sha256 ")
    assert len(found) == 2 and found[1].startswith("train-000000.tar: train_2.1.mp4: ")


def test_flips_that_decode_are_told_by_the_checksum(copy):
    tar, offset, size = places(copy, "train")["train_2", "1.mp4"]
    for place in np.linspace(offset, offset + size - 1, 20).astype(int):
        byte = tar.read_bytes()[place : place + 1]
        overwrite(tar, place, bytes([byte[0] ^ 16]))
        found = problems(copy)
        assert found[0].startswith("train-000000.tar: sha256 ")
        assert all("train_2.1.mp4" in line for line in found[1:])
        overwrite(tar, place, byte)


def test_swapped_names(copy):
    found = places(copy, "train")
    rename(*found["train_0", "state.npy"][:2], "train_1.state.npy")
    rename(*found["train_1", "state.npy"][:2], "train_0.state.npy")
    lines = "\n".join(problems(copy))
    for one, other in ("01", "10"):
        assert f"train_{one}.state.npy: 352 bytes in the index, the tar has train_{other}" in lines
        wanted = f"train_{one}.state.npy: not at its place: holds 'train_{other}.state.npy'"
        assert wanted in lines


def test_a_cut_shard(copy):
    tar, offset, _ = places(copy, "train")["train_2", "action.npy"]
    os.truncate(tar, offset + 10)
    lines = "\n".join(problems(copy))
    said = json.loads((copy / "index.json").read_text())["splits"]["train"]["shards"][0]["bytes"]
    assert f"train-000000.tar: bytes: {offset + 10}, index.json says {said}" in lines
    assert "7 members of the index are not in the tar, train_2.state.npy the first" in lines
    for member in ("2.action.npy", "2.json", "3.mp4", "3.json"):
        assert f"train_{member}: not at its place: the tar is cut off" in lines
    assert "train_1" not in lines and "val" not in lines


def test_a_missing_shard_is_one_line(copy):
    (copy / "train-000000.tar").unlink()
    [line] = problems(copy)
    assert line == "train-000000.tar: no such file"


def test_a_garbled_header_hides_nothing_behind_it(copy):
    found = places(copy, "train")
    tar, offset, _ = found["train_0", "1.mp4"]
    overwrite(tar, offset - BLOCK, b"\xff" * BLOCK)
    rename(*found["train_3", "json"][:2], "train_3.jsom")
    lines = "\n".join(problems(copy))
    assert f"train-000000.tar: no tar header at byte {offset - BLOCK}: " in lines
    assert "1 members of the index are not in the tar, train_0.1.mp4 the first" in lines
    assert "train_3.json: " in lines and "the tar has train_3.jsom" in lines


def test_a_member_that_the_index_does_not_know(copy):
    def forget(rows):
        del rows[1]["members"]["1.mp4"]

    edit_rows(copy, "val", forget)
    lines = problems(copy)
    assert any("val_1.1.mp4: at byte" in line and "does not know" in line for line in lines)
    assert "val-000000.tar: val_1.json: cameras [0, 1], there is mp4" in lines


def test_the_end_of_a_tar(copy):
    tar = copy / "val-000000.tar"
    os.truncate(tar, tar.stat().st_size - 2 * BLOCK)
    assert any("no mark of a tar's end" in line for line in problems(copy))


# The index itself


def test_an_edited_index(copy):
    def edit(table):
        train, val = (table["splits"][name]["shards"][0] for name in ("train", "val"))
        train["sha256"] = "0" * 64
        val["frames"], val["episodes"], val["bytes"] = 1, 7, 8

    edit_index(copy, edit)
    lines = problems(copy)
    assert len(lines) == 4
    assert lines[0].startswith("train-000000.tar: sha256 ")
    assert lines[0].endswith(f"index.json says {'0' * 64}")
    assert lines[1:3] == [
        "val-000000.tar: episodes: 2, index.json says 7",
        "val-000000.tar: frames: 16, index.json says 1",
    ]
    assert lines[3].startswith("val-000000.tar: bytes: ")


def test_edited_rows(copy):
    with open(copy / "val.idx.jsonl", "a") as file:
        file.write("{}\n")
    [line] = problems(copy)
    assert line.startswith("val.idx.jsonl: is not what index.json says")


def test_rows_of_a_shard_that_is_not_there(copy):
    edit_rows(copy, "val", lambda rows: rows[0].update(shard="val-000009.tar"))
    lines = problems(copy)
    assert "val-000009.tar: val_0: no such tar" in lines
    assert "val-000000.tar: episodes: 1, index.json says 2" in lines


@pytest.mark.parametrize(
    "content, told",
    [(None, "no index.json"), (b"", "not an index"), (b"\xff{", "not an index"), (b"[]", "index")],
)
def test_a_set_without_a_good_index_is_one_line(copy, tmp_path, content, told):
    (copy / "index.json").unlink()
    if content is not None:
        (copy / "index.json").write_bytes(content)
    for option in ("--verify", "--html"):
        ended = run("inspect", copy, option, cwd=tmp_path)
        assert (ended.returncode, ended.stdout) == (1, "")
        assert told in ended.stderr and len(ended.stderr.splitlines()) == 1


# What is wrong in an episode although the checksums are right


def one_array(member, change):
    def apply(members):
        array = np.load(io.BytesIO(members[member]))
        return {**members, member: npy(change(array))}

    return apply


def with_nan(array):
    array[3, 2] = np.nan
    return array


def shifted(array):
    array[4, 0] += 2e-6
    return array


def without(member):
    return lambda members: {name: data for name, data in members.items() if name != member}


def with_video(**shape):
    def apply(members):
        path = shape.pop("folder") / "v.mp4"
        write_video(path, moving_frames(shape["frames"], shape["height"], shape["width"]))
        return {**members, "mp4": path.read_bytes()}

    return apply


def latents(array):
    return lambda members: {**members, "latent.npy": npy(array)}


DAMAGE = {
    "NaN state": (one_array("state.npy", with_nan), "state.npy: 1 of 56 numbers are not finite"),
    "NaN action": (one_array("action.npy", with_nan), "action.npy: 1 of 49 numbers are not finite"),
    "an action that no state gives": (
        one_array("action.npy", shifted),
        "action.npy: differs by 2e-06 from what its states give",
    ),
    "double precision": (
        one_array("action.npy", lambda a: a.astype(float)),
        "action.npy: float64 (7, 7), not float32 (7, 7)",
    ),
    "a row too few": (
        one_array("state.npy", lambda a: a[:-1]),
        "state.npy: float32 (7, 7), not float32 (8, any)",
    ),
    "a state of six": (
        one_array("state.npy", lambda a: a[:, :6]),
        "state.npy: 6 numbers, an action has 7",
    ),
    "no array": (lambda m: {**m, "action.npy": b"PK"}, "action.npy: not an array"),
    "a pickle": (
        lambda m: {**m, "action.npy": npy(np.array([{}], object))},
        "action.npy: not an array",
    ),
    "no states": (without("state.npy"), "no state.npy"),
    "no actions": (without("action.npy"), "no action.npy"),
    "no json": (without("json"), "no json"),
    "JSON that is none": (lambda m: {**m, "json": b"{"}, "json: not JSON"),
    "JSON of something else": (lambda m: {**m, "json": b"[1]"}, "json: not a table"),
    "another split": (
        lambda m: about(m, split="val"),
        "json: split is 'val', the index says 'train'",
    ),
    "another length": (lambda m: about(m, frames=9), "json: frames is 9, the index says 8"),
    "no id": (lambda m: about(m, id=None), "json: no id"),
    "hashes of other videos": (
        lambda m: about(m, video_sha256=["0" * 64, "1" * 64]),
        "json: video_sha256 is not that of the videos",
    ),
    "cameras in another order": (
        lambda m: about(m, cameras=[1, 0]),
        "json: cameras [1, 0], there is mp4, 1.mp4",
    ),
    "another size": (
        lambda m: about(m, height=64),
        "mp4: pictures of 32x48, its json says 64x48",
    ),
    "an empty video": (lambda m: {**m, "1.mp4": b""}, "1.mp4: empty video"),
    "no video at all": (lambda m: without("mp4")(without("1.mp4")(m)), "neither a video nor"),
    "a cut video": (lambda m: {**m, "mp4": m["mp4"][:-300]}, "mp4: cut off: "),
    "noise as video": (lambda m: {**m, "mp4": bytes(range(256)) * 9}, "mp4: does not decode"),
    "latents in float32": (
        latents(np.zeros((8, 16, 4, 6), np.float32)),
        "latent.npy: float32 (8, 16, 4, 6), not float16 (8, any, any, any)",
    ),
    "latents too few": (latents(np.zeros((7, 16, 4, 6), np.float16)), "latent.npy: float16 (7, "),
    "latents that ran over": (
        latents(np.full((8, 1, 2, 2), np.inf, np.float16)),
        "latent.npy: 32 of 32 numbers are not finite",
    ),
}


@pytest.mark.parametrize("change, told", DAMAGE.values(), ids=DAMAGE)
def test_damage_that_checksums_do_not_see(good, tmp_path, change, told):
    lines = problems(changed(good, tmp_path / "set", "train_1", change))
    assert any(told in line for line in lines), lines
    assert all(line.startswith("train-000000.tar: train_1") for line in lines)


def test_a_video_that_is_too_short(good, tmp_path):
    change = with_video(folder=tmp_path, frames=7, height=32, width=48)
    lines = problems(changed(good, tmp_path / "set", "train_1", change))
    assert "train-000000.tar: train_1.mp4: 7 frames, the index says 8" in lines


def test_latents_alone_are_enough(good, tmp_path):
    def change(_, __, members):
        bare = without("mp4")(without("1.mp4")(members))
        return latents(np.zeros((8, 16, 4, 6), np.float16))(about(bare, video_sha256=["0" * 64]))

    assert problems(remake(good, tmp_path / "set", change)) == []


def test_recorded_commands_need_no_states(good, tmp_path):
    raw = good.parent / "raw"
    changes = [f"source.path={raw}", f"shards.path={tmp_path}/s", "shards.workers=1"]
    shard(load_pipeline("bridge", [*changes, "actions.signal=command"]))
    assert problems(tmp_path / "s") == []
    bare = remake(tmp_path / "s", tmp_path / "bare", lambda _, __, m: without("state.npy")(m))
    assert problems(bare) == []


def test_half_turns_are_no_difference(good, tmp_path):
    """Angles at pi and -pi are one pose; float32 states give either."""
    state = np.zeros((8, 7), np.float32)
    state[1::2, 5] = np.pi
    action = np.zeros((7, 7), np.float32)
    action[:, 5] = -np.pi + 1e-7

    def change(members):
        return {**members, "state.npy": npy(state), "action.npy": npy(action)}

    assert problems(changed(good, tmp_path / "set", "val_1", change)) == []


# Over the whole set


def test_leaks_between_splits(good, tmp_path):
    """Two validation recordings are training's: by their annotation, and by their video alone."""
    raw = tmp_path / "raw"
    shutil.copytree(good.parent / "raw", raw)
    annotation = (raw / "annotation/train/2.json").read_text()
    (raw / "annotation/val/7.json").write_text(annotation)
    video = (raw / "videos/train/1/rgb1.mp4").read_bytes()
    (raw / "videos/val/0/rgb.mp4").write_bytes(video)
    changes = [f"source.path={raw}", f"shards.path={tmp_path}/s", "shards.workers=1"]
    shard(load_pipeline("bridge", changes))
    train = f"{tmp_path}/s/train-000000.tar: train_"
    ends = f"{train}%s of train, and this of val"
    done = verify(f"{tmp_path}/s", workers=1)
    assert [line.removeprefix(f"{tmp_path}/s/val-000000.tar: ") for line in done.problems] == [
        f"val_7: the same recording (source_sha256) in two splits: {ends % 2}",
        f"val_0: the same video (video_sha256) in two splits: {ends % 1}",
        *[f"val_7: the same video (video_sha256) in two splits: {ends % 2}"] * 2,
    ]
    assert done.notes == ("1 ids are in more than one split, 'train-2' the first",)


def test_the_same_key_twice(good, tmp_path):
    def change(split, key, members):
        twice = [(key, members), ("train_0", members)]
        return twice if key == "val_1" else members

    lines = problems(remake(good, tmp_path / "set", change))
    [line] = [line for line in lines if "the same key" in line]
    assert line.startswith("val-000000.tar: train_0: the same key as in ")
    assert line.endswith("train-000000.tar: train_0")


def test_equal_ids_and_doubles_within_a_split_are_notes(good, tmp_path):
    def change(split, key, members):
        members = about(members, id=key.split("_")[1])
        return [(key, members), ("train_9", members)] if key == "train_3" else members

    done = verify(str(remake(good, tmp_path / "set", change)), workers=1)
    assert done.problems == ()
    ids, recordings, videos = done.notes
    assert ids == "2 ids are in more than one split, '0' the first"
    assert recordings.startswith("2 episodes have a recording") and "train_3" in recordings
    assert videos.startswith("2 episodes have a video")


# How it works


def test_processes_find_the_same_in_the_same_order(good, tmp_path, monkeypatch):
    def change(split, key, members):
        return about(members, frames=9, split="other") if key in ("train_0", "val_1") else members

    folder = remake(good, tmp_path / "set", change)
    monkeypatch.setattr(module, "CHUNK", 1)
    alone, together = verify(str(folder), workers=1), verify(str(folder), workers=2)
    assert alone == together and len(alone.problems) == 4


def test_many_problems_are_counted():
    done = Verification("x", 1, 1, 1, tuple(f"line {i}" for i in range(SHOWN + 5)), ("word",))
    lines = list(done.lines())
    assert lines[SHOWN - 1 :] == [f"line {SHOWN - 1}", "and 5 more; --json tells all", "note: word"]
    assert len(json.loads(done.to_json())["problems"]) == SHOWN + 5
    with pytest.raises(DataError, match=f"x: not in order: {SHOWN + 5} problems"):
        done.verdict()


@pytest.mark.slow
def test_ctrl_c_ends_it_cleanly(good, tmp_path):
    path = tmp_path / "long.mp4"
    write_video(path, np.tile(moving_frames(2, 256, 320), (750, 1, 1, 1)), preset="ultrafast")
    video = path.read_bytes()

    def change(_, key, members):
        return [(f"{key}-{i}", {**members, "mp4": video}) for i in range(30)]

    folder = remake(good, tmp_path / "set", change)
    words = [sys.executable, "-m", "cosmos_wds", "inspect", folder, "--verify", "--workers", "2"]
    with forked.Process(words, env=environment(), start_new_session=True) as process:
        # The command, what looks after its memory, and two workers, which are to begin first.
        wait_for(lambda: len(living_of_group(process.pid)) >= 4, process)
        time.sleep(1.5)
        assert process.poll() is None, process.communicate()
        os.killpg(process.pid, signal.SIGINT)
        began = time.monotonic()
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (130, ""), err
        assert err.splitlines()[-1] == "interrupted" and "Traceback" not in err
        assert time.monotonic() - began < 15
        wait_for(lambda: not living_of_group(process.pid), seconds=10)
