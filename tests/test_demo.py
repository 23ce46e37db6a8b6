"""The demo: the whole way, stopped and continued, finished and left alone."""

import json

import pytest

from cosmos_wds.config import find_toml
from cosmos_wds.data.video import probe
from cosmos_wds.demo import FINISHED, RESULTS, demo, settings
from cosmos_wds.errors import ConfigError
from cosmos_wds.rollout import eval_command
from tests.test_report import Page

TINY = (
    *("generate.train=4", "generate.val=3", "generate.height=32", "generate.width=48"),
    *("model.base=", "model.width=32", "model.heads=2", "model.blocks=1", "model.adaln_rank=4"),
    *("window.height=16", "window.width=24", "tokenizer.fit_frames=16", "data.workers=0"),
    *("train.steps=2", "train.warmup=1", "train.batch=4", "train.device=cpu", "train.log_every=1"),
    *("infer.steps=1", "infer.batch=2"),
)


def stamps(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_demo_is_continued_where_it_stopped_and_then_left_alone(tmp_path, monkeypatch, capsys):
    output = tmp_path / "my [demo] = 1"

    def stop(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(eval_command, "write_films", stop)
        with pytest.raises(KeyboardInterrupt):
            demo(output, TINY)
    trained = stamps(output / "checkpoints")
    rolled = stamps(output / "rollouts")
    assert len(rolled) == 5 * 3
    assert trained and not (output / "report.html").exists() and not (output / FINISHED).exists()

    report = demo(output, TINY)
    assert report == output / "report.html"
    assert all(
        stamps(output / "checkpoints")[p] == t for p, t in trained.items() if "iter" in p.name
    )
    assert stamps(output / "rollouts") == rolled, "those are not made again"
    told = capsys.readouterr().err
    assert "Mean over 16 steps and 3 episodes" in told and "control score" in told
    assert (output / "demo.png").read_bytes().startswith(b"\x89PNG")
    videos = sorted(output.glob("*.mp4"))
    assert [v.name for v in videos] == [f"episode_val_{i}.mp4" for i in (4, 5, 6)]
    for video in videos:
        assert probe(video).frames == 17
    page = Page(report.read_text(encoding="utf-8"))
    assert [tag for tag, _ in page.sources].count("video") == 3
    assert {p.name for p in tmp_path.iterdir()} == {output.name}, "everything lies under the output"

    before, page = stamps(output), report.read_bytes()
    assert demo(output, TINY) == report
    assert stamps(output) == before
    told = capsys.readouterr().err
    assert "this demo is finished" in told and "control score" in told

    videos[0].unlink()
    demo(output, TINY)
    assert videos[0].exists() and report.read_bytes() == page, "the same again, byte for byte"
    with pytest.raises(ConfigError, match=r"train\.lr = 0\.5"):
        demo(output, (*TINY, "train.lr=0.5"))


def test_settings_stay_below_the_output(tmp_path):
    find_toml("demo", "recipes")
    output = tmp_path / "a = [b]"
    pipeline, recipe = settings(output, ("generate.train=7", "train.steps=900", "name=mine"))
    assert (pipeline.generate.train, recipe.train.steps, recipe.name) == (7, 900, "mine")
    assert pipeline.name == "demo"
    assert pipeline.shards.path == recipe.data.shards == str(output / "data/shards")
    assert pipeline.source.path == str(output / "data/raw")
    assert recipe.run_folder.is_relative_to(output)
    assert not recipe.eval.list, "other episodes than those of the shipped list"
    assert settings(output, ())[1].eval.list == "demo_val"
    with pytest.raises(ConfigError, match="did you mean train"):
        settings(output, ("generate.trian=7",))
    with pytest.raises(ConfigError, match="did you mean steps"):
        settings(output, ("train.stepz=7",))


def test_a_damaged_record_is_no_finished_demo(tmp_path):
    from cosmos_wds.demo import read_finished

    assert read_finished(tmp_path, "d") is None
    (tmp_path / "report.html").write_text("")
    results = {"files": ["report.html"]}
    (tmp_path / RESULTS).write_text(json.dumps(results))
    record = {"settings": "d"}
    (tmp_path / FINISHED).write_text(json.dumps(record))
    assert read_finished(tmp_path, "d") == results
    assert read_finished(tmp_path, "other") is None
    (tmp_path / RESULTS).write_text(json.dumps({"files": ["gone.mp4"]}))
    assert read_finished(tmp_path, "d") is None
    (tmp_path / RESULTS).write_text(json.dumps(results))
    (tmp_path / FINISHED).write_text(json.dumps(record)[:10])
    assert read_finished(tmp_path, "d") is None
    (tmp_path / FINISHED).write_text("[]")
    assert read_finished(tmp_path, "d") is None
