"""Reading YAML that nobody vouches for."""

import random
import time

import pytest

from pipeline.errors import BadRecipe
from pipeline.parse import parse, parse_value

LAUGHS = "a: &a [x, x]\n" + "".join(f"{chr(c + 1)}: &{chr(c + 1)} [*{chr(c)}, *{chr(c)}]\n" for c in range(ord("a"), ord("z")))

HOSTILE = {
    "billion laughs": LAUGHS,
    "alias to itself": "a: &a [*a]",
    "anchor": "a: &x 1",
    "merge key": "a: {<<: {b: 1}}",
    "tag": "a: !!python/object/apply:os.system [true]",
    "tag of a plain type": "a: !!str 1",
    "non-specific tag": "a: ! 1",
    "tag on a key": "!!str a: 1",
    "directive": "%YAML 1.1\n---\na: 1",
    "directive with a huge number": "%YAML 1." + "9" * 5000 + "\n---\na: 1",
    "200 KB of [": "[" * 200_000,
    "200 KB of [ on lines": "[\n" * 100_000,
    "200 KB of {": "{a: " * 50_000,
    "200 KB of - ": "- " * 100_000,
    "200 KB of ? ": "? " * 100_000,
    "10,000 deep, indented": "\n".join(" " * i + "a:" for i in range(700)) + "\n" + "[" * 9_300,
    "33 deep": "a: " + "[" * 32 + "]" * 32,
    "20,001 values": "a: [" + "1," * 20_001 + "]",
    "20,001 keys": "".join(f"k{i}:\n" for i in range(10_001)),
    "256 KiB and a byte": "a: " + "x" * (256 * 1024 - 2),
    "a scalar of 65 KiB": "a: " + "x" * (65 * 1024),
    "a quoted scalar of 65 KiB": "a: '" + "'' " * (33 * 1024) + "'",
    "a folded scalar of 200 KB": "a: |\n" + " x\n" * 70_000,
    "a huge integer": "a: 1" + "0" * 5000,
    "an integer of 65 bits": "a: 18446744073709551616",
    "a huge float": "a: 1e999",
    "infinity": "a: .inf",
    "not a number": "a: [.nan]",
    "bell": "a: \x07",
    "NUL": b"a: \x00",
    "escape sequence": 'a: "\\e[31m"',
    "half a surrogate": 'a: "\\ud800"',
    "beyond unicode": 'a: "\\UFFFFFFFF"',
    "line separator": "a: 1\u2028b: 2",
    "text turned around": "a: x\u202ey",
    "duplicate keys": "a: 1\nb: 2\na: 3",
    "duplicate keys, quoted": 'a: 1\n"a": 2',
    "duplicate keys, inside": "a: {b: 1, b: 1}",
    "empty": "",
    "only a comment": "# nothing\n",
    "only null": "null",
    "a list at the top": "- a: 1",
    "a word at the top": "hello",
    "two documents": "a: 1\n---\nb: 1",
    "not UTF-8": b"a: \xff\xfe",
    "UTF-16": "a: 1".encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbfa: 1",
    "a list for a key": "? [a, b]\n: 1",
    "a mapping for a key": "{a: 1}: 2",
    "no key": "a: {: 1}",
    "a tab": "a:\n\tb: 1",
    "an open bracket": "a: [1, 2",
    "an open quote": "a: 'x",
    "a broken indentation": "a:\n   b: 1\n  c: 1",
    "two colons": "a: b: c",
    "250 KB of comment": "#\n" * 125_000,
    "250 KB of blanks": " " * 250_000,
    "80,000 directives": "%a\n" * 80_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_input_gets_one_screen_with_a_position_within_a_second(text):
    began = time.process_time()
    with pytest.raises(BadRecipe) as error:
        parse(text, "f.yaml")
    assert time.process_time() - began < 1
    lines = str(error.value).splitlines()
    assert 1 <= len(lines) <= 21
    assert all(line.startswith("f.yaml:") and len(line) <= 400 and line.isprintable() for line in lines[:20])
    assert all(part.isdigit() for part in lines[0].split("  ")[0].split(":")[1:])


@pytest.mark.parametrize("text", ["a: [" + "1," * 19_990 + "]", "a: " + "[" * 31 + "]" * 31, "a: " + "x" * (64 * 1024)])
def test_the_largest_allowed_inputs_are_read_within_a_second(text):
    began = time.process_time()
    parse(text, "f.yaml")
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("written", "value"),
    {
        "1e-3": 0.001, "6.0e-5": 6.0e-5, "1E3": 1000.0, ".5": 0.5, "1.": 1.0, "-0.0": -0.0, "+1.5": 1.5,
        "0": 0, "-7": -7, "+7": 7, "9223372036854775807": 2**63 - 1,
        "true": True, "false": False, "null": None, "": None,
        "True": "True", "yes": "yes", "no": "no", "on": "on", "off": "off", "y": "y", "~": "~", "Null": "Null",
        "010": "010", "0o17": "0o17", "0x1F": "0x1F", "0b1": "0b1", "1_000": "1_000", "1:30": "1:30", "190:20:30": "190:20:30",
        "2026-11-20": "2026-11-20", "2026-11-20T10:00:00Z": "2026-11-20T10:00:00Z", "1e": "1e", "e5": "e5", "-": None, "=": "=",
        "'1'": "1", '"true"': "true", '"null"': "null", "inf": "inf", "nan": "nan", "\u0661": "\u0661", "1.2.3": "1.2.3",
    }.items(),
)  # fmt: skip
def test_scalars_read_as_in_yaml_1_2(written, value):
    found = parse(f"a: {written}" if written != "-" else "a: null", "f")[0]["a"]
    assert found == value and type(found) is type(value)


