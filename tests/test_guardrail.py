"""The hook over rendered frames: found before weights are read, passed by nothing."""

import numpy as np
import pytest

from cosmos_wds.errors import ConfigError, UserError
from cosmos_wds.rollout import infer as inferring
from cosmos_wds.rollout.guardrail import Blocked, guarded, load_guardrail, remind
from cosmos_wds.rollout.infer import InferRequest, infer
from cosmos_wds.rollout.rollout import rollout
from cosmos_wds.sizes import model_settings
from tests.tiny_run import planted_run, tiny_recipe

MODULE = """
import numpy as np
from cosmos_wds.rollout.guardrail import Blocked
number = 3
seen = []

def invert(frames):
    seen.append(frames.shape)
    return 255 - frames

def refuse(frames):
    raise Blocked("shows what it must not")

def shrink(frames):
    return frames[:, ::2]

def floats(frames):
    return frames / 255

def spoil(frames):
    frames[:] = 0
    return np.ones_like(frames)

def broken(frames):
    raise KeyError("a bug of its own")
"""


@pytest.fixture(scope="module", autouse=True)
def module(tmp_path_factory):
    """A module in the working folder, which is not on Python's path."""
    folder = tmp_path_factory.mktemp("guard")
    (folder / "my_guardrail.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        load_guardrail("my_guardrail:invert")
        yield


def roll(guardrail, rollouts=2):
    run = planted_run(infer={"guardrail": guardrail})
    first = np.full((rollouts, 16, 32, 3), 10, np.uint8)
    return rollout(run, first, np.full((rollouts, 3, 7), 5.0), seed=0)


def test_frames_pass_through_it_rollout_by_rollout():
    import my_guardrail

    my_guardrail.seen.clear()
    assert np.array_equal(roll("my_guardrail:invert"), 255 - roll(""))
    assert my_guardrail.seen == [(4, 16, 32, 3)] * 2


def test_what_it_refuses_is_not_shown():
    with pytest.raises(Blocked, match="shows what it must not") as told:
        roll("my_guardrail:refuse")
    assert isinstance(told.value, UserError)


@pytest.mark.parametrize("name", ["shrink", "floats"])
def test_it_must_return_frames(name):
    with pytest.raises(ConfigError, match="return frames of the same shape"):
        roll(f"my_guardrail:{name}")


def test_a_bug_of_its_own_shows_nothing():
    with pytest.raises(KeyError):
        roll("my_guardrail:broken")


def test_it_works_on_copies():
    videos = np.full((1, 2, 4, 4, 3), 7, np.uint8)
    assert (guarded("my_guardrail:spoil", videos) == 1).all()
    assert (videos == 7).all()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("my_guardrail", "write it as module:function"),
        ("my_guardrail:", "write it as module:function"),
        ("my_guardrial:invert", "my_guardrial cannot be imported"),
        ("my_guardrail:invret", "has no function invret"),
        ("my_guardrail:number", "has no function number"),
    ],
)
def test_what_is_none_is_told_in_one_line(name, says):
    with pytest.raises(ConfigError, match=says) as told:
        load_guardrail(name)
    assert "\n" not in str(told.value)


def test_infer_finds_it_before_it_reads_weights(tmp_path, monkeypatch):
    contract = planted_run().contract
    monkeypatch.setattr(inferring, "describe", lambda checkpoint: (tiny_recipe(), contract))
    monkeypatch.setattr(inferring, "load_run", lambda *a, **k: pytest.fail("weights were read"))
    request = InferRequest(
        checkpoint="x", actions=tmp_path / "a.npy", output=tmp_path / "a.mp4", guardrail="no:where"
    )
    with pytest.raises(ConfigError, match="no cannot be imported"):
        infer(request)


@pytest.mark.parametrize(("name", "is_written"), [("invert", True), ("refuse", False)])
def test_infer_writes_what_it_lets_through(tmp_path, monkeypatch, name, is_written):
    run = planted_run()
    monkeypatch.setattr(inferring, "describe", lambda checkpoint: (run.recipe, run.contract))
    monkeypatch.setattr(inferring, "load_run", lambda *a, **k: run)
    actions, first = tmp_path / "a.npy", tmp_path / "first.png"
    np.save(actions, np.full((3, 7), 0.1))
    from PIL import Image

    Image.new("RGB", (32, 16)).save(first)
    request = InferRequest(
        checkpoint="x",
        actions=actions,
        first=first,
        output=tmp_path / "a.mp4",
        guardrail=f"my_guardrail:{name}",
    )
    if is_written:
        infer(request)
    else:
        with pytest.raises(Blocked):
            infer(request)
    assert (tmp_path / "a.mp4").exists() == is_written
    assert not list(tmp_path.glob(".*tmp*"))


def test_the_duty_is_said_for_nvidia_s_networks_alone(capsys):
    remind(tiny_recipe())
    assert not capsys.readouterr().err
    recipe = tiny_recipe()
    nvidia = recipe.model_copy(update={"model": model_settings("cosmos-predict1-7b")})
    remind(nvidia)
    assert "your duty" in capsys.readouterr().err
    guarded_one = nvidia.infer.model_copy(update={"guardrail": "my_guardrail:invert"})
    remind(nvidia.model_copy(update={"infer": guarded_one}))
    assert not capsys.readouterr().err
