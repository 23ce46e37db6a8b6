"""Evaluations: right rows and numbers, rollouts that are kept, the command from end to end."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cosmos_wds.cli import app
from cosmos_wds.data.actions import ActionContract
from cosmos_wds.data.index import ShardIndex
from cosmos_wds.errors import ConfigError, DataError
from cosmos_wds.pipeline import load_pipeline
from cosmos_wds.recipe import load_recipe
from cosmos_wds.rollout import kept, results
from cosmos_wds.rollout.choice import read_choices
from cosmos_wds.rollout.episodes import HeldOut, held_out, read_list
from cosmos_wds.rollout.eval_command import EvalRequest, read_results, run_eval
from cosmos_wds.rollout.evaluate import evaluate
from cosmos_wds.rollout.evaluation import TRUE, WRONG, YARDSTICKS
from cosmos_wds.rollout.kept import Job, roll_out
from cosmos_wds.rollout.metrics import psnr
from cosmos_wds.rollout.rollout import rolled
from cosmos_wds.rollout.wrong import others
from cosmos_wds.sources.demo import Settings as DemoSettings
from tests.commands import run as run_command
from tests.conftest import moving_frames
from tests.test_infer import save_run
from tests.test_measures import Seen, script
from tests.tiny_run import planted_run, random_run, tiny_recipe, with_eval
from tests.training import small_shards

ROWS = {TRUE, *WRONG, *YARDSTICKS}


def some_episodes(count=3, steps=4):
    rng = np.random.default_rng(0)
    frames = np.stack([moving_frames(steps + 1, 16, 32, i) for i in range(count)])
    keys = tuple(f"val_{i}" for i in range(count))
    return HeldOut(keys, ("",) * count, frames, rng.normal(0, 0.02, (count, steps, 7)), "0")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp("data"), val=4)


@pytest.fixture(scope="module")
def weights(tmp_path_factory, shards):
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    return save_run(folder, data={"shards": str(shards)}, eval={"actions": 5, "films": 2})


@pytest.fixture
def request_for(weights, tmp_path):
    def make(**changes):
        fields = {"checkpoint": str(weights), "output": tmp_path / "eval", "device": "cpu"}
        return EvalRequest(**{**fields, **changes})

    return make


def test_rows_are_rollouts_and_yardsticks_under_one_noise():
    run, held = random_run(), some_episodes()
    evaluation = evaluate(run, held)
    assert {*evaluation.rollouts, *evaluation.yardsticks} == ROWS
    number = [Job(TRUE, key, held.frames[0], held.actions[0]).number for key in held.keys]
    for row, actions in ((TRUE, held.actions), ("shuffled", others(held.actions))):
        wanted = rolled(run, held.frames[:, 0], actions, seed=0, numbers=number)
        assert np.abs(evaluation.rollouts[row].astype(int) - wanted.frames).max() <= 1
    truth, yardsticks = held.frames, evaluation.yardsticks
    assert np.array_equal(yardsticks["first"][:, 3], truth[:, 0])
    assert np.array_equal(yardsticks["previous"][:, 1:], truth[:, :-1])
    video = torch.from_numpy(truth[1, 2]).permute(2, 0, 1)[None, :, None]
    latent = run.tokenizer.encode(video.contiguous())
    through = run.tokenizer.decode(latent)[0, :, 0].permute(1, 2, 0).numpy()
    assert np.array_equal(yardsticks["round_trip"][1, 2], through)
    assert np.array_equal(yardsticks["round_trip"][:, 0], truth[:, 0])


def test_scores_are_those_of_the_rows():
    held = some_episodes()
    evaluation = evaluate(random_run(), held)
    assert list(evaluation.scores) == ["psnr", "psnr_grey", "ssim", "latent_l2"]
    for rows in evaluation.scores.values():
        assert {*rows} == ROWS and all(values.shape == (3, 4) for values in rows.values())
    rows = evaluation.scores["psnr"]
    for row, video in {**evaluation.rollouts, **evaluation.yardsticks}.items():
        assert np.array_equal(rows[row], psnr(video, held.frames)[:, 1:])
    latent = evaluation.scores["latent_l2"]
    assert latent["round_trip"].max() < 0.1 * latent["first"].max()
    gain = evaluation.gain("latent_l2", "first")[1].mean
    assert gain == pytest.approx((latent["first"] - latent[TRUE])[:, 1].mean())
    assert len(evaluation.curve("ssim", TRUE)) == 4
    assert evaluation.protocol["ssim"].startswith("SSIM of grey pictures, scikit-image")
    told = results.told(results.results(evaluation, random_run()))
    assert told[0].startswith("control score")


def test_sets_are_measured_when_they_are_asked_for(tmp_path):
    where = script(Seen(), tmp_path / "seen.pt")
    run = random_run(eval={"measures": ["fid", "psnr", "fvd"], "fid": where, "fvd": where})
    evaluation = evaluate(run, some_episodes())
    assert list(evaluation.scores) == ["psnr"] and {*evaluation.set_scores} == {"fid", "fvd"}
    for rows in evaluation.set_scores.values():
        assert {*rows} == ROWS and rows["round_trip"] < rows[TRUE]


def test_weights_of_measures_are_looked_for_before_anything_is_rolled_out(monkeypatch):
    run = random_run(eval={"measures": ["fid"], "fid": "nowhere.pt"})
    monkeypatch.setattr("cosmos_wds.rollout.evaluate.roll_out", None)
    with pytest.raises(Exception, match=r"nowhere\.pt: no such file"):
        evaluate(run, some_episodes())


def test_one_action_has_no_later_time():
    evaluation = evaluate(planted_run(), some_episodes(steps=1))
    assert "shifted" not in evaluation.rollouts and "zero" in evaluation.rollouts


def jobs_of(held, rows=(TRUE,)):
    return [
        Job(row, key, first, actions)
        for row in rows
        for key, first, actions in zip(held.keys, held.frames[:, 0], held.actions, strict=True)
    ]


def test_rollouts_are_kept_and_only_what_changed_is_made_again(tmp_path, monkeypatch):
    run, jobs = random_run(infer={"batch": 2}), jobs_of(some_episodes())
    made = []

    def counting(run, first, actions, **options):
        made.append(len(first))
        return rolled(run, first, actions, **options)

    monkeypatch.setattr(kept, "rolled", counting)

    def again(run=run, jobs=jobs, seed=0):
        made.clear()
        return roll_out(run, jobs, seed=seed, folder=tmp_path)

    first = again()
    assert made == [2, 1]
    second = again()
    assert not made
    for one, two in zip(first, second, strict=True):
        assert np.array_equal(one.frames, two.frames)
        assert np.array_equal(one.latents, two.latents)
    damaged = tmp_path / TRUE / "val_1.npz"
    damaged.write_bytes(damaged.read_bytes()[:300])
    (tmp_path / TRUE / "val_2.npz").write_bytes(b"")
    assert np.array_equal(again()[1].frames, first[1].frames) and made == [2]
    changed = replace(jobs[0], actions=jobs[0].actions + 0.1)
    again(jobs=[changed, *jobs[1:]])
    assert made == [1]
    again(jobs=[*reversed(jobs), *jobs_of(some_episodes(), rows=("zero",))])
    assert made == [2, 2], "the first one, whose actions are again the old ones, and three more"
    again(seed=1)
    assert made == [2, 1]
    again(random_run(infer={"batch": 1, "steps": 2}), seed=1)
    assert made == [1, 1, 1], "other sampler steps"
    again(random_run(infer={"batch": 3, "steps": 2}), seed=1)
    assert not made, "how many run together changes nothing"


def test_what_was_finished_before_a_stop_is_there_after_it(tmp_path, monkeypatch):
    run, jobs = random_run(infer={"batch": 1}), jobs_of(some_episodes())
    calls = []

    def stopping(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return rolled(*args, **options)

    monkeypatch.setattr(kept, "rolled", stopping)
    with pytest.raises(KeyboardInterrupt):
        roll_out(run, jobs, seed=0, folder=tmp_path)
    assert sorted(file.name for file in tmp_path.rglob("*.*")) == ["val_0.npz", "val_1.npz"]
    assert len(roll_out(run, jobs, seed=0, folder=tmp_path)) == 3 and len(calls) == 4


def recipe_of(shards, **settings):
    recipe = tiny_recipe(data={"shards": str(shards)})
    return with_eval(recipe, **{"actions": 5, **settings})


def test_episodes_are_read_cut_and_chosen(shards, tmp_path):
    contract = ShardIndex.read(shards).contract
    held = held_out(recipe_of(shards), contract)
    assert held.keys == ("val_0", "val_1", "val_2", "val_3") and held.kind == "bridge"
    assert held.frames.shape == (4, 6, 16, 32, 3) and held.states.shape == (4, 6, 7)
    assert held.actions.shape == (4, 5, 7)
    assert held_out(recipe_of(shards, episodes=2), contract).keys == ("val_0", "val_2")
    chosen = held_out(recipe_of(shards), contract, read_choices(["val:3,1", "train:0"]))
    assert chosen.keys == ("val_3", "val_1", "train_0")
    assert np.array_equal(chosen.frames[1], held.frames[1])
    (tmp_path / "list.txt").write_text("# mine\nval_2\n\nval_0  # twice\nval_0\n")
    listed = held_out(recipe_of(shards, list=str(tmp_path / "list.txt")), contract)
    assert listed.keys == ("val_2", "val_0")
    every_other = recipe_of(shards, actions=3)
    window = every_other.window.model_copy(update={"interval": 2})
    twos = held_out(every_other.model_copy(update={"window": window}), contract)
    assert np.array_equal(twos.frames[:, 1], held.frames[:, 2]) and twos.actions.shape == (4, 3, 7)


def test_episodes_that_cannot_be_are_named(shards, tmp_path):
    contract = ShardIndex.read(shards).contract
    (tmp_path / "list.txt").write_text("val_0\nval_9\n")
    for settings, words in (
        ({"list": str(tmp_path / "list.txt")}, "split val lacks val_9, which the list"),
        ({"actions": 8}, "0 of 4 episodes have 8 actions at interval 1, .* lower .eval. actions"),
        ({"split": "test"}, "no split 'test'"),
    ):
        with pytest.raises(DataError, match=words):
            held_out(recipe_of(shards, **settings), contract)
    with pytest.raises(DataError, match=r"8 actions take 9 frames, .* fewer: val_1 \(8\)"):
        held_out(recipe_of(shards, actions=8), contract, read_choices(["val:1,2"]))
    with pytest.raises(DataError, match="1 episode, and comparing actions takes two"):
        held_out(recipe_of(shards), contract, read_choices(["val:1"]))
    with pytest.raises(DataError, match="actions mean something else than the model's"):
        held_out(recipe_of(shards), ActionContract(fps=4.0))
    with pytest.raises(ConfigError, match=r"nowhere: no such list .* shipped lists: demo_val"):
        read_list("nowhere")
    (tmp_path / "list.txt").write_text("# none\n")
    with pytest.raises(ConfigError, match="names no episode"):
        read_list(str(tmp_path / "list.txt"))


def test_the_shipped_list_is_the_demo_s_held_out_episodes():
    generate = load_pipeline("demo").generate
    settings = DemoSettings(
        generate.seed, generate.train, generate.val, generate.height, generate.width
    )
    numbers = range(settings.train, settings.train + settings.val)
    assert read_list(load_recipe("demo").eval.list) == tuple(f"val_{n}" for n in numbers)


def stamps(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_the_command_leaves_numbers_films_and_a_report(request_for, tmp_path, monkeypatch, capsys):
    request = request_for(write_list=tmp_path / "list.txt")
    table = run_eval(request)
    told = capsys.readouterr().err
    assert "control score" in told and "Mean over 5 steps and 4 episodes" in told
    output = request.output
    assert {p.name for p in output.iterdir() if not p.name.startswith(".")} == {
        *("eval.json", "report.html", "rollouts", *table["files"])
    }
    assert len(table["files"]) == 4 and len([*output.glob("rollouts/*/*.npz")]) == 5 * 4
    assert read_list(str(tmp_path / "list.txt")) == ("val_0", "val_1", "val_2", "val_3")
    written = json.loads((output / "eval.json").read_text())
    assert written["episodes"] == ["val_0", "val_1", "val_2", "val_3"]
    by_episode = np.array(written["by_episode"]["psnr"][TRUE])
    assert by_episode.shape == (4, 5)
    mean, low, high = written["means"]["psnr"][TRUE]
    assert mean == pytest.approx(by_episode.mean(), abs=1e-5) and low < mean < high
    assert {*written["digests"]} == {"weights", "tokenizer", "contract", "shards"}
    assert all(written["digests"].values()) and "IRASim" in str(written["protocol"])

    before = stamps(output)
    assert run_eval(request)["means"] == table["means"]
    assert "this evaluation is finished" in capsys.readouterr().err
    assert {p: t for p, t in stamps(output).items() if p.name != ".eval.lock"} == {
        p: t for p, t in before.items() if p.name != ".eval.lock"
    }
    other = request_for(settings=("eval.measures=['psnr']",))
    with pytest.raises(ConfigError, match=r"eval\.json: of other weights, episodes or settings"):
        run_eval(other)
    monkeypatch.setattr(kept, "rolled", None)  # all rollouts are there
    less = run_eval(replace(other, overwrite=True))
    assert list(less["means"]) == ["psnr"] and less["means"]["psnr"] == table["means"]["psnr"]


def test_films_of_an_evaluation_before_are_taken_away(request_for):
    first = run_eval(request_for(episodes=("val:0,1",)))
    second = run_eval(request_for(episodes=("val:2,3",), overwrite=True))
    output = request_for().output
    assert {p.name for p in output.glob("*.mp4")} == {*second["files"]} - {"report.html"}
    assert not {*first["files"]} & {*second["files"]} - {"report.html"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": ("train.lr=1",)}, r"only \[infer\], \[data\] and \[eval\] can be changed"),
        ({"settings": ("eval.measure=1",)}, r"measure: unknown key; did you mean measures"),
        ({"split": "val", "episodes": ("val:0-1",)}, "leave --split out"),
        ({"episodes": ("val:0-9",)}, "val has 4 episodes, 0 to 3"),
        ({"steps": 0}, "steps = 0"),
        ({"settings": ("eval.list=nowhere",)}, "no such list of episodes"),
        ({"shards": "nowhere"}, "nowhere: no such folder"),
    ],
)
def test_what_cannot_be_is_refused_before_weights_are_read(
    request_for, monkeypatch, changes, message
):
    monkeypatch.setattr("cosmos_wds.rollout.eval_command.load_run", None)
    request = request_for(**changes)
    with pytest.raises((ConfigError, DataError), match=message):
        run_eval(request)
    assert not request.output.exists()


def test_a_foreign_file_is_left_alone(request_for):
    request = request_for(overwrite=True)
    request.output.mkdir()
    (request.output / "eval.json").write_text('{"mine": 1}')
    with pytest.raises(ConfigError, match=r"eval\.json: not what eval wrote"):
        run_eval(request)
    assert (request.output / "eval.json").read_text() == '{"mine": 1}'
    (request.output / "eval.json").unlink()
    assert read_results(request.output) is None


def test_the_command_line(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["eval", str(weights), "--episodes", "val:0-1", "--output", "o", "--json"]
    words += ["--set", "eval.actions=2", "--steps", "1"]
    ended = CliRunner().invoke(app, words)
    assert ended.exit_code == 0, ended.output
    table = json.loads(ended.stdout.strip().splitlines()[-1])
    assert table["actions"] == 2 and "by_episode" not in table
    ended = run_command("eval", weights, "--shards", "nowhere", cwd=tmp_path)
    assert ended.returncode == 1 and ended.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in ended.stderr and not (tmp_path / "outputs/eval/eval.json").exists()
