"""report.html and the opening picture: right numbers, whole videos, HTML that loads nothing.

And what a real browser makes of the page.
"""

import base64
import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from cosmos_wds.data.video import decode
from cosmos_wds.errors import DataError
from cosmos_wds.rollout.cases import CLOSEST, FURTHEST, TYPICAL, cases, ranked, typical
from cosmos_wds.rollout.charts import WIDTH, Line, bar, line_chart, ticks
from cosmos_wds.rollout.episodes import HeldOut
from cosmos_wds.rollout.evaluation import TRUE, WRONG, Control, Evaluation, GripperPath
from cosmos_wds.rollout.film import (
    AMPLIFIED,
    CELL,
    LABELS,
    MARGIN,
    SPACE,
    difference,
    enlarged,
    poster,
    write_films,
)
from cosmos_wds.rollout.metrics import psnr, shown_steps
from cosmos_wds.rollout.report import Facts, read_losses, write_report
from cosmos_wds.rollout.report_words import ROWS, share, verdict
from cosmos_wds.train.interval import Interval, mean_interval
from tests.browser import CHROMIUM, browser
from tests.conftest import moving_frames
from tests.tiny_run import random_run

VOID = {"meta", "link", "img", "input", "br", "path", "circle", "image", "polyline"}


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


def made_up(episodes=7, steps=9, height=16, width=32, text="push <b>the</b> \"red\" & 'blue'"):
    """An evaluation whose rollouts are the truth with noise: more of it under wrong actions, and in
    an order of the episodes that is not theirs."""
    rng = np.random.default_rng(0)
    frames = np.stack([moving_frames(steps + 1, height, width, i) for i in range(episodes)])
    order = rng.permutation(episodes)[:, None, None, None, None]

    def noisy(spread):
        video = (frames + rng.normal(0, 1, frames.shape) * (spread + 2 * order)).clip(0, 255)
        video[:, 0] = frames[:, 0]
        return video.astype(np.uint8)

    rollouts = {row: noisy(4 + 9 * i) for i, row in enumerate((TRUE, *WRONG))}
    yardsticks = {
        "first": frames[:, :1].repeat(steps + 1, axis=1),
        "previous": np.concatenate([frames[:, :1], frames[:, :-1]], axis=1),
        "round_trip": noisy(1),
    }
    rows = {**rollouts, **yardsticks}
    decibels = {row: psnr(video[:, 1:], frames[:, 1:]) for row, video in rows.items()}
    scores = {
        "psnr": decibels,
        "ssim": {row: 1 - 10 ** (-values / 20) for row, values in decibels.items()},
        "latent_l2": {row: 10 ** (-values / 20) for row, values in decibels.items()},
    }
    error = {
        TRUE: rng.uniform(0, 2, (episodes, steps)),
        "shuffled": rng.uniform(2, 9, (episodes, steps)),
    }
    error[TRUE][:, -1] = error[TRUE][0] = np.nan
    shares = {row: Interval(0.7 - 0.1 * i, 0.6 - 0.1 * i, 0.8) for i, row in enumerate(WRONG)}
    gaps = {
        metric: {
            row: mean_interval((scores[metric][row] - scores[metric][TRUE]).mean(1))
            for row in WRONG
        }
        for metric in ("psnr", "latent_l2")
    }
    return Evaluation(
        HeldOut(
            keys=tuple(f"val_{i}" for i in range(episodes)),
            texts=(text,) * episodes,
            frames=frames,
            actions=rng.normal(0, 0.01, (episodes, steps, 7)),
            digest="0123456789abcdef",
        ),
        rollouts=rollouts,
        yardsticks=yardsticks,
        scores=scores,
        set_scores={"fvd": {TRUE: 123.45, "shuffled": float("nan")}},
        control=Control(
            shares["shuffled"], shares, gaps, Interval(0.03, 0.02, 0.04), gripper(error)
        ),
        protocol={"data range": "0 to 255", "<list>": "a & b"},
    )


