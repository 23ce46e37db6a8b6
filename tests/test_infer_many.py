"""Rollouts of many episodes in a folder: which, under which seeds, and going on after a stop."""

import errno
import json
import os
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cosmos_wds.console import console
from cosmos_wds.data.actions import ActionContract, relative_actions
from cosmos_wds.data.video import decode, probe
from cosmos_wds.diffusion.guardrail import Blocked
from cosmos_wds.errors import ConfigError, DataError, UserError
from cosmos_wds.pipeline import Pipeline
from cosmos_wds.prepare import shard
from cosmos_wds.rollout import work
from cosmos_wds.rollout.asked import Asked
from cosmos_wds.rollout.choice import Choice, read_choices, read_seeds
from cosmos_wds.rollout.infer import InferRequest, infer
from cosmos_wds.rollout.jobs import batches
from cosmos_wds.rollout.metrics import psnr
from cosmos_wds.rollout.rollout import rollout
from cosmos_wds.train.run import load_run
from tests import forked
from tests.commands import environment
from tests.conftest import moving_frames, write_episode
from tests.killing import wait_for
from tests.test_infer import save_run

LENGTHS = (6, 9, 4, 7, 5)
"""Frames of the val episodes."""


def make_shards(root, lengths=LENGTHS, **actions):
    for number, frames in enumerate(lengths):
        write_episode(root / "raw", "val", number, frames=frames, height=16, width=32)
    write_episode(root / "raw", "train", 0, frames=4, height=16, width=32)
    table = {
        "source": {"path": str(root / "raw"), "splits": ["train", "val"]},
        "shards": {"path": str(root / "shards"), "workers": 1},
        "actions": actions,
    }
    shard(Pipeline.model_validate(table))
    return root / "shards"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("many"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory, shards):
    data, infer = {"shards": str(shards)}, {"steps": 3, "batch": 2}
    return save_run(tmp_path_factory.mktemp("weights") / "tiny", data=data, infer=infer)


@pytest.fixture
def request_for(weights, tmp_path):
    """A request for all val episodes; keywords replace fields, or those of what it asks."""

    def make(**changes):
        asked = {name: changes.pop(name) for name in vars(Asked()) if name in changes}
        fields = {
            "checkpoint": str(weights),
            "asked": Asked(**asked),
            "episodes": ("val",),
            "output": tmp_path / "out",
            "device": "cpu",
        }
        return InferRequest(**(fields | changes))

    return make


def names(folder, ending=".mp4"):
    return sorted(path.name for path in folder.iterdir() if path.name.endswith(ending))


def frames_of(request, name="val_0"):
    return np.load(infer(replace(request, npz=True)) / f"{name}.npz")["frames"]


def close(a, b):
    """Equal but for the order of sums in products of matrices."""
    return a.shape == b.shape and np.abs(a.astype(int) - b).max() <= 1


def test_every_episode_gets_its_video(request_for, shards, capsys):
    folder = infer(request_for(npz=True))
    assert names(folder) == [f"val_{n}.mp4" for n in range(5)]
    assert [probe(folder / f"val_{n}.mp4").frames for n in range(5)] == list(LENGTHS)
    ledger = json.loads((folder / "infer.json").read_text())
    assert sorted(ledger["rollouts"]) == [f"val_{n}" for n in range(5)]
    told = " ".join(capsys.readouterr().err.split())
    assert "PSNR against 5 recordings, dB" in told and "at step 3; mean" in told
    assert "5 rollouts, 5 of them made now" in told
    for number, length in enumerate(LENGTHS):
        saved = np.load(folder / f"val_{number}.npz")
        truth = decode(shards.parent / f"raw/videos/val/{number}/rgb.mp4")
        assert saved["frames"].shape == (length, 16, 32, 3)
        assert np.array_equal(saved["frames"][0], truth[0])
        known = ledger["rollouts"][f"val_{number}"]
        assert known["actions"] == length - 1 == len(saved["actions"])
        np.testing.assert_allclose(known["psnr"], psnr(saved["frames"], truth)[1:], atol=1e-3)


