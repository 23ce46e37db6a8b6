"""The world as a Gymnasium environment: its interface, its episodes, many of them as a batch."""

import importlib
import re
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from PIL import Image

from cosmos_wds.data.actions import ActionContract
from cosmos_wds.data.index import ShardIndex
from cosmos_wds.diffusion.guardrail import Blocked
from cosmos_wds.errors import CheckpointError, ConfigError, DataError
from cosmos_wds.pipeline import load_pipeline
from cosmos_wds.prepare import shard
from cosmos_wds.rollout.env import NAME, WorldModelEnv, WorldModelVectorEnv
from cosmos_wds.rollout.session import Session
from cosmos_wds.rollout.starts import action_limits, open_starts
from tests.commands import ROOT
from tests.conftest import moving_frames, write_episode
from tests.remake import edit_index
from tests.test_infer import save_run
from tests.test_inspect import latents_only
from tests.tiny_run import BRIDGE, planted_run, random_run

pytestmark = pytest.mark.usefixtures("one_thread")

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two episodes of each of two splits, six frames long."""
    root = tmp_path_factory.mktemp("env")
    for split in ("train", "val"):
        for number in range(2):
            write_episode(root / "raw", split, number, frames=6)
    changes = [f"source.path={root}/raw", f"shards.path={root}/shards", "shards.workers=1"]
    shard(load_pipeline("bridge", changes))
    return root / "shards"


@pytest.fixture(scope="module")
def run():
    return random_run()


def grey(*levels):
    return np.stack([np.full((16, 32, 3), level, np.uint8) for level in levels])


def push(amount):
    """An action that changes the grey of a planted run's world by so much."""
    return np.array([amount, 0, 0, 0, 0, 0, 1], np.float32)


# The interface


@pytest.mark.parametrize("where", ["pictures", "shards"])
def test_gymnasium_s_own_check_finds_nothing(run, shards, where):
    """pytest turns its warnings into errors; it makes and steps environments of its own, too."""
    starts = moving_frames(3, 16, 32) if where == "pictures" else shards
    made = gymnasium.make(NAME, world=run, starts=starts, render_mode="rgb_array")
    check_env(made.unwrapped)
    assert made.unwrapped.spec.id == NAME


def test_it_is_made_by_name_with_its_module_and_as_a_batch(run):
    words = {"world": run, "starts": moving_frames(2, 16, 32)}
    assert isinstance(
        gymnasium.make(f"cosmos_wds.rollout.env:{NAME}", **words).unwrapped, WorldModelEnv
    )
    several = gymnasium.make_vec(NAME, 3, vectorization_mode="vector_entry_point", **words)
    assert isinstance(several, WorldModelVectorEnv) and several.num_envs == 3
    assert several.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert several.observation_space.shape == (3, 16, 32, 3)
    assert several.action_space.shape == (3, 7)
    assert several.single_action_space == WorldModelEnv(**words).action_space


def test_without_gymnasium_it_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "cosmos_wds.rollout.env")
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ImportError, match=r"pip install 'cosmos-wds\[env\]'"):
        importlib.import_module("cosmos_wds.rollout.env")


# One world


def test_frames_are_those_of_a_session(run):
    pictures = moving_frames(4, 16, 32)
    env = WorldModelEnv(run, pictures, render_mode="rgb_array")
    frame, told = env.reset(seed=5, options={"start": 2})
    assert told["start"] == "picture 2" and told["steps"] == 0
    session = Session(run, pictures[2:3], seed=[told["seed"]])
    assert np.array_equal(frame, session.frames[0]) and np.array_equal(frame, pictures[2])
    rng = np.random.default_rng(0)
    for steps in (1, 2, 3):
        action = rng.normal(0, 0.02, 7)
        frame, reward, *ends, told = env.step(action)
        assert np.array_equal(frame, session.step(action[None])[0])
        assert np.array_equal(frame, env.render())
        assert (reward, ends, told["steps"]) == (0.0, [False, False], steps)