def gripper(error):
    """Paths whose true places run from left to right, and rollouts as far below as `error` says."""
    episodes, steps = error[TRUE].shape
    truth = np.stack([np.arange(steps + 1.0), np.full(steps + 1, 3.0)], axis=-1)
    truth = np.broadcast_to(truth, (episodes, steps + 1, 2))
    below = {row: np.stack([0 * far, far], axis=-1) for row, far in error.items()}
    places = {row: truth[:, 1:] + far for row, far in below.items()}
    return GripperPath(error, places, truth)


def written(folder, evaluation, *, count=6, title="a <script>title", losses=()):
    """A report with its films in a folder: its path."""
    videos = write_films(folder, evaluation, fps=5, count=count)
    facts = Facts(title=title, seed=0, sampler_steps=3, losses=losses)
    write_report(folder / "report.html", evaluation, random_run(), facts=facts, videos=videos)
    return folder / "report.html"


@pytest.fixture(scope="module")
def evaluation():
    return made_up()


@pytest.fixture(scope="module")
def path(tmp_path_factory, evaluation):
    losses = tuple((10.0 * i, 0.5 - 0.01 * i) for i in range(1, 40))
    return written(tmp_path_factory.mktemp("report"), evaluation, losses=losses)


@pytest.fixture(scope="module")
def text(path):
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def cells_after(page, *heads):
    """The cells of the page's tables after some that follow each other."""
    cells = [cell.strip().replace("\xa0", " ") for cell in page.cells]
    places = [i for i in range(len(cells)) if tuple(cells[i : i + len(heads)]) == heads]
    assert places, heads
    return cells[places[0] + len(heads) :]


def shown(value, digits=2):
    return f"{value.mean:.{digits}f} ± {value.high - value.mean:.{digits}f}"


def test_the_summary_holds_the_means_over_steps(page, evaluation):
    assert cells_after(page, "frames compared with the recording")[:4] == [
        "PSNR, dB ↑, higher is closer",
        "SSIM ↑, higher is closer",
        "latent L2 ↓, lower is closer",
        "FVD ↓, lower is closer",
    ]
    for row in (TRUE, *WRONG, "first", "previous", "round_trip"):
        wanted = [
            shown(mean_interval(evaluation.scores[metric][row].mean(axis=1)), digits)
            for metric, digits in (("psnr", 2), ("ssim", 3), ("latent_l2", 3))
        ]
        assert cells_after(page, ROWS[row])[:4] == [*wanted, "123.5" if row == TRUE else "–"]


def test_each_metric_has_a_table_by_steps(page, evaluation):
    steps = shown_steps(9)
    assert steps == [1, 2, 4, 8, 9]
    cells = cells_after(page, "steps ahead")
    for metric, digits in (("psnr", 2), ("ssim", 3), ("latent_l2", 3)):
        assert cells[:5] == ["1", "2", "4", "8", "9"]
        true = cells[cells.index(ROWS[TRUE]) + 1 :][:5]
        values = evaluation.scores[metric][TRUE]
        assert true == [shown(mean_interval(values[:, s - 1]), digits) for s in steps]
        other = cells[cells.index(ROWS["shuffled"]) + 1 :][:5]
        values = evaluation.scores[metric]["shuffled"]
        assert other == [shown(mean_interval(values[:, s - 1]), digits) for s in steps]
        if metric != "latent_l2":
            cells = cells[cells.index("steps ahead") + 1 :]


def test_control_is_told_in_numbers(page, text, evaluation):
    words = " ".join(page.words)
    assert "The model follows its actions." in words
    assert "0.70" in page.words and "95\xa0% interval 0.60 to 0.80" in page.words
    gaps = evaluation.control.gaps
    for row in WRONG:
        value = evaluation.control.shares[row]
        wanted = f"{value.mean:.2f} ({value.low:.2f} to 0.80)"
        numbers = cells_after(page, ROWS[row], wanted)[1:3]
        assert numbers == [
            f"{v.mean:+.{d}f} ± {v.high - v.mean:.{d}f}"
            for v, d in ((gaps["psnr"][row], 2), (gaps["latent_l2"][row], 3))
        ]
    assert "+0.0300 ± 0.0100" in page.words
    errors = evaluation.control.path.error[TRUE]
    assert cells_after(page, "mean distance, pixels", "found in", "rollouts", ROWS[TRUE])[:2] == [
        shown(mean_interval(np.nanmean(errors[1:], axis=1)), 1),
        "76 %",  # one of 7 episodes and the last step miss
    ]
    assert "nan" not in re.sub(r'"data:[^"]*"', "", text)


