"""Action logs: what is written is what is read, and anything else is one clear line."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from cosmos_wds.errors import DataError
from cosmos_wds.rollout.action_log import ActionLog, read_log, weights_digest, write_log
from cosmos_wds.train.run import Place
from tests.conftest import moving_frames

finite = st.floats(allow_nan=False, allow_infinity=False)


def some_log(**changes):
    fields = {
        "checkpoint": "my/run [1]",
        "weights": "0123456789abcdef",
        "contract": "fedcba9876543210",
        "seed": 2**32 - 1,
        "steps": 5,
        "first": moving_frames(1, 16, 32)[0],
        "actions": np.random.default_rng(0).normal(size=(4, 7)),
    }
    return ActionLog(**(fields | changes))


def same(a, b):
    assert np.array_equal(a.first, b.first) and a.first.dtype == b.first.dtype == np.uint8
    assert a.actions.dtype == b.actions.dtype == np.float64
    assert a.actions.tobytes() == b.actions.tobytes()
    plain = ("checkpoint", "weights", "contract", "seed", "steps")
    assert [getattr(a, name) for name in plain] == [getattr(b, name) for name in plain]


def test_a_log_comes_back_to_the_bit(tmp_path):
    write_log(tmp_path / "new/log.json", some_log())
    same(read_log(tmp_path / "new/log.json"), some_log())
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["log.json"]


@given(st.lists(st.lists(finite, min_size=3, max_size=3), min_size=1, max_size=4), st.text())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_numbers_and_names_come_back(tmp_path, rows, name):
    name = name.encode("utf-8", "replace").decode()
    log = some_log(actions=np.array(rows), checkpoint=name)
    write_log(tmp_path / "log.json", log)
    same(read_log(tmp_path / "log.json"), log)


def test_a_log_without_actions(tmp_path):
    write_log(tmp_path / "log.json", some_log(actions=np.empty((0, 7))))
    assert len(read_log(tmp_path / "log.json").actions) == 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": "cosmos-wds action log 9"}, "not an action log of this version"),
        ({"seed": -1}, "seed = -1: at least 0"),
        ({"seed": 1.5}, "seed = '1.5': not a whole number"),
        ({"seed": True}, "seed = 'True'"),
        ({"steps": 0}, "steps = 0: at least 1"),
        ({"steps": None}, "steps = 'None'"),
        ({"weights": 3}, "weights = '3': not text"),
        ({"first": "no base64!"}, "first: not a picture"),
        ({"first": "aGVsbG8="}, "first: not a picture"),
        ({"actions": {}}, "actions = '{}': not a list"),
        ({"actions": [1, 2]}, "actions, row 0"),
        ({"actions": [[1, 2], [3]]}, "actions, row 1: not 2 finite numbers"),
        ({"actions": [[]]}, "actions, row 0"),
        ({"actions": [[1.0], [float("nan")]]}, "actions, row 1"),
        ({"actions": [["a"]]}, "actions, row 0"),
        ({"actions": [[True]]}, "actions, row 0"),
        ({"actions": [[10**400]]}, "actions, row 0"),
    ],
)
def test_damaged_logs(tmp_path, change, message):
    path = tmp_path / "log.json"
    write_log(path, some_log())
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(path, message)


def test_files_that_are_no_logs(tmp_path):
    path = tmp_path / "log.json"
    refused(path, "no such action log")
    for content in (b"", b"{", b"\xff\xfe", b"[]", b"[" * 100_000, b"3"):
        path.write_bytes(content)
        refused(path, "not an action log")
    write_log(path, some_log())
    path.write_bytes(path.read_bytes()[:-200])
    refused(path, "not an action log")
    refused(tmp_path, "cannot be read")


def refused(path, message):
    with pytest.raises(DataError, match=message) as error:
        read_log(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_weights_are_told_apart_wherever_they_lie(tmp_path):
    weights = {"a": torch.arange(300_000.0), "b": torch.ones(3)}
    save_file(weights, tmp_path / "one.safetensors")
    one = weights_digest(Place(tmp_path / "one.safetensors", None))
    shutil.copy(tmp_path / "one.safetensors", tmp_path / "two.safetensors")
    assert weights_digest(Place(tmp_path / "two.safetensors", None)) == one
    save_file(weights | {"b": torch.zeros(3)}, tmp_path / "two.safetensors")
    assert weights_digest(Place(tmp_path / "two.safetensors", None)) != one
    (tmp_path / "run").mkdir()
    shutil.move(tmp_path / "one.safetensors", tmp_path / "run/one.safetensors")
    folders = [Place(tmp_path / "run", None, kind=kind) for kind in ("ema", "reg")]
    assert len({weights_digest(place) for place in folders}) == 2
