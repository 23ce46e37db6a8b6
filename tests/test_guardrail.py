"""The hook over rendered frames: found before weights are read, passed by nothing, fails closed."""

import os
import sys

import numpy as np
import pytest

from cosmos_wds.data.video import decode, probe
from cosmos_wds.diffusion.guardrail import Blocked, guarded, load_guardrail, remind
from cosmos_wds.errors import ConfigError, UserError
from cosmos_wds.recipe import recipe_from_table
from cosmos_wds.rollout import infer as inferring
from cosmos_wds.rollout.asked import Asked
from cosmos_wds.rollout.episodes import HeldOut
from cosmos_wds.rollout.evaluate import evaluate
from cosmos_wds.rollout.infer import InferRequest, infer
from cosmos_wds.rollout.rollout import rollout
from cosmos_wds.sizes import model_settings
from tests.commands import run as run_command
from tests.conftest import write_episode
from tests.test_infer import save_run
from tests.tiny_run import planted_run, tiny_recipe

MODULE = """
import sys
import numpy as np
from cosmos_wds.diffusion.guardrail import Blocked
number = 3
seen = []
path_at_import = list(sys.path)

def invert(frames):
    seen.append((frames.shape, str(frames.dtype)))
    return 255 - frames

def refuse(frames):
    raise Blocked("shows [what] it must not\\nat all")

def refuse_second(frames):
    seen.append(frames.shape)
    if len(seen) > 1:
        raise Blocked("the second one")
    return frames

def silent(frames):
    raise Blocked

def shrink(frames):
    return frames[:, ::2]

def floats(frames):
    return frames / 255

def listed(frames):
    return list(frames)

def forget(frames):
    frames[:] = 0

def spoil(frames):
    frames[:] = 0
    return np.ones_like(frames)

def broken(frames):
    raise KeyError("a bug of its own")

def full(frames):
    raise OSError(28, "No space left on device")
"""


@pytest.fixture
def module(tmp_path_factory, monkeypatch):
    """A module in the working folder, which is not on Python's path; the folder's path."""
    folder = tmp_path_factory.mktemp("guard")
    (folder / "my_guardrail.py").write_text(MODULE)
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, "my_guardrail", raising=False)
    load_guardrail("my_guardrail:invert")
    yield folder
    sys.modules.pop("my_guardrail", None)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture
def request_for(weights, tmp_path):
    """A request for a recorded episode's rollout beside its recording."""
    actions = write_episode(tmp_path / "bridge", "val", 3, frames=4)

    def make(**changes):
        fields = {
            "checkpoint": str(weights),
            "asked": Asked(annotation=actions),
            "output": tmp_path / "out" / "a.mp4",
            "device": "cpu",
        }
        return InferRequest(**(fields | changes))

    return make


def roll(guardrail, rollouts=2):
    run = planted_run(infer={"guardrail": guardrail})
    first = np.full((rollouts, 16, 32, 3), 10, np.uint8)
    return rollout(run, first, np.full((rollouts, 3, 7), 5.0), seed=0)


def test_frames_pass_through_it_rollout_by_rollout(module):
    seen = sys.modules["my_guardrail"].seen
    assert np.array_equal(roll("my_guardrail:invert"), 255 - roll(""))
    assert seen == [((4, 16, 32, 3), "uint8")] * 2


def test_what_it_refuses_is_not_shown(module):
    with pytest.raises(Blocked) as told:
        roll("my_guardrail:refuse")
    assert str(told.value) == (
        "guardrail 'my_guardrail:refuse' refuses rollout 0, nothing is shown: "
        "shows [what] it must not"
    )
    assert isinstance(told.value, UserError)
    with pytest.raises(Blocked, match="rollout 1, nothing is shown: the second one"):
        roll("my_guardrail:refuse_second")
    with pytest.raises(Blocked, match="it gives no reason"):
        roll("my_guardrail:silent")


@pytest.mark.parametrize(
    ("name", "returns"),
    [
        ("shrink", r"returned uint8 \(4, 8, 32, 3\)"),
        ("floats", r"returned float64 \(4, 16, 32, 3\)"),
        ("listed", "returned a list"),
        ("forget", "returned a NoneType"),
    ],
)
def test_it_must_return_frames(module, name, returns):
    with pytest.raises(ConfigError, match=f"{returns}.*return frames of the same shape"):
        roll(f"my_guardrail:{name}")


