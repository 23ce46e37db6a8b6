"""Relative actions against the reference's numbers, and the contract that says what they mean."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch

from cosmos_wds.data.actions import ActionContract, euler, integrate, relative_actions, rotation
from cosmos_wds.data.episode import Episode
from cosmos_wds.errors import DataError
from cosmos_wds.pipeline import ActionSettings
from tests.conftest import tiny_states

FOLDER = Path(__file__).parent / "golden"
GOLDEN = load_file(FOLDER / "actions.safetensors")
STATES = np.column_stack([GOLDEN["states"], GOLDEN["gripper"]])


@pytest.mark.parametrize(("mode", "accumulate"), [("relative", False), ("accumulate", True)])
def test_actions_equal_the_references(mode, accumulate):
    found = relative_actions(STATES, accumulate=accumulate)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, GOLDEN[f"actions_{mode}_f64"], rtol=0, atol=1e-14)
    scaled = ActionContract().scaled(found)
    assert scaled.dtype == np.float32
    np.testing.assert_array_equal(scaled, GOLDEN[f"actions_{mode}_scaled_f32"])


def test_rotations_equal_the_references_also_where_they_are_singular():
    np.testing.assert_allclose(rotation(GOLDEN["euler_in"]), GOLDEN["rotm"], rtol=0, atol=1e-15)
    np.testing.assert_allclose(euler(GOLDEN["rotm"]), GOLDEN["euler_back"], rtol=0, atol=1e-14)
    np.testing.assert_allclose(euler(GOLDEN["hand_rotm"]), GOLDEN["hand_euler"], rtol=0, atol=1e-14)


def test_samples_equal_the_references_dataset():
    golden = load_torch(FOLDER / "dataset_sample.safetensors")
    state = golden["state"].numpy()[:, :6]
    state = np.column_stack([state, golden["gripper"].numpy()])
    action = relative_actions(state).astype(np.float32)
    contract, wanted = ActionContract(), golden["sample.action"].numpy()
    np.testing.assert_array_equal(contract.scaled(relative_actions(state))[2:3], wanted)
    window = contract.scaled(contract.window_actions(state, action, start=2, frames=2))
    np.testing.assert_allclose(window, wanted, rtol=2e-7)  # float32 before scaling: one rounding
    first = ActionContract.from_settings(ActionSettings(accumulate=True))
    window = first.scaled(first.window_actions(state, action, start=0, frames=4))
    np.testing.assert_array_equal(window, golden["acc.action"].numpy())


def test_minus_pi_becomes_plus_pi():
    half_turn = np.diag([-1.0, -1.0, 1.0])
    half_turn[1, 0] = -0.0  # atan2(-0, -1) is -pi
    assert euler(half_turn)[2] == np.pi
    turned = euler(rotation(np.array([[-np.pi, 0, 0], [np.pi, 0, 0], [0, 0, -np.pi]])))
    assert np.all(turned > -np.pi)


def test_singular_pitch_gives_yaw_zero_and_the_same_rotation():
    for pitch in (np.pi / 2, -np.pi / 2):
        matrix = rotation(np.array([0.3, pitch, 0.8]))
        angles = euler(matrix)
        assert angles[2] == 0
        np.testing.assert_allclose(rotation(angles), matrix, atol=1e-12)


@pytest.mark.parametrize("matrix", [2 * np.eye(3), np.ones((3, 3)), np.full((3, 3), np.nan)])
def test_only_rotations_have_angles(matrix):
    with pytest.raises(AssertionError, match="not a rotation"):
        euler(np.stack([np.eye(3), matrix]))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), accumulate=st.booleans(), frames=st.integers(2, 20))
def test_integrating_actions_gives_the_path_back(seed, accumulate, frames):
    state = tiny_states(frames, seed)
    action = relative_actions(state, accumulate=accumulate)
    assert action.shape == (frames - 1, 7)
    back = integrate(state[0], action, accumulate=accumulate)
    np.testing.assert_allclose(back, state, atol=1e-9)


def test_a_known_path():
    """Turned left by 90 degrees, a step along the base's y is a step along one's own x."""
    state = np.zeros((2, 7))
    state[:, 5] = np.pi / 2
    state[1, :3], state[1, 6] = (0, 0.5, 0.25), 1
    np.testing.assert_allclose(relative_actions(state), [[0.5, 0, 0.25, 0, 0, 0, 1]], atol=1e-15)


def test_windows_that_skip_frames_are_seen_from_the_frame_before():
    state, contract = tiny_states(20), ActionContract()
    found = contract.window_actions(state, np.empty(0), start=3, frames=4, interval=5)
    np.testing.assert_array_equal(found, relative_actions(state[[3, 8, 13, 18]]))


def test_recorded_commands_are_cut_but_never_joined():
    contract = ActionContract.from_settings(ActionSettings(signal="command"))
    command = np.arange(70.0).reshape(10, 7)
    assert contract.frame == "recorded"
    episode = Episode("1", np.zeros((4, 7)), command, {}, "")
    assert contract.episode_actions(episode).dtype == np.float32
    found = contract.window_actions(np.empty(0), command, start=2, frames=4)
    np.testing.assert_array_equal(found, command[2:5])
    with pytest.raises(DataError, match="interval = 2: recorded commands cannot be joined"):
        contract.window_actions(np.empty(0), command, start=2, frames=4, interval=2)


def test_the_contract_survives_json_and_its_digest_sees_every_field():
    contract = ActionContract()
    assert ActionContract.from_dict(contract.to_dict()) == contract
    assert len(contract.digest) == 16
    other = {
        "signal": "command",
        "frame": "first",
        "names": ("a",) * 7,
        "units": ("mm",) * 7,
        "euler": "ZYZ",
        "gripper": "1 closed",
        "scale": (1.0,) * 7,
        "fps": 30.0,
    }
    assert set(other) == {f.name for f in dataclasses.fields(ActionContract)}
    digests = {dataclasses.replace(contract, **{k: v}).digest for k, v in other.items()}
    assert len(digests | {contract.digest}) == len(other) + 1
    changed = dataclasses.replace(contract, fps=30.0)
    assert list(contract.differences(changed)) == ["fps: 5.0 here, 30.0 there"]


def test_an_edited_contract_is_refused():
    table = ActionContract().to_dict()
    with pytest.raises(DataError, match="was it edited"):
        ActionContract.from_dict({**table, "fps": 4.0})
    with pytest.raises(DataError, match="speed: unknown or missing key"):
        ActionContract.from_dict({**table, "speed": 1})
    del table["euler"]
    with pytest.raises(DataError, match="euler: unknown or missing key"):
        ActionContract.from_dict(table)


def test_scaling_goes_there_and_back():
    contract, action = ActionContract(), relative_actions(tiny_states(9))
    np.testing.assert_allclose(contract.unscaled(contract.scaled(action)), action, atol=1e-6)