def test_an_episode_is_the_same_by_itself_and_among_others(request_for, weights, tmp_path):
    """Padding to the longest of a batch, the batch's other rollouts and its size change nothing."""
    together = infer(request_for(npz=True, settings=("infer.batch=5",)))
    run = load_run(weights)
    for number in range(5):
        saved = np.load(together / f"val_{number}.npz")
        alone = rollout(run, saved["frames"][:1], saved["actions"][None], seed=0, numbers=[0])[0]
        assert close(saved["frames"], alone)
    one = request_for(episodes=("val:1",), output=tmp_path / "one")
    assert close(frames_of(one, "val_1"), np.load(together / "val_1.npz")["frames"])


def test_a_window_of_several_frames_takes_shorter_neighbours(request_for, tmp_path):
    """Also for a contract that sees poses from the window's first frame."""
    shards = make_shards(tmp_path, accumulate=True)
    contract = ActionContract(frame="first")
    run = save_run(
        tmp_path / "run",
        contract=contract,
        window={"frames": 4},
        data={"shards": str(shards)},
        infer={"batch": 5},
    )
    together = infer(request_for(checkpoint=str(run), npz=True))
    alone = request_for(checkpoint=str(run), episodes=("val:4",), output=tmp_path / "alone")
    assert close(frames_of(alone, "val_4"), np.load(together / "val_4.npz")["frames"])


def test_compare_and_size(request_for):
    request = request_for(episodes=("val:0", "train:0"), compare=True, height=32, width=64)
    folder = infer(request)
    assert names(folder) == ["train_0.mp4", "val_0.mp4"]
    assert decode(folder / "val_0.mp4").shape == (6, 32, 132, 3)


def test_count_shortens(request_for):
    folder = infer(request_for(count=4))
    assert [probe(folder / f"val_{n}.mp4").frames for n in range(5)] == [5, 5, 4, 5, 5]


def test_seeds(request_for, tmp_path):
    folder = infer(request_for(episodes=("val:0",), seeds=(0, 1, 3), npz=True))
    assert names(folder) == ["val_0_seed0.mp4", "val_0_seed1.mp4", "val_0_seed3.mp4"]
    several = [np.load(folder / f"val_0_seed{s}.npz")["frames"] for s in (0, 1, 3)]
    assert not np.array_equal(several[0], several[1])
    alone = request_for(episodes=("val:0",), seeds=(3,), output=tmp_path / "alone")
    assert close(frames_of(alone), several[2])
    more = infer(request_for(episodes=("val:0",), seeds=(3, 4), npz=True))
    assert "val_0_seed4.mp4" in names(more)  # the names tell seeds apart: they share a folder


def test_seeds_of_a_single_video(request_for, tmp_path):
    request = request_for(episodes=("val:0",), seeds=(0, 7), output=tmp_path / "x.mp4", png=True)
    infer(request)
    assert names(tmp_path) == ["x_seed0.mp4", "x_seed7.mp4"]
    assert len(names(tmp_path / "x_seed7_frames", ".png")) == 6
    with pytest.raises(ConfigError, match=r"x_seed0_frames: exists \(and 3 more\)"):
        infer(request)


def test_a_video_plays_in_a_browser(request_for, tmp_path):
    """H.264, yuv420p, and what describes it comes before its frames."""
    import av

    path = infer(request_for(episodes=("val:0",), output=tmp_path / "x.mp4"))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
    content = path.read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")


def test_pngs_are_the_frames(request_for):
    folder = infer(request_for(episodes=("val:2",), png=True, npz=True))
    saved = np.load(folder / "val_2.npz", allow_pickle=False)
    shown = [np.array(Image.open(folder / f"val_2_frames/{n:06}.png")) for n in range(4)]
    assert np.array_equal(shown, saved["frames"])
    assert saved["seed"] == 0 and saved["contract"] == ActionContract().digest
    infer(request_for(episodes=("val:2",), png=True, npz=True, overwrite=True))
    assert len(names(folder / "val_2_frames", ".png")) == 4
    (folder / "val_2_frames/mine.txt").write_text("mine")
    (folder / "infer.json").unlink()
    with pytest.raises(ConfigError, match="val_2_frames: is a folder of something else"):
        infer(request_for(episodes=("val:2",), png=True, npz=True, overwrite=True))
    assert (folder / "val_2_frames/mine.txt").exists()