def test_a_seed_gives_the_same_episodes_and_no_seed_other_ones(run):
    env = WorldModelEnv(run, moving_frames(8, 16, 32))

    def episodes(seed):
        told = [env.reset(seed=seed)[1], env.reset()[1], env.reset()[1]]
        return [(t["start"], t["seed"]) for t in told]

    assert episodes(1) == episodes(1) != episodes(2)
    assert len(set(episodes(1))) == 3


def test_reward_and_end_are_the_user_s(run):
    """They see the frame, the action that led to it, and how far the episode is."""
    seen = []

    def reward(frame, action, info):
        seen.append((int(frame[0, 0, 0]), float(action[0]), info["steps"], info["start"]))
        return np.float32(frame.mean() / 10)

    env = WorldModelEnv(
        planted_run(infer={"steps": 1}),
        grey(100),
        reward=reward,
        terminated=lambda frame, action, info: frame[0, 0, 0] >= 130,
        max_steps=5,
    )
    env.reset(seed=0)
    _, gained, *ends, _ = env.step(push(20))
    assert type(gained) is float and gained == 12.0 and ends == [False, False]
    _, gained, *ends, _ = env.step(push(10))
    assert gained == 13.0 and ends == [True, False]
    assert seen == [(120, 20.0, 1, "picture 0"), (130, 10.0, 2, "picture 0")]


def test_an_episode_is_truncated_at_its_length(run):
    env = WorldModelEnv(run, grey(100), max_steps=3)
    for _ in range(2):
        env.reset()
        assert [env.step(push(0))[3] for _ in range(3)] == [False, False, True]


def test_what_it_starts_from(run, shards, tmp_path):
    picture = moving_frames(1, 20, 30)[0]
    for name in ("a.png", "b.png"):
        Image.fromarray(picture).save(tmp_path / name)
    files = [tmp_path / "a.png", str(tmp_path / "b.png")]
    of_files = WorldModelEnv(run, files)
    assert of_files.reset(options={"start": str(tmp_path / "b.png")})[0].shape == (16, 32, 3)
    assert np.array_equal(WorldModelEnv(run, files[0]).reset()[0], of_files.reset()[0])
    own = grey(77)[0]
    assert np.array_equal(of_files.reset(options={"start": own})[0], own)

    env = WorldModelEnv(run, shards)
    names = {env.reset()[1]["start"] for _ in range(20)}
    assert names == {"val_0", "val_1"}, "held-out episodes"
    starts = open_starts(shards, contract=BRIDGE, recipe=run.recipe, split="train")
    assert starts.names == ("train_0", "train_1") and starts.read(1).text == "move block 1"
    first = env.reset(options={"start": "val_1"})[0]
    assert np.array_equal(first, env.reset(options={"start": 1})[0])
    state = ShardIndex.read(shards).split("train").read_array(1, "state.npy")
    assert starts.read(1).gripper == pytest.approx(float(state[0, 6]))


def test_limits_are_those_of_the_shards_or_of_the_contract(run, shards):
    index = ShardIndex.read(shards)
    table = index.table["statistics"]
    most = np.abs([table["q01"], table["q99"]]).max(axis=0)
    space = WorldModelEnv(run, shards).action_space
    np.testing.assert_allclose(space.high[:6], most[:6], rtol=1e-6)
    np.testing.assert_array_equal(space.low[:6], -space.high[:6])
    assert (space.low[6], space.high[6]) == (0, 1)
    twice = action_limits(BRIDGE, index, interval=2)
    np.testing.assert_allclose(twice.high[:6], 2 * most[:6], rtol=1e-6)

    plain = WorldModelEnv(run, grey(0)).action_space
    np.testing.assert_allclose(plain.high, [0.05] * 6 + [1])
    np.testing.assert_allclose(plain.low, [-0.05] * 6 + [0])
    joints = ActionContract(
        signal="command", frame="recorded", names=("a", "gripper"), units=("deg", "1"), scale=(0, 2)
    )
    limits = action_limits(joints)
    assert (limits.low.tolist(), limits.high.tolist()) == ([-1, 0], [1, 1])


def test_a_set_with_other_actions_gives_pictures_and_no_limits(shards):
    """Pictures are pictures; what its numbers mean is another matter."""
    env = WorldModelEnv(random_run(contract=ActionContract(fps=7)), shards)
    np.testing.assert_allclose(env.action_space.high, [0.05] * 6 + [1])
    assert env.reset()[1]["start"].startswith("val_")
    assert env.metadata["render_fps"] == 7