def test_paths_are_drawn_over_last_frames(text, evaluation):
    """Places are those of pixels' centres; where no gripper is found the path goes on behind it."""
    maps = re.findall(r'<svg class="way" viewBox="0 0 32 16".*?</svg>', text, re.S)
    assert len(maps) == 3
    for case, drawn in zip(cases(evaluation, 3), maps, strict=True):
        picture = re.search(r'href="data:image/png;base64,([^"]*)"', drawn)[1]
        frame = np.array(Image.open(BytesIO(base64.b64decode(picture))))
        assert np.array_equal(frame, evaluation.episodes.frames[case.episode, -1])
        lines = dict(re.findall(r'<polyline class="(\w+)" points="([^"]*)"', drawn))
        assert lines["truth"] == " ".join(f"{step + 0.5:.2f},3.50" for step in range(10))
        far = evaluation.control.path.error["shuffled"][case.episode]
        wanted = ["0.50,3.50", *(f"{s + 0.5:.2f},{3.5 + f:.2f}" for s, f in enumerate(far, 1))]
        assert lines["shuffled"].split() == wanted
        missing = 9 if case.episode == 0 else 1
        assert len(lines["true"].split()) == 10 - missing


def test_a_score_that_nobody_knows(tmp_path):
    """Wrong actions that do no harm leave nothing to divide by."""
    whole, unknown = made_up(episodes=2, steps=1), Interval(np.nan, np.nan, np.nan)
    control = Control(unknown, {"shuffled": unknown}, {}, None, None)
    text = written(tmp_path, replace(whole, control=control)).read_text(encoding="utf-8")
    assert "do no harm" in text and "<b>unknown</b>" in text
    assert "nan" not in re.sub(r'"data:[^"]*"', "", text)


def test_psnr_that_was_not_asked_for_still_ranks(tmp_path):
    whole = made_up(episodes=4, steps=2)
    without = replace(whole, scores={"ssim": whole.scores["ssim"]})
    assert np.array_equal(ranked(without), ranked(whole))
    text = written(tmp_path, without).read_text(encoding="utf-8")
    assert "PSNR, dB ↑" not in "".join(Page(text).cells) and "rank 4 of 4" in text


def test_verdict_and_share():
    assert verdict(Interval(0.6, 0.5, 0.7)) == "The model follows its actions."
    assert verdict(Interval(0.1, -0.2, 0.4)).startswith("No evidence")
    assert verdict(Interval(0.6, np.nan, np.nan)).startswith("One episode cannot tell")
    assert share(Interval(0.6, 0.5, 0.7)) == "0.60 (0.50 to 0.70)"
    assert share(Interval(0.6, np.nan, np.nan)) == "0.60"
    assert share(Interval(np.nan, np.nan, np.nan)) == "unknown"
    assert "do no harm" in verdict(Interval(np.nan, np.nan, np.nan))


def test_page_loads_nothing_and_escapes_everything(page, text, evaluation):
    links = [value for tag, value in page.sources if tag == "a"]
    assert links and all(('id="' + value[1:] + '"') in text for value in links)
    others = [value for tag, value in page.sources if tag != "a"]
    assert others and all(value.startswith("data:") for value in others)
    assert "http:" not in text and "https:" not in text and "@import" not in text
    assert text.count("<script") == 1 and "url(" not in text
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    policies = [v for t, n, v in page.attributes if n == "content" and "default-src" in v]
    assert len(policies) == 1 and "'none'" in policies[0] and "script-src 'sha256-" in policies[0]
    assert evaluation.episodes.texts[0] in "".join(page.words)
    assert any("a <script>title" in words for words in page.words)
    assert "<list>" in page.words and "a & b" in page.words
    assert "prefers-color-scheme: dark" in text
    contract = random_run().contract
    assert contract.digest in text and "signal" in page.words
    assert len(text) < 5e6