def test_a_stopped_command_goes_on(request_for, monkeypatch, capsys):
    """After Ctrl-C between two videos of a batch: nothing finished is made again."""
    write, written = work.Outputs.write, []

    def stop(self, finished):
        if len(written) == 3:
            raise KeyboardInterrupt
        write(self, finished)
        written.append(finished.name)

    monkeypatch.setattr(work.Outputs, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        infer(request_for())
    monkeypatch.undo()
    folder = request_for().output
    before = {name: (folder / name).stat().st_mtime_ns for name in names(folder)}
    assert len(before) == 3
    assert "3 of 5 rollouts made: run the same command again" in capsys.readouterr().err
    infer(request_for())
    after = {name: (folder / name).stat().st_mtime_ns for name in names(folder)}
    assert len(after) == 5 and before.items() <= after.items()
    told = capsys.readouterr().err
    assert "3 of 5 rollouts are there: going on" in told and "2 of them made now" in told
    monkeypatch.setattr("cosmos_wds.rollout.infer.load_run", lambda *a, **k: pytest.fail("read"))
    infer(request_for())  # nothing to do: not even the weights are read
    infer(request_for(episodes=("val:1,3",)))
    assert "PSNR against 2 recordings" in capsys.readouterr().err


def test_a_killed_command_goes_on(weights, request_for, tmp_path):
    out = tmp_path / "out"
    words = ["infer", str(weights), "--episodes", "val", "--output", str(out), "--npz"]
    line = [sys.executable, "-m", "cosmos_wds", *words, "--set", "infer.batch=1", "--steps", "60"]
    env = environment()
    with forked.Process(line, env=env) as process:
        wait_for(lambda: list(out.glob("*.mp4")), process)
        process.kill()
    there = {path.name: path.read_bytes() for path in out.glob("*.mp4")}
    assert 0 < len(there) < 5
    told = forked.run(line, env=env)
    assert told.returncode == 0, told.stderr
    assert "5 rollouts, " in told.stderr and "going on" in told.stderr and told.stdout == f"{out}\n"
    assert all((out / name).read_bytes() == content for name, content in there.items())
    whole = infer(request_for(steps=60, npz=True, output=tmp_path / "whole"))
    for number in range(5):
        a, b = (np.load(folder / f"val_{number}.npz")["frames"] for folder in (whole, out))
        assert close(a, b)


def test_a_video_that_is_being_replaced_never_passes_for_the_new_one(request_for, monkeypatch):
    folder = infer(request_for(episodes=("val:0",)))
    monkeypatch.setattr(work.Outputs, "write", lambda *_: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):  # as a kill, after infer.json was written
        infer(request_for(episodes=("val:0",), seeds=(5,), overwrite=True))
    monkeypatch.undo()
    assert not names(folder)
    assert names(infer(request_for(episodes=("val:0",), seeds=(5,)))) == ["val_0.mp4"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"seeds": (1,)}, r"seed: 1 now, 0 there"),
        ({"steps": 5}, r"infer\.steps: 5 now, 3 there"),
        ({"settings": ("infer.noise=reference",)}, r"infer\.noise"),
        ({"fps": 7.0}, r"fps: 7\.0 now, 5\.0 there"),
        ({"compare": True}, r"compare: true now"),
        ({"npz": True}, r"npz"),
        ({"count": 2}, r"count: 2 now, null there"),
        ({"script": "stay"}, r'actions: "stay" now'),
    ],
)
def test_a_folder_holds_rollouts_of_one_kind(request_for, changes, message):
    folder = infer(request_for(episodes=("val:0",)))
    content = (folder / "val_0.mp4").read_bytes()
    with pytest.raises(ConfigError, match=message) as error:
        infer(request_for(episodes=("val:1",), **changes))
    assert "--overwrite" in str(error.value)
    assert (folder / "val_0.mp4").read_bytes() == content and names(folder) == ["val_0.mp4"]
    infer(request_for(episodes=("val:1",), overwrite=True, **changes))
    ledger = json.loads((folder / "infer.json").read_text())
    assert list(ledger["rollouts"]) == ["val_1"] and names(folder) == ["val_0.mp4", "val_1.mp4"]


