"""Evaluation and its report: right numbers, whole videos, well-formed HTML that loads nothing."""

import base64
import json
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from cosmos_wds.data.actions import ActionContract
from cosmos_wds.data.index import ShardIndex
from cosmos_wds.data.video import decode
from cosmos_wds.errors import DataError
from cosmos_wds.pipeline import load_pipeline
from cosmos_wds.prepare import shard
from cosmos_wds.recipe import WindowSettings
from cosmos_wds.rollout.charts import WIDTH, Line, line_chart, ticks
from cosmos_wds.rollout.episodes import Evaluation, HeldOut, evaluate, held_out, others
from cosmos_wds.rollout.film import enlarged, write_films
from cosmos_wds.rollout.metrics import psnr, shown_steps, verdict
from cosmos_wds.rollout.report import Facts, read_losses, write_report
from cosmos_wds.train.interval import Interval, mean_interval
from tests.conftest import moving_frames, write_episode
from tests.tiny_run import random_run

VOID = {"meta", "link", "img", "input", "br", "path", "circle"}


class Page(HTMLParser):
    """Checks that tags nest, and gathers texts of table cells, sources and all attributes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.cells, self.sources, self.attributes, self.words = [], [], [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]
        self.sources += [(tag, value) for name, value in attrs if name in ("src", "href")]
        if tag in ("th", "td"):
            self.cells.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open)
        self.open.pop()

    def handle_data(self, data):
        self.words.append(data)
        if {"th", "td"} & set(self.open):
            self.cells[-1] += data


def made_up(episodes=4, steps=9, height=16, width=32, text="push <b>the</b> \"red\" & 'blue'"):
    """An evaluation whose rollouts are the truth with known noise."""
    rng = np.random.default_rng(0)
    frames = np.stack([moving_frames(steps + 1, height, width, i) for i in range(episodes)])

    def noisy(spread):
        noise = rng.normal(0, spread, frames.shape)
        return (frames + noise).clip(0, 255).astype(np.uint8)

    return Evaluation(
        HeldOut(
            keys=tuple(f"val_{i}" for i in range(episodes)),
            texts=(text,) * episodes,
            frames=frames,
            actions=rng.normal(0, 0.01, (episodes, steps, 7)),
            digest="0123456789abcdef",
        ),
        true=noisy(4),
        other=noisy(30),
    )


@pytest.fixture
def report(tmp_path):
    """The page of a made-up evaluation, parsed, with the evaluation and the raw text."""
    evaluation = made_up()
    videos = write_films(tmp_path, evaluation, fps=5, count=3)
    losses = tuple((10.0 * i, 0.5 - 0.01 * i) for i in range(1, 40))
    facts = Facts(title="a <script>title", seed=0, sampler_steps=3, losses=losses)
    path = tmp_path / "report.html"
    write_report(path, evaluation, random_run(), facts=facts, videos=videos)
    text = path.read_text(encoding="utf-8")
    return Page(text), evaluation, text


def test_table_holds_the_metrics(report):
    page, evaluation, _ = report
    truth = evaluation.episodes.frames
    cells = [cell.strip() for cell in page.cells]
    assert shown_steps(9) == [1, 2, 4, 8, 9]
    for step in shown_steps(9):
        rows = [
            [psnr(video[e, step], truth[e, step]) for e in range(4)]
            for video in (evaluation.true, evaluation.other, truth[:, :1].repeat(10, axis=1))
        ]
        true, other, copy = map(np.array, rows)
        wanted = [mean_interval(v) for v in (true, other, copy)]
        gains = [mean_interval(v) for v in (true - other, true - copy)]
        row = cells[cells.index(str(step)) :][:6]
        assert row[1:4] == [f"{v.mean:.2f} ± {v.high - v.mean:.2f}" for v in wanted]
        assert row[4:] == [f"{v.mean:+.2f} ± {v.high - v.mean:.2f}" for v in gains]


def test_page_loads_nothing_and_escapes_everything(report):
    page, evaluation, text = report
    assert page.sources and all(value.startswith("data:") for _, value in page.sources)
    assert "http:" not in text and "https:" not in text and "@import" not in text
    assert "<script" not in text and "url(" not in text
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert ("meta", "http-equiv", "Content-Security-Policy") in page.attributes
    assert evaluation.episodes.texts[0] in "".join(page.words)
    assert any("a <script>title" in words for words in page.words)
    assert "prefers-color-scheme: dark" in text
    contract = random_run().contract
    assert contract.digest in text and "signal" in page.words


def test_videos_and_strips_decode(report):
    page, evaluation, _ = report
    videos = [value for tag, value in page.sources if tag == "video"]
    strips = [value for tag, value in page.sources if tag == "img"]
    assert len(videos) == 3 and len(strips) == 9
    for episode, value in enumerate(videos):
        kind, content = value.split(";base64,")
        assert kind == "data:video/mp4"
        frames = decode(base64.b64decode(content))
        factor, gap = 8, 16
        assert frames.shape == (10, 16 * factor, 4 * 32 * factor + 3 * gap, 3)
        truth = enlarged(evaluation.episodes.frames[episode], factor).astype(int)
        assert np.abs(frames[:, :, : 32 * factor] - truth).mean() < 8
        still = frames[:, :, -32 * factor :].astype(int)
        assert np.abs(still - still[:1]).mean() < 2
    for value in strips:
        kind, content = value.split(";base64,")
        picture = Image.open(BytesIO(base64.b64decode(content)))
        assert picture.size == (6 * 32, 16), "steps 0, 1, 2, 4, 8, 9"
    first = np.array(Image.open(BytesIO(base64.b64decode(strips[0].split(",")[1]))))
    assert np.array_equal(first[:, 5 * 32 :], evaluation.episodes.frames[0, 9])


def test_charts_stay_on_the_picture(report):
    _, _, text = report
    charts = re.findall(r'<svg class="chart".*?</svg>', text, re.S)
    assert len(charts) == 2
    for chart in charts:
        points = re.findall(r"[ML](-?[\d.]+),(-?[\d.]+)", chart)
        assert len(points) > 9
        assert all(0 <= float(x) <= WIDTH and 0 <= float(y) <= 300 for x, y in points)
    assert "nan" not in "".join(charts)


def test_one_step_and_no_losses(tmp_path):
    """The smallest evaluation: charts of one point, no training section."""
    evaluation = made_up(episodes=2, steps=1)
    videos = write_films(tmp_path, evaluation, fps=2.5, count=6)
    assert [v.name for v in videos] == ["episode_val_0.mp4", "episode_val_1.mp4"]
    facts = Facts(title="small", seed=0, sampler_steps=1)
    write_report(tmp_path / "r.html", evaluation, random_run(), facts=facts, videos=videos)
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    Page(text)
    assert "Training loss" not in text and "nan" not in text.split("<figure>")[0]


def test_ticks_are_round():
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(-0.62, 0.61) == [-0.5, 0, 0.5]
    assert ticks(19.8, 37.1) == [20, 25, 30, 35]
    for low, high in ((0, 1e-9), (-1e6, 1e6), (5, 5.001)):
        assert 2 <= len(ticks(low, high)) <= 7


def test_long_curves_are_thinned_to_means():
    x = list(range(10_001))
    chart = line_chart([Line("loss", x, x)], title="t", x_label="x", y_label="y")
    assert 300 < chart.count(" L") <= 410


def test_losses_are_read_around_damage(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": float("nan")}, {"step": 3, "loss": -1}]
    path.write_text("\n".join(map(json.dumps, lines)) + '\nnull\n{"step": 4, "lo')
    assert read_losses(path) == ((1, 0.5), (3, -1))
    assert read_losses(tmp_path / "none") == ()


def test_verdict():
    assert verdict(Interval(3, 2, 4), 16).startswith("The model follows its actions")
    assert "+3.00 ± 1.00 dB on average over 16 steps" in verdict(Interval(3, 2, 4), 16)
    assert verdict(Interval(0.1, -0.2, 0.4), 1).startswith("No evidence")
    assert verdict(Interval(3, np.nan, np.nan), 1).startswith("One episode cannot tell")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Five val episodes: of 8 frames, one of 4."""
    root = tmp_path_factory.mktemp("heldout")
    for number in range(5):
        write_episode(root / "raw", "val", number, frames=4 if number == 2 else 8)
    changes = [f"source.path={root}/raw", f"shards.path={root}/shards", "shards.workers=1"]
    shard(load_pipeline("bridge", [*changes, 'source.splits=["val"]']))
    return root / "shards"