def test_tables_say_what_their_heads_stand_for(page):
    scopes = [value for tag, name, value in page.attributes if tag == "th" and name == "scope"]
    assert len(scopes) == len(
        [tag for tag, name, _ in page.attributes if (tag, name) == ("th", "scope")]
    )
    assert {"col", "row", "rowgroup"} == set(scopes)
    regions = [v for t, n, v in page.attributes if (t, n) == ("div", "role") and v == "region"]
    assert len(regions) == len([n for t, n, _ in page.attributes if (t, n) == ("div", "tabindex")])


def test_cases_are_the_ends_and_the_middle(evaluation):
    order = ranked(evaluation)
    means = evaluation.scores["psnr"][TRUE].mean(axis=1)
    assert np.all(np.diff(means[order]) <= 0) and sorted(order) == list(range(7))
    assert [(c.kind, c.rank) for c in cases(evaluation, 6)] == [
        *((CLOSEST, 1), (CLOSEST, 2), (TYPICAL, 4), (TYPICAL, 5), (FURTHEST, 6), (FURTHEST, 7))
    ]
    assert all(order[c.rank - 1] == c.episode for c in cases(evaluation, 6))
    assert typical(evaluation) == order[3]


@pytest.mark.parametrize("episodes", [1, 2, 3, 5, 12])
@pytest.mark.parametrize("count", [1, 3, 6, 100])
def test_no_case_comes_twice_and_films_tell_their_cases(episodes, count):
    evaluation = made_up(episodes=episodes, steps=1)
    chosen = cases(evaluation, count)
    assert len({case.episode for case in chosen}) == len(chosen)
    assert min(episodes, 3) <= len(chosen) <= max(3, min(count, episodes))
    assert [case.rank for case in chosen] == sorted(case.rank for case in chosen)
    assert chosen[0].rank == 1 and chosen[-1].rank == episodes
    assert cases(evaluation, len(chosen)) == chosen, "the report takes as many as there are films"


def test_videos_and_strips_decode(page, text, evaluation):
    videos = [value for tag, value in page.sources if tag == "video"]
    strips = [value for tag, value in page.sources if tag == "img"]
    assert len(videos) == 6 and len(strips) == 18
    for case, value in zip(cases(evaluation, 6), videos, strict=True):
        kind, content = value.split(";base64,")
        assert kind == "data:video/mp4"
        frames = decode(base64.b64decode(content)).astype(int)
        factor, gap = 8, 16
        assert frames.shape == (10, 16 * factor, 4 * 32 * factor + 3 * gap, 3)
        truth = evaluation.episodes.frames[case.episode]
        true = evaluation.rollouts[TRUE][case.episode]
        other = evaluation.rollouts["shuffled"][case.episode]
        for i, column in enumerate((truth, true, difference(true, truth), other)):
            left = i * (32 * factor + gap)
            wanted = enlarged(column, factor).astype(int)
            assert np.abs(frames[:, :, left : left + 32 * factor] - wanted).mean() < 14
    pictures = [Image.open(BytesIO(base64.b64decode(value.split(",")[1]))) for value in strips]
    assert all(picture.size == (6 * 32, 16) for picture in pictures), "steps 0, 1, 2, 4, 8, 9"
    first, case = np.array(pictures[1]), cases(evaluation, 6)[0]
    assert np.array_equal(first[:, 5 * 32 :], evaluation.rollouts[TRUE][case.episode, 9])
    assert text.count("rank 7 of 7") == 1 and "Typical: the middle of the ranking" in page.words


def test_the_difference_is_amplified_and_never_wraps():
    truth, frames = (np.array(v, np.uint8).reshape(1, 1, 1, 3) for v in ([0, 9, 255], [3, 5, 0]))
    assert difference(frames, truth).ravel().tolist() == [3 * AMPLIFIED, 4 * AMPLIFIED, 255]


