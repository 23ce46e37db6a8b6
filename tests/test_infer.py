"""The infer command's body: what it takes, what it writes, and one clear line for each refusal."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from cosmos_wds.config import dump
from cosmos_wds.data.actions import ActionContract, relative_actions
from cosmos_wds.data.video import decode, probe, write_video
from cosmos_wds.errors import CheckpointError, ConfigError, DataError, UserError
from cosmos_wds.model.names import to_released
from cosmos_wds.rollout.asked import Asked, read_inputs
from cosmos_wds.rollout.film import beside
from cosmos_wds.rollout.infer import InferRequest, infer
from cosmos_wds.rollout.inputs import read_picture
from tests.conftest import moving_frames, write_episode
from tests.tiny_run import BRIDGE, random_run, tiny_recipe


def save_run(folder, *, contract=BRIDGE, **sections):
    """A folder of weights with their recipe, contract and tokenizer, as a shipped one."""
    run = random_run(contract=contract, **sections)
    folder.mkdir()
    save_file(to_released(run.denoiser.state_dict()), folder / "model.safetensors")
    (folder / "recipe.toml").write_text(dump(run.recipe))
    (folder / "contract.json").write_text(json.dumps(contract.to_dict()))
    run.tokenizer.save(folder / "tokenizer.safetensors")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    root = tmp_path_factory.mktemp("bridge")
    write_episode(root, "val", 3, frames=6)
    return root


@pytest.fixture
def request_for(weights, recordings, tmp_path):
    """A request on the tiny weights, for an annotation unless other inputs are named.

    Keywords replace fields of the request, or of what it asks.
    """

    def make(**changes):
        asked = {name: changes.pop(name) for name in vars(Asked()) if name in changes}
        if not asked.keys() & {"annotation", "npy", "script"}:
            asked["annotation"] = recordings / "annotation/val/3.json"
        fields = {
            "checkpoint": str(weights),
            "asked": Asked(**asked),
            "output": tmp_path / "out" / "rollout.mp4",
            "device": "cpu",
        }
        return InferRequest(**(fields | changes))

    return make


def array(tmp_path, rows):
    path = tmp_path / "actions.npy"
    np.save(path, rows)
    return path


def picture(tmp_path, height=20, width=30):
    path = tmp_path / "first.png"
    Image.fromarray(moving_frames(1, height, width)[0]).save(path)
    return path


def test_annotation_alone(request_for):
    """First frame, actions and rate all come from the annotation: 5 actions give 6 frames."""
    path = infer(request_for())
    facts = probe(path)
    assert (facts.frames, facts.height, facts.width, facts.fps) == (6, 16, 32, 5.0)


def test_image_and_array(request_for, tmp_path):
    rows = np.random.default_rng(0).normal(0, 0.01, (3, 7)).astype(np.float32)
    request = request_for(
        first=picture(tmp_path), npy=array(tmp_path, rows), fps=24, height=64, width=96
    )
    facts = probe(infer(request))
    assert (facts.frames, facts.height, facts.width, facts.fps) == (4, 64, 96, 24.0)


def test_video_as_first_frame(tmp_path):
    frames = moving_frames(4, 32, 64)
    write_video(tmp_path / "a.mp4", frames, crf=1)
    assert np.array_equal(read_picture(tmp_path / "a.mp4"), decode(tmp_path / "a.mp4", [0])[0])


def test_picture_keeps_its_pixels_whatever_its_mode(tmp_path):
    frame = moving_frames(1, 20, 30)[0]
    Image.fromarray(frame).save(tmp_path / "a.png")
    Image.fromarray(frame).convert("RGBA").save(tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        assert np.array_equal(read_picture(tmp_path / name), frame)
    Image.fromarray(frame).convert("L").save(tmp_path / "c.png")
    assert read_picture(tmp_path / "c.png").shape == frame.shape


def test_seed_and_steps_count(request_for, tmp_path):
    def frames(name, **changes):
        return decode(infer(request_for(output=tmp_path / name, **changes)))

    one = frames("a.mp4")
    assert np.array_equal(one, frames("b.mp4"))
    assert not np.array_equal(one, frames("c.mp4", seeds=(1,)))
    assert not np.array_equal(one, frames("d.mp4", steps=8))


def test_compare_puts_the_recording_to_the_left(request_for, recordings, capsys):
    request = request_for(compare=True, height=32, width=64)
    frames = decode(infer(request))
    assert frames.shape == (6, 32, 132, 3)
    truth = decode(recordings / "videos/val/3/rgb.mp4")
    window = {"height": 32, "width": 48}
    recipe = tiny_recipe(window=window)
    inputs = read_inputs(request.asked, contract=BRIDGE, recipe=recipe, with_truth=True)
    assert np.array_equal(inputs.truth, truth)
    assert np.abs(frames[0, :, :64].astype(int) - frames[0, :, 68:]).mean() < 8
    told = capsys.readouterr().err
    assert "dB" in told and "at step 5" in told


def test_interval_takes_every_kth_frame_and_joins_the_actions(tmp_path, recordings):
    recipe = tiny_recipe(window={"height": 32, "width": 48, "interval": 2})
    annotation = recordings / "annotation/val/3.json"
    asked = Asked(annotation=annotation)
    inputs = read_inputs(asked, contract=BRIDGE, recipe=recipe, with_truth=True)
    table = json.loads(annotation.read_text())
    np.testing.assert_allclose(inputs.actions, relative_actions(np.array(table["state"])[::2]))
    video = decode(recordings / "videos/val/3/rgb.mp4")
    assert np.array_equal(inputs.truth, video[:5:2])


def test_command_signal_takes_the_recorded_rows(recordings):
    annotation = recordings / "annotation/val/3.json"
    contract = ActionContract(signal="command", frame="recorded")
    asked = Asked(annotation=annotation)
    inputs = read_inputs(asked, contract=contract, recipe=tiny_recipe())
    recorded = json.loads(annotation.read_text())["action"]
    np.testing.assert_allclose(inputs.actions, recorded, rtol=1e-6)
    with pytest.raises(DataError, match="interval = 2"):
        read_inputs(asked, contract=contract, recipe=tiny_recipe(window={"interval": 2}))


@pytest.mark.parametrize(
    "rows, message",
    [
        (np.zeros((4, 6)), r"actions are \(N, 6\); the model takes 7 numbers a row: x y z roll"),
        (np.zeros(7), r"actions are \(7,\)"),
        (np.zeros((0, 7)), "holds no action"),
        (np.full((2, 7), np.nan), r"nan in row 0, column 0 \(x\)"),
        (np.array([[0, 0, 0, 0, 0, 0, np.inf]]), r"inf in row 0, column 6 \(gripper\)"),
        (np.array([["a"] * 7]), "not an array of numbers"),
        (np.array([[None] * 7]), "not a .npy array of numbers"),
    ],
)
def test_unusable_arrays(request_for, tmp_path, rows, message):
    request = request_for(first=picture(tmp_path), npy=array(tmp_path, rows))
    refuse(request, rf"actions\.npy: .*{message}")


def refuse(request, message):
    """The request raises one line of that message and leaves nothing behind."""
    with pytest.raises(UserError, match=message) as error:
        infer(request)
    assert "\n" not in str(error.value)
    assert not list(request.output.parent.glob("*.mp4*"))


def test_unusable_files(request_for, tmp_path, recordings):
    rows = array(tmp_path, np.zeros((2, 7)))
    text = tmp_path / "note.png"
    text.write_text("not a picture")
    refuse(request_for(first=text, npy=rows), "note.png: not an image")
    cut = tmp_path / "cut.png"
    cut.write_bytes(picture(tmp_path, 64, 64).read_bytes()[:200])
    refuse(request_for(first=cut, npy=rows), "cut.png: damaged")
    refuse(request_for(first=tmp_path / "no.png", npy=rows), "no.png: no such image or video")
    refuse(request_for(npy=rows), "actions.npy: holds actions only; name the first frame")
    refuse(
        request_for(first=picture(tmp_path), npy=rows, compare=True),
        "actions.npy: holds no recording to compare with",
    )
    refuse(request_for(npy=tmp_path / "no.npy"), "name the first frame")
    refuse(request_for(annotation=tmp_path / "no.json"), "no.json: no such annotation")
    refuse(request_for(annotation=text), "note.png: actions come from an annotation")
    lone = tmp_path / "lone.json"
    lone.write_text((recordings / "annotation/val/3.json").read_text())
    refuse(request_for(annotation=lone), "lone.json: an annotation lies in ROOT/annotation/SPLIT/")
    (tmp_path / "zip.npy").write_bytes(b"PK\x03\x04 nothing")
    refuse(request_for(first=picture(tmp_path), npy=tmp_path / "zip.npy"), "zip.npy: not a .npy")


@pytest.mark.parametrize("compare", [False, True])
@pytest.mark.parametrize("keep", [0, 100, 0.9])
def test_truncated_video(request_for, tmp_path, keep, compare):
    annotation = write_episode(tmp_path, "val", 1)
    video = tmp_path / "videos/val/1/rgb.mp4"
    whole = video.read_bytes()
    video.write_bytes(whole[: int(len(whole) * keep) if keep < 1 else keep])
    refuse(request_for(annotation=annotation, compare=compare), r"rgb\.mp4: ")
    rows = array(tmp_path, np.zeros((2, 7)))
    refuse(request_for(first=video, npy=rows), r"rgb\.mp4: ")


def test_video_shorter_than_its_states(request_for, tmp_path):
    annotation = write_episode(tmp_path, "val", 1, frames=8)
    write_video(tmp_path / "videos/val/1/rgb.mp4", moving_frames(5, 32, 48))
    refuse(request_for(annotation=annotation, compare=True), "frame .* wanted, the video has 5")


def test_another_camera(request_for, tmp_path, weights):
    other = save_run(tmp_path / "camera", window={"camera": 1})
    refuse(request_for(checkpoint=str(other)), "3.json: has no camera 1")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"height": 33}, "--height 33: H.264 takes even sizes"),
        ({"width": 0}, "--width 0"),
        ({"fps": 0.0}, "--fps 0.0"),
        ({"fps": float("nan")}, "--fps nan"),
        ({"seeds": (-1,)}, "--seed -1"),
        ({"steps": 0}, "--steps 0"),
    ],
)
def test_numbers_that_cannot_be(request_for, changes, message):
    refuse(request_for(**changes), message)


def test_outputs_that_cannot_be(request_for, tmp_path):
    refuse(request_for(output=tmp_path / "out/a.gif"), "a.gif: the output is an .mp4")
    (tmp_path / "file").write_text("")
    refuse(request_for(output=tmp_path / "file/a.mp4"), "its folder cannot be written")
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        infer(request_for(output=tmp_path / "folder.mp4"))


def test_an_output_is_kept_unless_told(request_for):
    request = request_for()
    request.output.parent.mkdir()
    request.output.write_bytes(b"precious")
    with pytest.raises(ConfigError, match="exists; name another file, or give --overwrite"):
        infer(request)
    assert request.output.read_bytes() == b"precious"
    infer(request_for(overwrite=True))
    assert probe(request.output).frames == 6
    assert [p.name for p in request.output.parent.iterdir()] == ["rollout.mp4"]


def test_weights_without_recipe_or_actions(request_for, weights, tmp_path):
    refuse(request_for(checkpoint="no-such-run"), "no-such-run: no such run")
    bare = tmp_path / "bare.safetensors"
    bare.write_bytes((weights / "model.safetensors").read_bytes())
    refuse(request_for(checkpoint=str(bare)), "no recipe.toml beside it")
    still = save_run(tmp_path / "still", model={"actions": "none"})
    (still / "contract.json").unlink()
    with pytest.raises(CheckpointError, match="a model without actions"):
        infer(request_for(checkpoint=str(still)))


def test_scaled_numbers_are_noticed(request_for, tmp_path, capsys):
    rows = np.full((1, 7), 0.9)
    infer(request_for(first=picture(tmp_path), npy=array(tmp_path, rows)))
    assert "x moves by 0.9 m in one step" in capsys.readouterr().err


def test_beside():
    a, b = np.zeros((2, 4, 6, 3), np.uint8), np.full((2, 4, 8, 3), 9, np.uint8)
    joined = beside(a, b)
    assert joined.shape == (2, 4, 18, 3)
    assert np.array_equal(joined[:, :, :6], a) and np.array_equal(joined[:, :, 10:], b)


def test_the_shipped_base_takes_no_actions(tmp_path):
    np.save(tmp_path / "actions.npy", np.zeros((3, 7)))
    Image.new("RGB", (64, 48)).save(tmp_path / "first.png")
    request = InferRequest(
        checkpoint="cosmos-tiny",
        asked=Asked(npy=tmp_path / "actions.npy", first=tmp_path / "first.png"),
        output=tmp_path / "x.mp4",
    )
    with pytest.raises(CheckpointError, match="a model without actions"):
        infer(request)


def test_rows_are_seen_from_the_frame_before_whatever_the_contract():
    """Chained up for a contract of first frames, they are what the states say."""
    from cosmos_wds.data.actions import relative_actions
    from cosmos_wds.recipe import WindowSettings
    from cosmos_wds.rollout.inputs import chained, rollout_actions
    from tests.conftest import tiny_states

    states = tiny_states(12)
    steps = relative_actions(states)
    window = WindowSettings(frames=5, interval=2)
    previous, first = ActionContract(), ActionContract(frame="first")
    assert np.array_equal(chained(previous, steps, window), steps)
    rows = chained(first, steps, window)
    every = window.model_copy(update={"interval": 1})
    wanted = rollout_actions(first, states, steps, window=every, count=11)
    np.testing.assert_allclose(rows, wanted, atol=1e-9)
    assert not np.allclose(rows, steps)
    np.testing.assert_allclose(rows[[0, 4, 8]], steps[[0, 4, 8]], atol=1e-9)  # begins of calls