@pytest.mark.parametrize(("name", "cause"), [("broken", KeyError), ("full", OSError)])
def test_a_bug_of_its_own_shows_nothing_and_is_not_hidden(module, name, cause):
    with pytest.raises(RuntimeError, match="failed on rollout 0, nothing is shown") as told:
        roll(f"my_guardrail:{name}")
    assert isinstance(told.value.__cause__, cause)


def test_it_works_on_copies(module):
    videos = np.full((1, 2, 4, 4, 3), 7, np.uint8)
    assert (guarded("my_guardrail:spoil", videos) == 1).all()
    assert (videos == 7).all()


def test_the_working_folder_is_importable_during_the_import_alone(module, monkeypatch):
    path = [p for p in sys.path if p not in ("", str(module))]
    monkeypatch.setattr(sys, "path", list(path))
    monkeypatch.delitem(sys.modules, "my_guardrail")
    assert load_guardrail("my_guardrail:invert")
    assert sys.modules["my_guardrail"].path_at_import[0] == os.getcwd()
    assert sys.path == path


def test_a_function_in_a_package_is_found(module):
    (module / "my_package").mkdir()
    (module / "my_package/inner.py").write_text("def same(frames):\n    return frames\n")
    videos = np.zeros((1, 2, 4, 4, 3), np.uint8)
    assert np.array_equal(guarded("my_package.inner:same", videos), videos)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("my_guardrail", "write it as module:function"),
        ("my_guardrail:", "write it as module:function"),
        (":invert", "write it as module:function"),
        ("./my_guardrail.py:invert", "write it as module:function"),
        (".my_guardrail:invert", "write it as module:function"),
        ("my_guardrail:invert:again", "write it as module:function"),
        ("my_guardrial:invert", "my_guardrial cannot be imported: No module named"),
        ("my_guardrail.py:invert", "my_guardrail.py cannot be imported"),
        ("needy:invert", "needy cannot be imported: No module named 'not_installed'"),
        ("untidy:invert", "untidy fails as it is imported: SyntaxError"),
        ("raising:invert", "raising fails as it is imported: ValueError: no; mend it"),
        ("my_guardrail:invret", "has no function invret"),
        ("my_guardrail:number", "has no function number, only a value of type int"),
    ],
)
def test_what_is_none_is_told_in_one_line(module, name, says):
    (module / "needy.py").write_text("import not_installed")
    (module / "untidy.py").write_text("def invert(frames:")
    (module / "raising.py").write_text("raise ValueError('no\\nmore')")
    with pytest.raises(ConfigError, match=says) as told:
        load_guardrail(name)
    assert "\n" not in str(told.value)
    with pytest.raises(ConfigError, match=says):  # before anything is sampled
        roll(name, rollouts=1)


def test_a_recipe_tells_what_is_not_written_as_one():
    for name in ("blur.py", "a/b:c", "a:b()"):
        with pytest.raises(ConfigError, match=r"\[infer\] guardrail = .*module:function"):
            recipe_from_table({"infer": {"guardrail": name}}, origin="test")
    for name in ("", "blur:faces", "my.own_1.blur:faces"):
        recipe = recipe_from_table({"infer": {"guardrail": name}}, origin="test")
        assert recipe.infer.guardrail == name


@pytest.mark.parametrize("name", ["no:where", "nowhere", ""])
def test_infer_finds_it_before_it_reads_weights(request_for, monkeypatch, name):
    monkeypatch.setattr(inferring, "load_run", lambda *a, **k: pytest.fail("weights were read"))
    with pytest.raises(ConfigError, match="guardrail"):
        infer(request_for(guardrail=name))


@pytest.mark.parametrize("changes", [{}, {"compare": True}, {"height": 32, "width": 64}])
def test_infer_writes_what_it_lets_through(module, request_for, tmp_path, changes):
    """At the model's size: enlarging and the recording beside it come after."""
    plain = decode(infer(request_for(output=tmp_path / "plain.mp4", **changes)))
    request = request_for(guardrail="my_guardrail:invert", **changes)
    inverted = decode(infer(request))
    right = -changes.get("width", 32)
    assert sys.modules["my_guardrail"].seen == [((4, 16, 32, 3), "uint8")]
    error = np.abs(inverted[:, :, right:].astype(int) - (255 - plain[:, :, right:].astype(int)))
    assert error.mean() < 12  # encoding loses a little
    if changes.get("compare"):
        left = inverted[:, :, :32].astype(int) - plain[:, :, :32]
        assert np.abs(left).mean() < 12


