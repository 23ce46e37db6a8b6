"""Actions in words: what every word means, that nothing else passes, and where a mistake stands."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos_wds.data.actions import ActionContract
from cosmos_wds.errors import ConfigError
from cosmos_wds.rollout.script import MOST_ACTIONS, UNITS, read_script, start_levels

POSE = ActionContract()
JOINTS = ActionContract(
    signal="command",
    frame="recorded",
    names=("shoulder-pan.pos", "elbow", "elbow_2", "gripper"),
    units=("deg", "rad", "1", "deg"),
    scale=(0.02,) * 4,
    euler="",
    gripper="",
)


def rows(script, contract=POSE, **more):
    return read_script(script, contract, **more)


def test_the_example_of_the_manual():
    expected = np.zeros((10, 7))
    expected[:5, 0], expected[:5, 6] = 0.02, 1.0  # the gripper is open at first
    expected[6, 2], expected[6, 5] = 0.05, math.radians(-10)
    np.testing.assert_allclose(rows("x+0.02*5, close, z+5cm yaw-10deg, stay*3"), expected)


def test_a_level_stays_and_a_pose_does_not():
    found = rows("gripper 0.5 x-1mm, stay, gripper-0.1*3, gripper=1, gripper=0.25")
    np.testing.assert_allclose(found[:, 6], [0.5, 0.5, 0.4, 0.3, 0.2, 1.0, 0.25])
    np.testing.assert_allclose(found[:, 0], [-0.001, 0, 0, 0, 0, 0, 0])


def test_levels_start_where_they_are_told_and_poses_never_drift():
    state = np.array([0.3, 0.1, 0.2, 1.0, -1.0, 2.0, 0.125])
    np.testing.assert_array_equal(rows("stay", levels=state), [[0] * 6 + [0.125]])
    np.testing.assert_array_equal(rows("stay"), [[0] * 6 + [1.0]])


def test_names_of_the_contract():
    """With dots and dashes, and one the beginning of another."""
    found = rows("shoulder-pan.pos=30 elbow+10deg, elbow_2-2*2, shoulder-pan.pos-3rad", JOINTS)
    ten = math.radians(10)
    expected = [[30, ten, 0, 0], [30, ten, -2, 0], [30, ten, -4, 0]]
    expected += [[30 - math.degrees(3), ten, -4, 0]]
    np.testing.assert_allclose(found, expected)
    assert list(start_levels(JOINTS)) == [0] * 4


@pytest.mark.parametrize(
    "script, message",
    [
        ("", "'' at character 1: a step without words"),
        ("x+1,", "'' at character 5: a step without words"),
        ("x+1,, y+1", "a step without words"),
        ("*3", "a step without words"),
        ("x+1, yaq-10deg", "'yaq-10deg' at character 6: no such dimension; did you mean yaw?"),
        ("stay  ww+3", "'ww\\+3' at character 7: .* known are x y z .* gripper open close stay"),
        ("opn", "did you mean open?"),
        ("x", "'x' at character 1: write it as x\\+0.02"),
        ("roll+", "write it as roll-10deg"),
        ("gripper", "write it as gripper=0.5"),
        ("x + 2", "'x' at character 1: write it as x\\+0.02"),
        ("x+-2", "write it as x\\+0.02"),
        ("x=2", "x moves by so much: write x\\+0.02"),
        ("x 2", "'x=2' .*x moves by so much"),
        ("x+2deg", "'deg' is no unit of x: m, cm, mm"),
        ("yaw+2cm", "'cm' is no unit of yaw: rad, deg"),
        ("gripper=2cm", "'cm' is no unit of gripper: no unit"),
        ("x+2parsec", "'parsec' is no unit of x"),
        ("x+1e400", "too large a number"),
        ("x+nan", "write it as"),
        ("x+1 x-1", "'x-1' at character 5: x comes twice in one step"),
        ("open close", "gripper comes twice"),
        ("gripper=1.5", "gripper 1.5: 0 is closed, 1 open"),
        ("stay, close, gripper-0.1", "'gripper-0.1' at character 14: gripper -0.1"),
        ("gripper-0.3*4", "gripper -0.2"),
        ("x+1*0", "after \\* stands a whole number"),
        ("x+1*2.5", "after \\* stands a whole number"),
        ("x+1*", "after \\* stands a whole number"),
        ("x+1*2*3", "after \\* stands a whole number"),
        ("x+1*-2", "after \\* stands a whole number"),
        (f"x+1, stay*{MOST_ACTIONS}", "more than 100000 actions"),
        ("stay*999999999", "more than 100000 actions"),
    ],
)
def test_mistakes_name_word_and_place(script, message):
    with pytest.raises(ConfigError, match=message) as error:
        rows(script)
    assert "\n" not in str(error.value) and "script " in str(error.value)


def test_words_that_a_contract_does_not_have():
    with pytest.raises(ConfigError, match="no gripper from 0 to 1"):
        rows("open", JOINTS)
    with pytest.raises(ConfigError, match="no such dimension"):
        rows("x+1", JOINTS)


@st.composite
def steps(draw):
    """A step in words, and what it should give: moves (6,), the gripper or None, and a count."""
    moves, words = np.zeros(6), []
    for column in draw(st.lists(st.integers(0, 5), unique=True, max_size=6)):
        kind = "m" if column < 3 else "rad"
        unit = draw(st.sampled_from(["", *(u for u, (k, _) in UNITS.items() if k == kind)]))
        number = draw(st.floats(0, 1e6, allow_nan=False))
        sign = draw(st.sampled_from("+-"))
        words.append(f"{POSE.names[column]}{sign}{number!r}{unit}")
        moves[column] = (-1 if sign == "-" else 1) * number * UNITS.get(unit, ("", 1.0))[1]
    gripper = draw(st.none() | st.floats(0, 1))
    if gripper is not None:
        form = draw(st.sampled_from(["gripper={!r}", "gripper {!r}"]))
        words.append({0.0: "close", 1.0: "open"}.get(gripper, form.format(gripper)))
    words = draw(st.permutations(words)) or ["stay"]
    count = draw(st.integers(1, 5))
    blank = draw(st.sampled_from([" ", "  ", "\n"]))
    times = draw(st.sampled_from([f"*{count}", f" * {count}"])) if count > 1 else ""
    return blank.join(words) + times, moves, gripper, count


@given(st.lists(steps(), min_size=1, max_size=6), st.sampled_from([",", ", ", " ,\t"]))
@settings(deadline=None)
def test_any_script_gives_what_its_words_say(parts, comma):
    expected, level = [], 1.0
    for _, moves, gripper, count in parts:
        level = level if gripper is None else gripper
        expected += [[*moves, level]] * count
    found = rows(comma.join(text for text, *_ in parts))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@given(st.text(alphabet="xyzawrolpitch gr.,*=+-0123456789e\n", max_size=40))
@settings(deadline=None)
def test_any_text_is_actions_or_one_line(text):
    try:
        found = rows(text)
    except ConfigError as error:
        assert "\n" not in str(error)
    else:
        assert found.shape[1] == 7 and np.isfinite(found).all() and 0 < len(found) <= MOST_ACTIONS