def test_other_weights_and_recordings_are_noticed(request_for, tmp_path, weights, shards):
    folder = infer(request_for(episodes=("val:0",)))
    other = save_run(tmp_path / "other", model={"blocks": 1})
    with pytest.raises(ConfigError, match="weights: "):
        infer(request_for(checkpoint=str(other), episodes=("train:0",), shards=str(shards)))
    moved = tmp_path / "moved"
    os.rename(weights, moved)
    try:  # the same weights elsewhere are the same
        infer(request_for(checkpoint=str(moved), episodes=("val:0",)))
    finally:
        os.rename(moved, weights)
    shards = make_shards(tmp_path / "others", lengths=(5, 5))
    with pytest.raises(ConfigError, match="was made from another recording of that name"):
        infer(request_for(episodes=("val:0",), shards=str(shards)))
    infer(request_for(episodes=("val:0",), shards=str(shards), overwrite=True))
    assert probe(folder / "val_0.mp4").frames == 5


def test_files_of_somebody_else_are_left_alone(request_for):
    folder = request_for().output
    folder.mkdir()
    (folder / "val_1.mp4").write_bytes(b"precious")
    with pytest.raises(ConfigError, match=r"val_1\.mp4: exists; name another"):
        infer(request_for())
    assert (folder / "val_1.mp4").read_bytes() == b"precious" and len(names(folder)) == 1
    (folder / "infer.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"infer\.json: not what infer wrote"):
        infer(request_for())


def test_two_commands_cannot_write_into_one_folder(request_for):
    import fcntl

    folder = request_for().output
    folder.mkdir()
    with open(folder / ".infer.lock", "w") as held:
        held.write("123")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match=r"another infer is writing here \(process 123\)"):
            infer(request_for())
    infer(request_for(episodes=("val:2",)))


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(request_for, monkeypatch):
    infer(request_for(episodes=("val:0",)))
    fsync, room = os.fsync, [1]

    def full(number):
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        room[0] -= 1
        fsync(number)

    folder = request_for().output
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"val_2\.mp4: cannot be written: .*No space left"):
        infer(request_for())
    assert names(folder) == ["val_0.mp4"] and not names(folder, ".tmp")
    with pytest.raises(DataError, match=r"infer\.json: cannot be written: No space left"):
        infer(request_for())
    room[0] = 100
    assert len(names(infer(request_for()))) == 5


@pytest.mark.parametrize(
    "episodes, message",
    [
        (("val:5",), r"val has 5 episodes, 0 to 4"),
        (("val:3-9",), r"0 to 4"),
        (("val:3-1",), r"3-1 is empty"),
        (("val:",), r"write it as val:0-15"),
        (("val:1,,2",), r"write it as"),
        (("",), r"empty"),
        ((":1",), r"write it as"),
        (("val:nothing",), r"val has no episode 'nothing'; its first is val_0"),
        (("val:vol_3",), r"did you mean val_3\?"),
        (("test:0",), r"no split 'test'; there is train, val"),
    ],
)
def test_episodes_that_are_not_there(request_for, episodes, message):
    with pytest.raises(UserError, match=message) as error:
        infer(request_for(episodes=episodes))
    assert "\n" not in str(error.value)
    assert not names(request_for().output, "") or not names(request_for().output)


def test_which_episodes_are_meant():
    keys = [f"val_{n}" for n in (7, 8, 9, "a=2fb", "3-4")]
    assert read_choices(["val:0-2,1,4 train", "val:9"]) == (
        Choice("val", ("0-2", "1", "4")),
        Choice("train"),
        Choice("val", ("9",)),
    )
    assert Choice("val", ("0-2", "1", "4")).rows(keys) == [0, 1, 2, 4]
    assert Choice("val", ("val_9", "a/b", "0")).rows(keys) == [2, 3, 0]
    assert Choice("val").rows(keys) == [0, 1, 2, 3, 4]
    with pytest.raises(ConfigError, match="the split is empty"):
        Choice("val").rows([])


