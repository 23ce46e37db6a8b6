"""What `play` recorded, shown again by `infer --replay`: the same frames, to the bit on a CPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cosmos_wds.data.video import probe
from cosmos_wds.errors import CheckpointError, DataError
from cosmos_wds.model.names import to_released
from cosmos_wds.rollout.action_log import ActionLog, weights_digest, write_log
from cosmos_wds.rollout.infer import InferRequest, infer
from cosmos_wds.rollout.session import Session
from cosmos_wds.train.run import find_weights, load_run
from tests.conftest import moving_frames
from tests.test_infer import save_run
from tests.tiny_run import BRIDGE, random_run

pytestmark = pytest.mark.usefixtures("one_thread")


def recorded(run_folder, folder, count=5, **changes):
    """Drive a model; the frames that were seen, and the log's path."""
    run = load_run(run_folder)
    first = moving_frames(1, 16, 32)
    actions = np.random.default_rng(1).normal(0, 0.02, (count, 7))
    actions[:, 6] = 0.5
    session = Session(run, first, seed=[11], steps=4)
    seen = [session.frames[0], *(session.step(row[None])[0] for row in actions)]
    log = ActionLog(
        checkpoint=str(run_folder),
        weights=weights_digest(find_weights(run_folder)),
        contract=BRIDGE.digest,
        seed=11,
        steps=4,
        first=first[0],
        actions=actions,
    )
    write_log(folder / "log.json", replace(log, **changes))
    return np.stack(seen), folder / "log.json"


def replayed(log, output, **changes):
    return infer(
        InferRequest(
            **{"checkpoint": None, "replay": log, "output": output, "device": "cpu", "npz": True}
            | changes
        )
    )


@pytest.mark.parametrize("frames", [2, 4])
def test_the_same_frames(tmp_path, frames, capsys):
    """Also in the middle of a window of several frames."""
    weights = save_run(tmp_path / "run", window={"frames": frames})
    seen, log = recorded(weights, tmp_path)
    path = replayed(log, tmp_path / "x.mp4")
    assert probe(path).frames == 6
    assert np.array_equal(np.load(tmp_path / "x.npz")["frames"], seen)
    assert np.load(tmp_path / "x.npz")["seed"] == 11
    assert "warning" not in capsys.readouterr().err
    folder = replayed(log, tmp_path / "folder")
    assert np.array_equal(np.load(folder / "log.npz")["frames"], seen)


def test_another_checkpoint_takes_it_with_a_warning(tmp_path, capsys):
    seen, log = recorded(save_run(tmp_path / "run"), tmp_path)
    other = save_run(tmp_path / "other")
    torch.manual_seed(9)
    state = {k: torch.randn_like(v) for k, v in random_run().denoiser.state_dict().items()}
    save_file(to_released(state), other / "model.safetensors")
    replayed(log, tmp_path / "x.mp4", checkpoint=str(other))
    assert "recorded with other weights" in " ".join(capsys.readouterr().err.split())
    frames = np.load(tmp_path / "x.npz")["frames"]
    assert frames.shape == seen.shape and not np.array_equal(frames, seen)


def test_logs_that_this_model_cannot_follow(tmp_path, capsys):
    weights = save_run(tmp_path / "run")
    _, log = recorded(weights, tmp_path, contract="0" * 16)
    with pytest.raises(CheckpointError, match="its actions mean something else"):
        replayed(log, tmp_path / "x.mp4")
    _, log = recorded(weights, tmp_path, actions=np.zeros((0, 7)))
    with pytest.raises(DataError, match="holds no action"):
        replayed(log, tmp_path / "x.mp4")
    _, log = recorded(weights, tmp_path, actions=np.zeros((2, 6)))
    with pytest.raises(DataError, match="actions of 6 numbers"):
        replayed(log, tmp_path / "x.mp4")
    _, log = recorded(weights, tmp_path, checkpoint="gone")
    with pytest.raises(CheckpointError, match="gone: no such run"):
        replayed(log, tmp_path / "x.mp4")
    assert not list(tmp_path.glob("*.mp4"))
    _, log = recorded(weights, tmp_path, weights="")
    replayed(log, tmp_path / "x.mp4")
    assert "does not say which weights" in " ".join(capsys.readouterr().err.split())