def test_a_set_of_latents_has_no_pictures_to_start_from(run, shards, tmp_path):
    latents = {"tokenizer": "patch", "digest": "a", "shards": "b", "camera": 0, "batch": 1}
    latents |= {"height": 32, "width": 48, "shape": [16, 4, 6]}
    folder = latents_only(shards, tmp_path / "set")
    edit_index(folder, lambda table: table.update(latents=latents))
    with pytest.raises(DataError, match="holds latents, and a world starts from a picture"):
        WorldModelEnv(run, folder)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"start": 9}, "start = 9: there are 1, from 0"),
        ({"start": -1}, "start = -1: there are 1"),
        ({"start": True}, "start = True: a number, a name or a picture"),
        ({"start": 1.5}, "start = 1.5: a number"),
        ({"start": "nobody"}, "start 'nobody': there is none of that name; .* 'picture 0'"),
        ({"start": np.zeros((4, 4))}, r"start: an array \(4, 4\) of float64; a picture is"),
        ({"begin": 0}, "options of reset: begin: unknown; there is start"),
    ],
)
def test_options_that_are_none(run, options, says):
    with pytest.raises(ConfigError, match=says):
        WorldModelEnv(run, grey(0)).reset(options=options)


def test_what_cannot_be_an_environment(run, shards, tmp_path):
    with pytest.raises(ConfigError, match="max_steps = 0"):
        WorldModelEnv(run, grey(0), max_steps=0)
    with pytest.raises(ConfigError, match="render_mode = 'human'"):
        WorldModelEnv(run, grey(0), render_mode="human")
    with pytest.raises(ConfigError, match=r"starts: an array \(2, 16\)"):
        WorldModelEnv(run, np.zeros((2, 16), np.uint8))
    with pytest.raises(ConfigError, match="starts: no image is named"):
        WorldModelEnv(run, [])
    with pytest.raises(DataError, match=r"none\.png: no such image"):
        WorldModelEnv(run, [tmp_path / "none.png"])
    with pytest.raises(DataError, match="nowhere: no such folder"):
        WorldModelEnv(run, tmp_path / "nowhere")
    with pytest.raises(DataError, match="no split 'test'"):
        WorldModelEnv(run, shards, split="test")
    with pytest.raises(ConfigError, match="num_envs = 0"):
        WorldModelVectorEnv(run, grey(0), num_envs=0)
    with pytest.raises(CheckpointError, match="a model without actions"):
        WorldModelEnv("cosmos-tiny", grey(0))


@pytest.mark.parametrize(
    "action", [np.zeros(6), np.full(7, np.nan), np.zeros((1, 7))], ids=["short", "nan", "nested"]
)
def test_an_action_that_is_none_is_refused_and_changes_nothing(run, action):
    env = WorldModelEnv(run, grey(100), max_steps=2)
    env.reset(seed=1)
    with pytest.raises(DataError, match="action"):
        env.step(action)
    env.reset(seed=1)
    assert env.step(push(0))[4]["steps"] == 1


def refuse_bright(frames):
    if frames.max() > 150:
        raise Blocked("too bright")
    return frames


def test_the_guardrail_sees_every_frame(monkeypatch, tmp_path):
    run = planted_run(infer={"steps": 1, "guardrail": f"{__name__}:refuse_bright"})
    env = WorldModelEnv(run, grey(100))
    env.reset()
    env.step(push(40))
    with pytest.raises(Blocked, match="too bright"):
        env.step(push(40))
    assert env.step(push(5))[0].max() == 145, "it is where it was"
    with pytest.raises(Blocked):
        env.reset(options={"start": grey(200)[0]})


# Many worlds