def test_seeds_in_words():
    assert read_seeds("3") == (3,)
    assert read_seeds("0-2,7, 1") == (0, 1, 2, 7)
    for text in ("", "a", "-1", "1-", "1.5", "٣", "0,,1"):
        with pytest.raises(ConfigError, match="whole numbers"):
            read_seeds(text)
    refused = {"3-1": "is empty", "4294967296": "to 4294967295", "0-999999": "more than 100000"}
    for text, message in refused.items():
        with pytest.raises(ConfigError, match=message):
            read_seeds(text)


def test_batches_are_of_like_length_and_hold_everything_once():
    parts = batches([3, 9, 3, 1, 9], 2)
    assert parts == [[3, 0], [2, 1], [4]]
    assert sorted(sum(parts, [])) == [0, 1, 2, 3, 4]


def test_a_script_begins_at_the_episodes_gripper(request_for, shards, capsys):
    folder = infer(request_for(script="x+0.02*2, close, stay", npz=True))
    for number in range(5):
        actions = np.load(folder / f"val_{number}.npz")["actions"]
        annotation = shards.parent / f"raw/annotation/val/{number}.json"
        state = json.loads(annotation.read_text())["continuous_gripper_state"]
        np.testing.assert_allclose(actions[:, 6], [state[0], state[0], 0, 0], atol=1e-6)
        np.testing.assert_allclose(actions[:, 0], [0.02, 0.02, 0, 0])
    assert capsys.readouterr().err.count("the gripper is as in the recording") == 1
    ledger = json.loads((folder / "infer.json").read_text())
    assert "psnr" not in ledger["rollouts"]["val_0"]


def test_a_script_that_an_episode_cannot_follow_names_it(request_for):
    with pytest.raises(ConfigError, match=r"val-000000\.tar: val_0: script .*gripper -"):
        infer(request_for(script="gripper-0.9*2"))


def test_words_and_arrays_replace_what_is_recorded(request_for, tmp_path):
    first = tmp_path / "first.png"
    Image.fromarray(moving_frames(1, 20, 30)[0]).save(first)
    np.save(tmp_path / "rows.npy", np.zeros((3, 7)))
    folder = infer(request_for(npy=tmp_path / "rows.npy", count=2, episodes=("val:0-1",)))
    assert [probe(folder / f"val_{n}.mp4").frames for n in range(2)] == [3, 3]
    other = infer(request_for(first=first, npz=True, output=tmp_path / "other"))
    saved = np.load(other / "val_2.npz")
    assert len(saved["frames"]) == 4
    with pytest.raises(ConfigError, match="the recordings show their own actions"):
        infer(request_for(script="stay", compare=True, output=tmp_path / "third"))
    alone = InferRequest(
        checkpoint=request_for().checkpoint,
        asked=Asked(first=first, script="x+1cm, close"),
        output=tmp_path / "alone.mp4",
        device="cpu",
    )
    assert probe(infer(alone)).frames == 3
    both = replace(alone, output=tmp_path / "folder", seeds=(0, 1))
    assert names(infer(both)) == ["first_seed0.mp4", "first_seed1.mp4"]
    with pytest.raises(ConfigError, match="x moves|no such dimension"):
        infer(replace(alone, asked=Asked(first=first, script="q+1"), overwrite=True))


def test_an_annotation_gives_a_script_its_gripper(request_for, shards, tmp_path):
    path = shards.parent / "raw/annotation/val/1.json"
    request = replace(request_for(), episodes=(), output=tmp_path / "a.mp4", npz=True)
    infer(replace(request, asked=Asked(annotation=path, script="stay*2")))
    state = json.loads(path.read_text())["continuous_gripper_state"]
    actions = np.load(tmp_path / "a.npz")["actions"]
    np.testing.assert_allclose(actions[:, 6], state[0], atol=1e-6)