def test_words_of_a_frame_are_its_own(page, evaluation):
    data = [json.loads(v) for _, name, v in page.attributes if name == "data-case"]
    assert len(data) == 6
    for case, figure in zip(cases(evaluation, 6), data, strict=True):
        assert figure["rate"] == 5 and len(figure["words"]) == 10
        true, other = (
            evaluation.scores["psnr"][row][case.episode, 3] for row in (TRUE, "shuffled")
        )
        assert (
            figure["words"][4] == f"4 ahead: PSNR rollout {true:.1f} dB, another’s {other:.1f} dB"
        )


def test_charts_stay_on_the_picture(text):
    charts = re.findall(r'<svg class="chart".*?</svg>', text, re.S)
    assert len(charts) == 8, "three metrics, three gains, the gripper, the loss"
    for chart in charts:
        points = re.findall(r"[ML](-?[\d.]+),(-?[\d.]+)", chart)
        assert len(points) > 9
        assert all(0 <= float(x) <= WIDTH and 0 <= float(y) <= 300 for x, y in points)
    assert "nan" not in "".join(charts)
    assert all(html.escape(ROWS[row]) in text for row in (TRUE, *WRONG, "first", "previous"))


def test_one_step_and_no_losses(tmp_path):
    """The smallest evaluation: charts of one point, no training section, no path, no loss gap."""
    whole = made_up(episodes=2, steps=1)
    control = Control(whole.control.score, whole.control.shares, whole.control.gaps, None, None)
    rows = (TRUE, "shuffled", "first", "previous", "round_trip")
    small = Evaluation(
        whole.episodes,
        {row: whole.rollouts[row] for row in rows[:2]},
        whole.yardsticks,
        {"psnr": {row: whole.scores["psnr"][row] for row in rows}},
        {},
        control,
        {},
    )
    text = written(tmp_path, small, title="small").read_text(encoding="utf-8")
    assert len(list(tmp_path.glob("episode_val_?.mp4"))) == 2
    page = Page(text)
    assert "Training loss" not in page.words and "Where the gripper is" not in page.words
    assert "zero actions" in page.words, "Control has all shares, as made up"
    assert ("input", "type", "radio") not in page.attributes, "one metric: nothing to choose"


def test_a_poster_shows_truth_rollout_and_wrong_actions(evaluation):
    picture = Image.open(BytesIO(poster(evaluation, episodes=[2, 5], steps=[0, 4, 9])))
    assert picture.mode == "RGBA" and picture.getpixel((0, 0))[3] == 0, "round corners"
    assert picture.width == 2 * MARGIN + LABELS + 3 * CELL + 2 * SPACE
    found = np.array(picture.convert("RGB")).astype(int)
    height = CELL // 2
    for block, episode in enumerate((2, 5)):
        videos = (
            evaluation.episodes.frames,
            evaluation.rollouts[TRUE],
            evaluation.rollouts["shuffled"],
        )
        for row, video in enumerate(videos):
            top = MARGIN + 36 + (3 * block + row) * (height + SPACE) + block * MARGIN
            for column, step in enumerate((0, 4, 9)):
                left = MARGIN + LABELS + column * (CELL + SPACE)
                cell = found[top : top + height, left : left + CELL]
                frame = Image.fromarray(video[episode, step]).resize((CELL, height), Image.BICUBIC)
                assert np.array_equal(cell, np.array(frame))


def test_a_poster_chooses_by_itself(evaluation):
    assert poster(evaluation) == poster(
        evaluation, episodes=[typical(evaluation)], steps=[0, 1, 2, 4, 8, 9]
    )
    short = Image.open(BytesIO(poster(made_up(episodes=2, steps=1))))
    assert short.width == 2 * MARGIN + LABELS + 2 * CELL + SPACE, "two frames are all there are"


def test_points_that_are_not_finite_are_left_out():
    nan = float("nan")
    line = Line("a", [1, 2, 3, 4], [1.0, nan, 2.0, 3.0], [0.0, nan, 1.0, 2.0], [2.0, nan, 3.0, 4.0])
    chart = line_chart([line], title="t", x_label="x", y_label="y")
    assert "nan" not in chart and 'class="band band0"' in chart
    assert len(re.findall(r'class="line line0" d="M([^"]*)"', chart)[0].split(" L")) == 3
    empty = Line("b", [1, 2], [nan, nan], look=1)
    assert "line1" not in line_chart([empty], title="t", x_label="x", y_label="y")