@pytest.mark.parametrize("name", ["refuse", "shrink", "broken"])
def test_infer_writes_nothing_else(module, request_for, tmp_path, name):
    with pytest.raises((Blocked, ConfigError, RuntimeError)):
        infer(request_for(guardrail=f"my_guardrail:{name}"))
    assert not list((tmp_path / "out").iterdir())
    infer(request_for())
    before = (tmp_path / "out/a.mp4").read_bytes()
    with pytest.raises((Blocked, ConfigError, RuntimeError)):
        infer(request_for(guardrail=f"my_guardrail:{name}", overwrite=True))
    assert (tmp_path / "out/a.mp4").read_bytes() == before


def test_the_recipe_s_own_holds_until_another_is_named(module, request_for, tmp_path):
    refusing = save_run(tmp_path / "run", infer={"guardrail": "my_guardrail:refuse"})
    with pytest.raises(Blocked):
        infer(request_for(checkpoint=str(refusing)))
    with pytest.raises(ConfigError, match="--guardrail ''"):
        infer(request_for(checkpoint=str(refusing), guardrail=""))
    path = infer(request_for(checkpoint=str(refusing), guardrail="my_guardrail:invert"))
    assert probe(path).frames == 4


def test_the_command_ends_with_one_line(module, request_for, tmp_path):
    request = request_for()
    words = ("infer", request.checkpoint, "--annotation", request.asked.annotation)
    ended = run_command(
        *words, "--output", tmp_path / "a.mp4", "--guardrail", "my_guardrail:refuse", cwd=module
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        "error: guardrail 'my_guardrail:refuse' refuses rollout 0, nothing is shown: "
        "shows [what] it must not"
    )
    assert "Traceback" not in ended.stderr and not (tmp_path / "a.mp4").exists()


def test_an_evaluation_s_rollouts_pass_through_it_too(module):
    """So do the films and the report, which are made of them."""
    episodes = HeldOut(
        keys=("a", "b"),
        texts=("", ""),
        frames=np.full((2, 4, 16, 32, 3), 10, np.uint8),
        actions=np.stack([np.full((3, 7), 5.0), np.full((3, 7), 9.0)]),
        digest="0",
    )
    plain = evaluate(planted_run(), episodes)
    inverted = evaluate(planted_run(infer={"guardrail": "my_guardrail:invert"}), episodes)
    for row, video in plain.rollouts.items():
        assert np.array_equal(inverted.rollouts[row], 255 - video)
    with pytest.raises(Blocked):
        evaluate(planted_run(infer={"guardrail": "my_guardrail:refuse"}), episodes)


def test_the_duty_is_said_for_nvidia_s_networks_alone(capsys):
    remind(tiny_recipe())
    assert not capsys.readouterr().err
    recipe = tiny_recipe()
    for size in ("cosmos-predict1-7b", "cosmos-predict1-14b"):
        nvidia = recipe.model_copy(update={"model": model_settings(size)})
        remind(nvidia)
        told = capsys.readouterr().err
        assert "your duty" in told and "--guardrail MODULE:FUNCTION" in told
        assert told.count("\n") == 1
    guarded_one = nvidia.infer.model_copy(update={"guardrail": "my_guardrail:invert"})
    remind(nvidia.model_copy(update={"infer": guarded_one}))
    remind(recipe.model_copy(update={"model": model_settings("cosmos-tiny")}))
    assert not capsys.readouterr().err


def test_infer_says_it(request_for, tmp_path, module, capsys):
    """A network that calls itself one of NVIDIA's, and is small."""
    run = save_run(tmp_path / "run")
    saved = (run / "recipe.toml").read_text()
    (run / "recipe.toml").write_text(saved.replace('size = ""', 'size = "cosmos-predict1-7b"'))
    infer(request_for(checkpoint=str(run)))
    assert "your duty" in capsys.readouterr().err
    infer(request_for(checkpoint=str(run), guardrail="my_guardrail:invert", overwrite=True))
    assert "your duty" not in capsys.readouterr().err
    infer(request_for(overwrite=True))
    assert "your duty" not in capsys.readouterr().err