def test_keys_are_text_whatever_they_look_like():
    assert parse("5: a\ntrue: b\nnull: c\n1e3: d\nno: e", "f")[0] == {"5": "a", "true": "b", "null": "c", "1e3": "d", "no": "e"}


def test_marks_tell_where_values_and_keys_stand():
    text = "name: x\nstages:\n  teacher:\n    fit: {steps: 5, crop: [1, 2]}\n"
    data, marks = parse(text, "f")
    assert data == {"name": "x", "stages": {"teacher": {"fit": {"steps": 5, "crop": [1, 2]}}}}
    assert marks["stages", "teacher", "fit", "steps"] == (4, 18, 4, 11)
    assert marks["stages", "teacher", "fit", "crop", 1] == (4, 31, 4, 31)
    assert marks["stages", "teacher"] == (4, 5, 3, 3)
    assert marks[()][:2] == (1, 1)


def test_all_that_is_wrong_with_the_text_is_said_together():
    with pytest.raises(BadRecipe) as error:
        parse("a: &x 1\nb: *x\na: .nan\n<<: {c: !!int 1}", "f")
    assert [line.split("  ")[0] for line in str(error.value).splitlines()] == ["f:1:4", "f:2:4", "f:3:1", "f:3:4", "f:4:1", "f:4:9"]


def test_a_duplicate_key_names_the_first():
    with pytest.raises(BadRecipe, match=r'^f:3:1  "a" stands here again, first on line 1: keep one$'):
        parse("a: 1\nb: 2\na: 3", "f")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("no", "no"),
        ("a b", "a b"),
        ("[1, [2, x]]", [1, [2, "x"]]),
        ("{kind: ce, n: {}}", {"kind": "ce", "n": {}}),
        ("'5'", "5"),
    ],
)
def test_the_right_side_of_set_is_a_value_of_yaml(text, value):
    assert parse_value(text) == value


@pytest.mark.parametrize("text", ["", "[1,", "&a 1", "{a: 1, a: 2}", ".inf", "!!str x", "'"])
def test_a_bad_value_is_told_without_a_position_of_its_own(text):
    with pytest.raises(BadRecipe, match=r"^--set a=\.\.\.  \S"):
        parse_value(text, "--set a=...")


PIECES = [
    *"[]{},:-?&*!|>'\"%@`#<~ \n\t\\.=0a\u00e9",
    "- ",
    ": ",
    "? ",
    "<<: ",
    "\n  ",
    "---\n",
    "...\n",
    "a: ",
    "!!",
    "%YAML ",
    "\\x",
    "1e9",
    "\r",
]


def test_any_text_gives_data_or_a_clear_error():
    chance = random.Random(0)
    good = 0
    for _ in range(3000):
        text = "".join(chance.choices(PIECES, k=chance.randrange(40)))
        try:
            data, marks = parse(text, "f")
            assert isinstance(data, dict) and all(isinstance(m.line, int) for m in marks.values())
            good += 1
        except BadRecipe as error:
            assert str(error).startswith("f:"), text
    assert good  # the pieces do make recipes now and then


def test_any_bytes_give_data_or_a_clear_error():
    chance = random.Random(1)
    for _ in range(500):
        with pytest.raises(BadRecipe, match=r"^f:\d+:\d+  "):
            parse(b"a: [" + chance.randbytes(30), "f")


def test_a_pattern_without_quotes_is_told_to_take_them():
    with pytest.raises(BadRecipe, match=r"put text that begins with \{ in quotes"):
        parse_value("{split}/images/{stem}.jpg", "--set images")