@pytest.mark.parametrize(
    ("values", "marks"),
    [
        ([5.0, 6.0], {"0", "2", "4", "6"}),
        ([-5.0, -1.0], {"-4", "-2", "0"}),
        ([-1.0, 1.0], {"-1", "0", "1"}),
        ([0.0, 0.0], {"0", "0.2", "0.4"}),
    ],
)
def test_zero_belongs_to_the_picture(values, marks):
    """Also where all is zero, as the gains of a model that does not listen."""
    names = {"title": "t", "x_label": "x", "y_label": "y"}
    chart = line_chart([Line("a", [1, 2], values)], **names, has_zero=True)
    found = set(re.findall(r'text-anchor="end">([^<]*)<', chart))
    assert marks <= found, found
    if values[0] == 5:
        without = line_chart([Line("a", [1, 2], values)], **names)
        assert ">0</text>" not in without


def test_bars_stay_on_their_scale():
    drawn = bar(Interval(0.5, 0.25, 2.0), 0.0, 1.0)
    assert 'width="50.00"' in drawn and "M25.00,10 H100.00" in drawn
    assert 'class="spread"' not in bar(Interval(0.5, np.nan, np.nan), 0.0, 1.0)
    assert 'x="0.00" y="4" width="50.00"' in bar(Interval(-1, -1, -1), -1.0, 1.0)


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


def test_a_disk_that_refuses_is_said(tmp_path, evaluation):
    (tmp_path / "report.html").mkdir()
    facts = Facts(title="t", seed=0, sampler_steps=1)
    videos = write_films(tmp_path, evaluation, fps=5, count=3)
    with pytest.raises(DataError, match=r"report\.html: cannot be written"):
        write_report(tmp_path / "report.html", evaluation, random_run(), facts=facts, videos=videos)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_films(tmp_path / "file", evaluation, fps=5)


# In a browser


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


PLAYING = "[...document.querySelectorAll('video')].every(v => !v.paused && v.currentTime > 0.3)"
FOCUS = "document.activeElement"


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 400])
def test_films_play_and_nothing_runs_over_the_side(tab, path, scheme, width):
    tab.open(path, width=width, scheme=scheme)
    tab.wait(PLAYING)
    assert tab.evaluate("document.querySelectorAll('.cannot:not([hidden])').length") == 0
    sizes = tab.evaluate("[...document.querySelectorAll('video')].map(v => v.videoWidth)")
    assert sizes == [4 * 256 + 3 * 16] * 6
    assert tab.complaints() == []
    assert tab.requests() == [path.as_uri()]
    colour = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colour == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 27)")
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


CONTRAST = """(() => {
  const part = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = c => 0.2126 * part(c[0]) + 0.7152 * part(c[1]) + 0.0722 * part(c[2]);
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length === 3) return c;
    }
    return [255, 255, 255];
  };
  const worst = [];
  for (const e of document.querySelectorAll('main *, nav *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (!own || e.tagName === 'NOSCRIPT') continue;
    const style = getComputedStyle(e);
    const [a, b] = [rgb(e instanceof SVGElement ? style.fill : style.color), behind(e)].map(light);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) worst.push(`${e.tagName}.${e.className} ${ratio}`);
  }
  return worst;
})()"""


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_words_stand_out_from_what_is_behind_them(tab, path, scheme):
    """Contrast of 4.5 and more: WCAG 2.2, 1.4.3."""
    tab.open(path, scheme=scheme)
    assert tab.evaluate(CONTRAST) == []