def test_recorded_actions_as_the_reference_takes_them(request_for, shards, tmp_path):
    path = shards.parent / "raw/annotation/val/1.json"
    table = json.loads(path.read_text())
    recorded = ("infer.actions=recorded",)
    request = replace(request_for(), episodes=(), npz=True, asked=Asked(annotation=path))
    infer(replace(request, output=tmp_path / "a.mp4"))
    infer(replace(request, output=tmp_path / "b.mp4", settings=recorded))
    state = np.column_stack([np.array(table["state"])[:, :6], table["continuous_gripper_state"]])
    ours, theirs = (np.load(tmp_path / f"{name}.npz")["actions"] for name in "ab")
    np.testing.assert_allclose(ours, relative_actions(state), atol=1e-6)
    np.testing.assert_allclose(theirs, table["action"], atol=1e-6)
    with pytest.raises(ConfigError, match="holds actions computed from states"):
        infer(request_for(settings=recorded))
    infer(request_for(settings=recorded, script="stay", episodes=("val:0",)))
    del table["action"]
    bare = path.with_name("bare.json")
    bare.write_text(json.dumps(table))
    with pytest.raises(DataError, match=r"bare\.json: action: missing"):
        infer(replace(request, asked=Asked(annotation=bare), settings=recorded))


def test_shards_that_do_not_fit(request_for, tmp_path):
    other = make_shards(tmp_path, lengths=(4,), fps=9)
    with pytest.raises(DataError, match="the shards' actions mean something else") as error:
        infer(request_for(shards=str(other)))
    assert "fps: 5.0 here, 9.0 there" in str(error.value)
    folder = infer(request_for(shards=str(other), script="stay", episodes=("val:0",)))
    assert names(folder) == ["val_0.mp4"]  # first frames alone need no common meaning
    with pytest.raises(DataError, match="nowhere: no such folder"):
        infer(request_for(shards=str(tmp_path / "nowhere")))


def test_settings_of_the_command_line(request_for, tmp_path):
    slower = request_for(episodes=("val:0",), settings=("infer.steps=9",), output=tmp_path / "a")
    by_option = request_for(episodes=("val:0",), steps=9, output=tmp_path / "b")
    assert np.array_equal(frames_of(slower), frames_of(by_option))
    with pytest.raises(ConfigError, match=r"only \[infer\].* can be changed here; the rest"):
        infer(request_for(settings=("model.width=64",)))
    with pytest.raises(ConfigError, match="stepz: unknown key; did you mean steps"):
        infer(request_for(settings=("infer.stepz=64",)))
    with pytest.raises(ConfigError, match=r"guidance = 2\.0: the model never saw"):
        infer(request_for(guidance=2.0))
    with pytest.raises(ConfigError, match=r"frames_per_call = 9"):
        infer(request_for(frames_per_call=9))


def test_a_guardrail_that_refuses_names_the_episodes(request_for, tmp_path, monkeypatch):
    code = "from cosmos_wds.diffusion.guardrail import Blocked\n"
    code += "def refuse(frames):\n    raise Blocked('no')\n"
    (tmp_path / "refusing.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Blocked, match=r"rollout 0, .* no \(rollouts from 0: val_2, val_4\)"):
        infer(request_for(guardrail="refusing:refuse"))
    assert not names(request_for().output)


def test_outputs_that_cannot_be(request_for, tmp_path):
    with pytest.raises(ConfigError, match="5 episodes make as many; name a folder"):
        infer(request_for(output=tmp_path / "x.mp4"))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="file: is a file; name a folder"):
        infer(request_for(output=tmp_path / "file"))
    with pytest.raises(ConfigError, match="cannot be written"):
        infer(request_for(output=tmp_path / "file/out"))
    assert (tmp_path / "file").read_text() == "mine"


def test_episodes_too_short_are_told_and_left_out(request_for, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(console, "width", 400)
    run = save_run(
        tmp_path / "run", data={"shards": str(shards)}, window={"interval": 5}, infer={"steps": 1}
    )
    folder = infer(request_for(checkpoint=str(run)))
    assert names(folder) == ["val_0.mp4", "val_1.mp4", "val_3.mp4"]
    assert probe(folder / "val_1.mp4").frames == 2 and probe(folder / "val_1.mp4").fps == 1.0
    with pytest.raises(DataError, match="none of these episodes holds an action"):
        infer(request_for(checkpoint=str(run), episodes=("val:2",)))