def read_held_out(shards, contract=None, **changes):
    window = WindowSettings(height=16, width=32, **changes.pop("window", {}))
    contract = contract or ActionContract()
    return held_out(shards, "val", contract=contract, window=window, **changes)


def test_held_out_episodes_are_those_of_the_shards(shards):
    episodes = read_held_out(shards, steps=6)
    assert episodes.keys == ("val_0", "val_1", "val_3", "val_4"), "one is too short"
    assert episodes.frames.shape == (4, 7, 16, 32, 3) and episodes.actions.shape == (4, 6, 7)
    assert episodes.texts[2] == "move block 3"
    index = ShardIndex.read(shards).split("val")
    np.testing.assert_allclose(
        episodes.actions[2], index.read_array(3, "action.npy")[:6], atol=1e-6
    )
    few = read_held_out(shards, steps=6, episodes=2)
    assert few.keys == ("val_0", "val_3")
    assert np.array_equal(few.frames[1], episodes.frames[2])
    apart = read_held_out(shards, steps=3, window={"interval": 2})
    assert np.array_equal(apart.frames[2], episodes.frames[2, ::2])


def test_held_out_refuses(shards):
    with pytest.raises(DataError, match="0 episodes of split val have 8 actions"):
        read_held_out(shards, steps=8)
    with pytest.raises(DataError, match=r"something else(.|\n)*fps: 4.0 here, 5.0 there"):
        read_held_out(shards, steps=4, contract=ActionContract(fps=4.0))


def test_others_is_a_cycle_without_fixed_points():
    actions = np.arange(3)[:, None, None] * np.ones((3, 2, 7))
    assert others(actions)[:, 0, 0].tolist() == [1, 2, 0]


def test_evaluation_rolls_out_under_both_actions(shards):
    run = random_run(infer={"batch": 3, "steps": 2})
    evaluation = evaluate(run, read_held_out(shards, steps=5), seed=0)
    frames = evaluation.episodes.frames
    for video in (evaluation.true, evaluation.other, evaluation.copy):
        assert video.shape == frames.shape and np.array_equal(video[:, 0], frames[:, 0])
    assert not np.array_equal(evaluation.true, evaluation.other)
    assert [row.step for row in evaluation.rows] == [1, 2, 3, 4, 5]
    row = evaluation.rows[3]
    assert row.true == mean_interval(psnr(evaluation.true[:, 4], frames[:, 4]))
    assert row.over_copy.mean == pytest.approx(row.true.mean - row.copy.mean)
