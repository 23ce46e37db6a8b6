"""Recipes and pipelines: the wording of errors, overrides, the way there and back, what ships."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmos_wds.config import apply_overrides, dump, find_toml, parse, read_table, shipped_folder
from cosmos_wds.errors import ConfigError
from cosmos_wds.pipeline import Pipeline, load_pipeline
from cosmos_wds.recipe import Recipe, load_recipe, recipe_from_table
from cosmos_wds.sizes import ModelSettings, model_settings
from cosmos_wds.train.folder import flat

RECIPES = sorted(p.stem for p in shipped_folder("recipes").glob("*.toml"))
PIPELINES = sorted(p.stem for p in shipped_folder("pipelines").glob("*.toml"))
SMALL = {"height": 64, "width": 64}
SIZES = sorted(p.stem for p in (shipped_folder("recipes") / "models").glob("*.toml"))


def write(folder, text):
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_what_ships():
    assert {"bridge", "bridge_1gpu", "bridge_reference", "demo", "small", "tiny_base"} <= set(
        RECIPES
    )
    assert {"bridge", "demo", "tiny_base"} <= set(PIPELINES)
    assert {"cosmos-predict1-7b", "cosmos-predict1-14b", "cosmos-tiny"} <= set(SIZES)


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipes_load_and_survive_the_way_there_and_back(name, tmp_path):
    recipe = load_recipe(name)
    assert recipe.name != "unnamed"
    assert load_recipe(str(write(tmp_path, dump(recipe)))) == recipe


@pytest.mark.parametrize("name", PIPELINES)
def test_shipped_pipelines_load_and_survive_the_way_there_and_back(name, tmp_path):
    pipeline = load_pipeline(name)
    assert pipeline.name == name
    assert load_pipeline(str(write(tmp_path, dump(pipeline)))) == pipeline


@pytest.mark.parametrize("name", SIZES)
def test_model_sizes_are_settings_of_the_network(name):
    table = read_table(shipped_folder("recipes") / "models" / f"{name}.toml")
    assert parse(ModelSettings, table, origin=name).width == table["width"]
    made = recipe_from_table({"model": {"size": name}, "window": SMALL}, origin="x")
    assert made.model.heads == table["heads"] == model_settings(name).heads


def test_a_recipe_overrules_the_size_it_names():
    model = {"size": "cosmos-tiny", "blocks": 2}
    assert recipe_from_table({"model": model, "window": SMALL}, origin="x").model.blocks == 2


def test_a_window_that_the_position_tables_do_not_reach_is_told():
    table = {"model": {"size": "cosmos-tiny"}, "window": {"frames": 17}}
    with pytest.raises(ConfigError) as told:
        recipe_from_table(table, origin="x")
    assert "frames = 17: the model's position tables end at 16" in str(told.value)
    assert "width = 320: the model's position tables end at 256" in str(told.value)
    recipe_from_table({"model": {**table["model"], "position_tables": False}}, origin="x")


def test_no_shipped_file_says_twice_what_another_says():
    """Recipes with one run folder would fight over it; pipelines over one shard set as well."""
    recipes = [load_recipe(name) for name in RECIPES]
    assert len({r.run_folder for r in recipes}) == len(recipes)
    pipelines = [load_pipeline(name) for name in PIPELINES]
    assert len({p.shards.path for p in pipelines}) == len(pipelines)


def test_the_four_commands_meet_on_the_same_folders():
    pipeline, recipe = load_pipeline("bridge"), load_recipe("bridge")
    for name in ("bridge", "demo", "tiny_base"):
        assert load_recipe(name).data.shards == load_pipeline(name).shards.path
    weights = {
        Path(pipeline.download.weights_to) / w.split("/")[1] for w in pipeline.download.weights
    }
    assert weights == {Path(recipe.model.base).parent, Path(recipe.tokenizer.path)}


def test_our_preset_differs_from_the_reference_where_the_design_says():
    ours, theirs = load_recipe("bridge"), load_recipe("bridge_reference")
    assert (ours.model.actions, theirs.model.actions) == ("per_frame", "reference")
    assert (ours.model.position_tables, theirs.model.position_tables) == (True, False)
    assert (ours.diffusion.conditioning, theirs.diffusion.conditioning) == ("given", "reference")
    assert (ours.diffusion.loss_frames, theirs.diffusion.loss_frames) == ("generated", "all")
    assert (ours.train.decay, theirs.train.decay) == ("matrices", "all")
    assert (ours.infer.noise, theirs.infer.noise) == ("per_frame", "reference")
    reference = theirs.diffusion
    assert (reference.augment_mean, reference.augment_std, reference.augment_scale) == (0, 1, 4)
    assert (theirs.train.lr, theirs.train.warmup, theirs.train.eps) == (4e-4, 2500, 1e-10)
    assert (theirs.train.steps, theirs.train.save_every) == (100_000, 10_000)


def test_what_one_gpu_changes_about_bridge():
    """The experiment is the same: batch, schedule and all that decides what is learnt but eps."""
    many, one = (flat(load_recipe(n).model_dump()) for n in ("bridge", "bridge_1gpu"))
    assert {key.removeprefix("train.") for key in one if one[key] != many[key]} == {
        *("name", "accumulate", "eps", "ema_device"),
        *("optimizer", "checkpointing", "compile", "parallel"),
    }


def test_all_problems_come_at_once(tmp_path):
    path = write(
        tmp_path,
        """
        sed = 3
        [window]
        heigth = 256
        frames = 1
        [train]
        parallel = "tp"
        lr = "fast"
        [diffusion]
        given_drop = 1.5
        """,
    )
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(path))
    first, *lines = str(caught.value).splitlines()
    assert first == f"{path}: {len(lines)} problems"
    assert "  sed: unknown key; did you mean seed?" in lines
    assert "  [window] heigth: unknown key; did you mean height?" in lines
    assert (
        "  [window] frames = 1: a window holds one given frame and at least one to generate; "
        "use 2 or more" in lines
    )
    assert any(x.startswith("  [train] parallel = 'tp': ") and "'ddp'" in x for x in lines)
    assert any(x.startswith("  [train] lr = 'fast': ") for x in lines)
    assert any(x.startswith("  [diffusion] given_drop = 1.5: a share") for x in lines)
    assert len(lines) == 6


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[window]\nheight = 250", "nearest is 248"),
        ("[window]\nheight = 248", "take multiples of 16; nearest is 2"),
        ("[train]\nwarmup = 2500\nsteps = 2000", "not shorter than steps = 2000"),
        ("[train]\nbatch = 6\naccumulate = 4", "not a multiple of accumulate = 4"),
        ("window = 3", "window = 3: this is a section, write it as [window]"),
        ("name = 'a/b'", "one plain folder name"),
        ("[model]\nsize = 'cosmos-9b'", "no such size; known: cosmos-predict1-14b, "),
        ("[model]\nwidth = 100\nheads = 3", "width = 100: not a multiple of heads = 3"),
        ("[train]\nsteps = true", "steps"),
        ("[train\nsteps = 1", "not valid TOML: "),
        ("[infer]\naugment_sigma = 0.5", "augment_sigma = 0.5: from 0"),
        ("[data]\npool = -1", "pool = -1: must be 0 or more"),
        ("[data]\nshards = []", "shards = []: name at least one set"),
        ("[data]\nshards = ['a', 'b']\nweights = [1]", "1 numbers for 2 shard sets"),
        ("[data]\nshards = ['a', 'b']\nweights = [1, 0]", "weights = [1.0, 0.0]: must be above 0"),
        ("[data]\nworker_kind = 'fibre'", "worker_kind = 'fibre'"),
        ("[window]\ncamera = [0, 0]", "camera = (0, 0): a camera's number, or a list of different"),
        ("[window]\ncamera = []", "camera = (): a camera's number"),
        ("[window]\ncamera = 'wrist'", "camera = 'wrist'"),
    ],
)
def test_a_problem_is_told_with_its_place_and_rule(tmp_path, text, told):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[source]\nkind = 'lerbot'", "[source] kind = 'lerbot': "),
        ("[actions]\nscale = [20, 20]", "7 numbers above zero"),
        ("[actions]\nsignal = 'command'\naccumulate = true", 'needs signal = "state"'),
        ("[generate]\ntrain = 0\nval = 0", "at least one episode"),
        ("[shards]\nmegabytes = 0", "megabytes = 0 (1 or more)"),
        ("[shard]\nmegabytes = 1", "shard: unknown key; did you mean shards?"),
    ],
)
def test_a_pipeline_tells_its_problems_too(tmp_path, text, told):
    with pytest.raises(ConfigError, match="mine.toml: 1 problem") as caught:
        load_pipeline(str(write(tmp_path, text)))
    assert told in str(caught.value)


def test_names_that_are_no_file():
    with pytest.raises(ConfigError, match="bridg: no such file .* did you mean bridge"):
        load_recipe("bridg")
    with pytest.raises(ConfigError, match="shipped pipelines: bridge, "):
        load_pipeline("xxxxxxxx")
    with pytest.raises(ConfigError, match="no such file"):
        load_recipe("elsewhere/bridge.toml")


def test_recipes_are_found_by_name_and_by_path(tmp_path, monkeypatch):
    by_name = find_toml("bridge", "recipes")
    monkeypatch.chdir(tmp_path)
    assert find_toml("bridge", "recipes") == by_name
    assert find_toml("recipes/bridge.toml", "recipes") == by_name
    (tmp_path / "bridge.toml").write_text("name = 'mine'")
    assert load_recipe("bridge.toml").name == "mine"
    assert load_recipe("bridge").name != "mine"


def test_files_that_cannot_be_read(tmp_path):
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a text file"):
        load_recipe(str(binary))
    with pytest.raises(ConfigError, match="cannot be read: "):
        read_table(tmp_path)


def test_overrides():
    changed = load_recipe(
        "bridge",
        [
            "train.steps=10",
            "train.warmup = 2",
            "name=other",
            "data.shards=/a=b",
            "train.betas=[0.8, 0.9]",
            'model.base=""',
        ],
    )
    assert (changed.train.steps, changed.train.warmup) == (10, 2)
    assert (changed.name, changed.data.shards, changed.model.base) == ("other", "/a=b", "")
    assert changed.train.betas == (0.8, 0.9)
    assert changed.window == load_recipe("bridge").window


@pytest.mark.parametrize("item", ["train.steps", "=3", "a.b.c=1", "train.=3", ".steps=3"])
def test_an_override_is_written_as_section_key_value(item):
    with pytest.raises(ConfigError, match="section.key=value"):
        load_recipe("bridge", [item])


def test_a_misspelt_override_is_told_like_a_misspelt_key():
    with pytest.raises(ConfigError, match=r"\[train\] stepz: unknown key; did you mean steps"):
        load_recipe("bridge", ["train.stepz=3"])
    with pytest.raises(ConfigError, match="seed is a value, not a section"):
        load_recipe("bridge", ["seed.x=3"])


def test_overrides_leave_the_table_as_it_was():
    table = {"seed": 1, "train": {"steps": 2}}
    assert apply_overrides(table, ["train.steps=9", "seed=8"]) == {"seed": 8, "train": {"steps": 9}}
    assert table == {"seed": 1, "train": {"steps": 2}}


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load_recipe("bridge").train.steps = 3


words = st.text(max_size=6) | st.sampled_from(
    [*Recipe.model_fields, *Pipeline.model_fields, "steps", "frames", "path", "kind", "size", "lr"]
)
plain = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(max_size=8)
)
values = plain | st.lists(plain, max_size=3) | st.dictionaries(words, plain, max_size=3)
tables = st.dictionaries(words, values | st.dictionaries(words, values, max_size=3), max_size=5)


@given(tables)
def test_any_table_is_settings_or_one_config_error(table):
    for build in (recipe_from_table, lambda t, origin: parse(Pipeline, t, origin=origin)):
        try:
            build(table, origin="x.toml")
        except ConfigError as error:
            assert str(error).startswith("x.toml: ")


@given(st.lists(st.text(max_size=12) | st.sampled_from(["train.steps=3", "seed=-1", "name=x"])))
def test_any_overrides_are_settings_or_one_config_error(items):
    with contextlib.suppress(ConfigError):
        load_recipe("bridge", items)