@needs_browser
def test_the_keyboard_reaches_everything(tab, path):
    """Skip link, sections, choice of metric, curves, films, sliders; and the focus is seen."""
    tab.open(path, motion="reduce")
    tab.press("Tab")
    assert tab.evaluate(f"{FOCUS}.textContent") == "Skip to the content"
    assert tab.evaluate(f"{FOCUS}.getBoundingClientRect().left") >= 0
    reached, unseen = [], []
    for _ in range(200):
        tab.press("Tab")
        name = tab.evaluate(f"{FOCUS}.type || {FOCUS}.className || {FOCUS}.tagName")
        if name == "BODY":
            break
        reached.append(name)
        if tab.evaluate(f"getComputedStyle({FOCUS}).outlineStyle") != "solid":
            unseen.append(name)
    for kind, count in (("A", 5), ("radio", 2), ("range", 6), ("VIDEO", 6), ("button", 1)):
        assert reached.count(kind) >= count, (kind, reached)
    assert {"checkbox", "scroll", "SUMMARY"} <= set(reached)
    assert unseen == []


@needs_browser
def test_a_metric_is_chosen_and_curves_are_hidden_without_a_mouse(tab, path):
    tab.open(path, motion="reduce")
    seen = "[...document.querySelectorAll('#closeness .panel')].map(p => p.offsetHeight > 0)"
    assert tab.evaluate(seen) == [True, False, False]
    tab.evaluate("document.querySelector('#closeness .pick0').focus()")
    tab.press("ArrowRight")
    assert tab.evaluate(seen) == [False, True, False]
    line = "getComputedStyle(document.querySelector('#closeness .panel1 .part{}')).display"
    assert tab.evaluate(line.format(0)) == "inline" and tab.evaluate(line.format(4)) == "none"
    for switch in (0, 4):
        tab.evaluate(f"document.querySelector('#closeness .panel1 .switch{switch}').focus()")
        tab.press(" ")
    assert tab.evaluate(line.format(0)) == "none" and tab.evaluate(line.format(4)) == "inline"
    other = "getComputedStyle(document.querySelector('#closeness .panel0 .part0')).display"
    assert tab.evaluate(other) == "inline", "other charts keep theirs"


@needs_browser
def test_a_slider_goes_through_the_frames_of_its_film(tab, path, page):
    tab.open(path, motion="reduce")
    tab.wait("[...document.querySelectorAll('video')].every(v => v.readyState >= 2)")
    assert tab.evaluate("[...document.querySelectorAll('video')].every(v => v.paused)")
    words = [json.loads(v) for _, name, v in page.attributes if name == "data-case"][1]["words"]
    figure = "document.querySelectorAll('figure.case')[1]"
    tab.evaluate(f"{figure}.querySelector('.tracks input').focus()")
    tab.press("Home")
    for frame in (1, 2, 3):
        tab.press("ArrowRight")
        tab.wait(f"{figure}.querySelector('.at').textContent === '{frame} of 9'")
        assert tab.evaluate(f"{figure}.querySelector('.now').textContent") == words[frame]
        spoken = tab.evaluate(f"{FOCUS}.getAttribute('aria-valuetext')")
        assert spoken == f"{frame} of 9: {words[frame]}"
        tab.wait(f"{figure}.querySelector('video').currentTime === {frame + 0.5} / 5")
    moved = tab.evaluate(f"{figure}.querySelector('.cursor').getAttribute('transform')")
    assert moved == "translate(3 0)"
    tab.evaluate(f"{figure}.querySelector('video').focus()")
    tab.press(" ")
    tab.wait(f"!{figure}.querySelector('video').paused")
    assert tab.complaints() == []


@needs_browser
def test_one_button_stops_all_films(tab, path):
    tab.open(path)
    tab.wait(PLAYING)
    tab.evaluate("document.querySelector('button.all').focus()")
    assert tab.evaluate(f"{FOCUS}.textContent") == "Pause all videos"
    tab.press(" ")
    tab.wait("[...document.querySelectorAll('video')].every(v => v.paused)")
    tab.wait(f"{FOCUS}.textContent === 'Play all videos'")
    tab.press(" ")
    tab.wait("[...document.querySelectorAll('video')].every(v => !v.paused)")


@needs_browser
def test_a_film_that_cannot_be_played_is_said(tab, text, tmp_path):
    broken = re.sub(r"data:video/mp4;base64,[^\"]+", "data:video/mp4;base64,AAAA", text)
    (tmp_path / "page.html").write_text(broken)
    tab.open(tmp_path / "page.html")
    tab.wait("document.querySelectorAll('.cannot:not([hidden])').length === 6")
