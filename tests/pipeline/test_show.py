"""Lines and bars show what they are told, and nothing that they are told steers the terminal or passes for somebody else's line."""

import io
import time

import pytest

from pipeline import show
from pipeline.show import Bars, Lines, discreet, plain

HOSTILE = "gate\x1b[2J\x1b]0;title\x07\nengine       engine    made\u202e[red]x[/red][/]:smile:"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("kind", [Lines, Bars])
def test_hostile_names_and_messages_stay_texts(capsys, monkeypatch, kind):
    monkeypatch.setattr(Lines, "EVERY", -1.0)  # seconds
    shown = kind()
    shown.say(HOSTILE, stage=HOSTILE)
    shown.begin(HOSTILE, "train")
    shown.progress(HOSTILE, 1, 2, {HOSTILE: 0.5})
    shown.end(HOSTILE, "train", "failed", 1.0, HOSTILE)
    shown.close()
    said = capsys.readouterr().out
    assert "\x1b" not in said and "\u202e" not in said and "\x07" not in said
    assert "\nengine " not in said and "[red]x[/red][/]:smile:" in said


def test_further_lines_of_a_message_stand_indented(capsys):
    Lines().say("first\nsecond", stage="teacher")
    assert capsys.readouterr().out == "  teacher: first\n    second\n"


def test_bars_are_drawn_on_a_terminal_while_all_else_is_made_plain(monkeypatch):
    monkeypatch.setattr("sys.stdout", out := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with discreet({"A_TOKEN": "s3same-open-1"}):
        shown = show.choose()
        assert isinstance(shown, Bars)
        shown.begin("teacher", "train")
        shown.progress("teacher", 1, 2, {"loss": 0.5})
        time.sleep(0.2)  # bars are drawn ten times a second
        shown.close()
        print("open with s3same-open-1\x1b[31m")
    drawn, _, printed = out.getvalue().rpartition("open with ")
    assert "\x1b[" in drawn and "teacher" in drawn and "loss 0.5" in drawn and printed == "***\n"


def test_a_narrow_terminal_shortens_the_bar_and_no_number(monkeypatch):
    drawn = _bar(monkeypatch, columns=60, done=68)
    assert "68/1500 0:00:00 left -:--:--   loss 4.979  ms 38.5" in drawn and "\u2026" not in drawn


def test_nothing_is_said_to_be_left_while_nobody_knows_how_much(monkeypatch):
    assert "left" not in _bar(monkeypatch, columns=80, done=None) and "left" in _bar(monkeypatch, columns=80, done=1)


def _bar(monkeypatch, columns: int, done: int | None) -> str:
    """What a terminal of so many columns is sent for a stage that has done so much."""
    monkeypatch.setattr("sys.stdout", out := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = Bars()
    shown.begin("student", "distill")
    if done is not None:
        shown.progress("student", done, 1500, {"loss": 4.979, "ms": 38.5})
    shown._bars.refresh()
    shown.close()
    return plain(out.getvalue())


def test_plain_keeps_every_printable_letter_and_the_line_breaks():
    assert plain("Größe: 4 × 2\nlängs") == "Größe: 4 × 2\nlängs"
    assert plain("\x1b[31mred\x1b[0m \x1b]8;;https://x\x1b\\link\x9b1m\r\x00\u2028") == "red link1m"