def test_each_world_of_a_batch_is_one_alone(run):
    """Their episodes, ends and new beginnings too; frames up to rounding in larger batches."""
    pictures = moving_frames(5, 16, 32)
    words = {"max_steps": 3, "reward": lambda frame, action, info: float(action[0])}
    several = WorldModelVectorEnv(run, pictures, num_envs=3, render_mode="rgb_array", **words)
    alone = [WorldModelEnv(run, pictures, **words) for _ in range(3)]
    frames, told = several.reset(seed=40)
    for row, env in enumerate(alone):
        frame, info = env.reset(seed=40 + row)
        assert np.array_equal(frames[row], frame)
        assert {k: told[k][row] for k in info} == info
    ended = [False] * 3
    rng = np.random.default_rng(0)
    for _ in range(9):
        actions = rng.normal(0, 0.02, (3, 7)).astype(np.float32)
        frames, rewards, terminated, truncated, told = several.step(actions)
        assert several.observation_space.contains(frames)
        assert np.array_equal(several.render(), frames)
        for row, env in enumerate(alone):
            if ended[row]:
                frame, info = env.reset()
                wanted = (0.0, False, False)
            else:
                frame, *wanted, info = env.step(actions[row])
            assert np.abs(frames[row].astype(int) - frame).max() <= 1
            assert (rewards[row], terminated[row], truncated[row]) == tuple(wanted)
            assert {k: told[k][row] for k in info} == info
            ended[row] = any(wanted[1:])


def test_a_world_that_has_ended_begins_anew_at_the_next_step_and_only_that_one():
    env = WorldModelVectorEnv(
        planted_run(infer={"steps": 1}),
        grey(100),
        num_envs=2,
        terminated=lambda frame, action, info: frame[0, 0, 0] > 120,
        reward=lambda frame, action, info: float(frame[0, 0, 0]),
    )
    env.reset(seed=0, options={"start": [grey(100)[0], grey(50)[0]]})

    def step(*amounts):
        frames, rewards, terminated, truncated, told = env.step(np.stack([*map(push, amounts)]))
        assert not truncated.any()
        return frames[:, 0, 0, 0].tolist(), rewards.tolist(), terminated.tolist(), told["steps"]

    levels, rewards, ends, _ = step(30, 30)
    assert (levels, rewards, ends) == ([130, 80], [130, 80], [True, False])
    levels, rewards, ends, steps = step(30, 5)
    assert (levels, rewards, ends) == ([100, 85], [0, 85], [False, False])
    assert steps.tolist() == [0, 2]
    levels, *_, steps = step(1, 1)
    assert levels == [101, 86] and steps.tolist() == [1, 3]


def test_worlds_that_end_together_are_not_computed_in_vain():
    run = planted_run(infer={"steps": 1})
    env = WorldModelVectorEnv(run, grey(100), num_envs=2, max_steps=1)
    env.reset(seed=0)
    assert env.step(np.zeros((2, 7)))[3].all()
    calls = len(run.denoiser.seen)
    _, _, _, truncated, told = env.step(np.zeros((2, 7)))
    assert len(run.denoiser.seen) == calls
    assert not truncated.any() and told["steps"].tolist() == [0, 0]


def test_seeds_and_starts_of_each_world(run):
    env = WorldModelVectorEnv(run, moving_frames(4, 16, 32), num_envs=2)
    one, other = env.reset(seed=[3, 9])[1]["seed"]
    assert env.reset(seed=9)[1]["seed"][0] == other and one != other
    assert env.reset(options={"start": [1, 3]})[1]["start"].tolist() == ["picture 1", "picture 3"]
    assert env.reset(options={"start": 2})[1]["start"].tolist() == ["picture 2"] * 2
    with pytest.raises(ConfigError, match="seed: 3 for 2 worlds"):
        env.reset(seed=[1, 2, 3])
    with pytest.raises(DataError, match="actions are"):
        env.step(np.zeros(7))
    env.close()
    env.close()


# README's example


def test_readme_s_policy_runs(shards, tmp_path, monkeypatch, capsys):
    code = next(
        b for b in re.findall(r"^```python\n(.*?)^```", README, re.M | re.S) if "WorldModelEnv" in b
    )
    (tmp_path / "my").mkdir()
    save_run(tmp_path / "my/run")
    (tmp_path / "my/shards").symlink_to(shards)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102
    printed = capsys.readouterr().out
    assert len(re.findall(r"^val_\d+: reward -?\d+\.\d+ in \d+ steps$", printed, re.M)) == 2
