"""Reads YAML that nobody vouches for: plain data and where each value stands, or one clear error, within a second.

PyYAML's pure-Python scanner and parser give events; data is built from these here, so that no tag, alias or constructor
is ever obeyed. Scalars read as in YAML 1.2: `1e-3` is a number, `no` is text, `010` and `2026-01-01` are text.
"""

import re
from typing import Any, NamedTuple

import yaml
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.scanner import Scanner

from .errors import BadRecipe
from .problems import Problem, shown, together

BYTES = 256 * 1024
DEPTH = 32
NODES = 20_000
SCALAR = 64 * 1024  # characters
INTEGER = 2**63  # beyond this, other readers of JSON and YAML no longer agree

Path = tuple[str | int, ...]


class Mark(NamedTuple):
    """Where a value stands, and where its key stands (for an element of a list, the element itself). Counted from 1."""

    line: int
    column: int
    key_line: int
    key_column: int


def parse(text: str | bytes, name: str) -> tuple[dict[str, Any], dict[Path, Mark]]:
    """The mapping a file holds, and the marks of every value in it; `name` is what errors call the file."""
    data, marks = _Reading(_decoded(text, name), name).document()
    if not isinstance(data, dict):
        raise _bad(name, *marks[()][:2], f"a mapping of keys to values was expected, {_kind(data)} was found")
    return data, marks


def parse_value(text: str, name: str = "value") -> Any:
    """What stands right of the = in --set: a number, a word, or YAML in brackets."""
    if not text.strip():
        raise BadRecipe(f"{name}  nothing stands here: write a value, or null")
    try:
        return _Reading(_decoded(text, name), name).document()[0]
    except BadRecipe as error:  # a position within one argument helps nobody
        raise BadRecipe(re.sub(rf"^{re.escape(name)}:\d+:\d+  ", f"{name}  ", str(error), flags=re.M)) from None


def _decoded(text: str | bytes, name: str) -> str:
    if isinstance(text, str):
        text = text.encode("utf-8", "surrogatepass")
    if len(text) > BYTES:
        raise _bad(name, 1, 1, f"longer than {BYTES // 1024} KiB, which is too long")
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as error:
        line, column = _position(text[: error.start].decode("utf-8", "replace"))
        raise _bad(name, line, column, f"byte 0x{text[error.start]:02x} is not UTF-8: save the file as UTF-8") from None
    if decoded.startswith("\ufeff"):
        raise _bad(name, 1, 1, 'a byte order mark was found: save the file as "UTF-8 without BOM"')
    if hidden := _control.search(decoded):
        raise _bad(name, *_position(decoded[: hidden.start()]), f"an invisible character, U+{ord(hidden[0]):04X}: remove it")
    return decoded


class _Events(Reader, Scanner, Parser):
    """PyYAML up to events, in Python only: the C parser crashes on hostile input."""

    def __init__(self, text: str):
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)


class _Frame:
    """A collection that is being filled."""

    def __init__(self, into: dict | list, path: Path):
        self.into, self.path = into, path
        self.key: str | None = None  # of a mapping: the key read last, whose value comes next
        self.key_at = (0, 0)
        self.skipped = 0  # keeps the values of wrong keys apart


class _Reading:
    def __init__(self, text: str, name: str):
        self.text, self.name = text, name
        self.problems: list[Problem] = []
        self.marks: dict[Path, Mark] = {}
        self.stack: list[_Frame] = []
        self.nodes = 0
        self.root: Any = None

    def document(self) -> tuple[Any, dict[Path, Mark]]:
        try:
            self._read()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self._wrong(mark, _plain_words(error))
        except (yaml.YAMLError, ValueError, OverflowError) as error:  # numbers in escapes and directives that Python refuses
            self.problems.append(Problem(f"{self.name}:1:1", 1, 1, f"not readable as YAML: {error}"))
        if self.problems:
            raise together(self.problems)
        return self.root, self.marks

    def _read(self) -> None:
        events = _Events(self.text)
        documents = 0
        while events.check_event():
            event = events.get_event()
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if event.version or event.tags:
                    self._wrong(event.start_mark, "a % directive: only plain YAML 1.2 is read, remove the line")
                if documents > 1:
                    return self._wrong(event.start_mark, "a second document starts here: a file holds one, remove the ---")
            elif isinstance(event, yaml.CollectionEndEvent):
                self.stack.pop()
            elif isinstance(event, yaml.NodeEvent) and not self._node(event):
                return
        if not documents:
            raise _bad(self.name, 1, 1, "the file is empty")

    def _node(self, event: yaml.NodeEvent) -> bool:
        """Whether to read on after this node."""
        self.nodes += 1
        if self.nodes > NODES or (len(self.stack) >= DEPTH and isinstance(event, yaml.CollectionStartEvent)):
            # Stopping here also keeps PyYAML fast: its scanner's time grows with the square of open brackets.
            what = f"more than {NODES} values" if self.nodes > NODES else f"nested deeper than {DEPTH} levels"
            self._wrong(event.start_mark, what)
            return False
        if isinstance(event, yaml.AliasEvent):
            self._wrong(event.start_mark, f"an alias, *{event.anchor}: write the value out")
        elif event.anchor is not None:
            self._wrong(event.start_mark, f"an anchor, &{event.anchor}: remove it and write values out where they are needed")
        if getattr(event, "tag", None) is not None:
            self._wrong(event.start_mark, f"a tag, {shown(event.tag)}: only plain values are read, remove it")
        frame = self.stack[-1] if self.stack else None
        if frame and isinstance(frame.into, dict) and frame.key is None:
            self._key(frame, event)
        else:
            self._value(frame, event)
        return True

    def _key(self, frame: _Frame, event: yaml.NodeEvent) -> None:
        key = None
        if isinstance(event, yaml.CollectionStartEvent):
            self._wrong(event.start_mark, "a key must be one word, not a list or a mapping")
            self.stack.append(_Frame([] if isinstance(event, yaml.SequenceStartEvent) else {}, (*frame.path, "?")))
        elif isinstance(event, yaml.ScalarEvent):
            key = self._text(event)
            if not key:
                self._wrong(event.start_mark, "an empty key")
            elif key == "<<" and event.implicit[0]:
                self._wrong(event.start_mark, "a merge key, <<: write the keys out")
            elif key in frame.into:
                first = self.marks[(*frame.path, key)]
                self._wrong(event.start_mark, f"{shown(key)} stands here again, first on line {first.key_line}: keep one")
        if not key or key in frame.into:
            frame.skipped += 1
            key = f"?{frame.skipped}"  # there is a problem already, so this never gets out
        frame.key, frame.key_at = key, _at(event.start_mark)

    def _value(self, frame: _Frame | None, event: yaml.NodeEvent) -> None:
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event)
        else:
            value = {} if isinstance(event, yaml.MappingStartEvent) else [] if isinstance(event, yaml.SequenceStartEvent) else None
        path = self._attach(frame, value, _at(event.start_mark))
        if isinstance(event, yaml.CollectionStartEvent):
            self.stack.append(_Frame(value, path))

    def _attach(self, frame: _Frame | None, value: Any, at: tuple[int, int]) -> Path:
        if frame is None:
            self.root, path, key_at = value, (), at
        elif isinstance(frame.into, list):
            path, key_at = (*frame.path, len(frame.into)), at
            frame.into.append(value)
        else:
            path, key_at = (*frame.path, frame.key), frame.key_at
            frame.into[frame.key] = value
            frame.key = None
        self.marks[path] = Mark(*at, *key_at)
        return path

    def _scalar(self, event: yaml.ScalarEvent) -> Any:
        text = self._text(event)
        if not event.implicit[0]:  # quoted, or a block of text
            return text
        if text in _constants:
            return _constants[text]
        if _integer.fullmatch(text):
            if len(text) < 21 and -INTEGER <= int(text) < INTEGER:
                return int(text)
            self._wrong(event.start_mark, f"{shown(text, 24)} is too large: a whole number has at most 63 bits")
        elif _float.fullmatch(text):
            number = float(text)
            if abs(number) != float("inf"):
                return number
            self._wrong(event.start_mark, f"{shown(text, 24)} is too large for a number")
        elif _not_finite.fullmatch(text):
            self._wrong(event.start_mark, f"{text} is not a number one can use here: write a finite one")
        return text

    def _text(self, event: yaml.ScalarEvent) -> str:
        if len(event.value) > SCALAR:
            self._wrong(event.start_mark, f"a text longer than {SCALAR // 1024} KiB")
        if hidden := _control.search(event.value):  # written as an escape
            self._wrong(event.start_mark, f"an invisible character, U+{ord(hidden[0]):04X}, written as an escape: remove it")
        return event.value

    def _wrong(self, mark: Any, text: str) -> None:
        line, column = _at(mark)
        self.problems.append(Problem(f"{self.name}:{line}:{column}", line, column, text))


# Control characters, line breaks that only some readers honour, marks that turn the direction of text, half surrogates.
_control = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]")
_constants = {"": None, "null": None, "true": True, "false": False}
_integer = re.compile(r"[-+]?(0|[1-9][0-9]*)", re.A)
_float = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.A)
_not_finite = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

_advice = (  # words of PyYAML's problem -> what to do
    ("found character '\\t'", "a tab: indent with spaces"),
    ("that cannot start any token", "a character with which no value can start: put the text in quotes"),
    ("mapping values are not allowed", 'a ":" does not fit here: check the indentation, and put text that holds ": " in quotes'),
    ("could not find expected ':'", 'a key without ":" after it, or a line that is not indented like its neighbours'),
    ("expected <block end>", "the indentation does not match the lines above"),
    ("expected ',' or ']'", 'a "," or "]" is missing'),
    ("expected ',' or '}'", 'a "," or "}" is missing'),
    ("unexpected end of stream", "a quote is opened and never closed"),
    (
        "expected '<document start>'",
        "text after the end of a value, or a line that starts with %: remove it, or put text that begins with { in quotes",
    ),
    ("but found '<stream end>'", "the text ends inside brackets"),
)


def _plain_words(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or error.context or "?"
    known = next((advice for words, advice in _advice if words in problem), None)
    opened = ""
    if error.context_mark and error.problem_mark and error.context_mark.line != error.problem_mark.line:
        opened = f" (what it belongs to starts on line {error.context_mark.line + 1})"
    return (known or f"not readable as YAML: {problem}") + opened


def _kind(data: Any) -> str:
    return "a list" if isinstance(data, list) else "nothing" if data is None else shown(data)


def _at(mark: Any) -> tuple[int, int]:
    return mark.line + 1, mark.column + 1


def _position(before: str) -> tuple[int, int]:
    """Line and column of what follows this text."""
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def _bad(name: str, line: int, column: int, text: str) -> BadRecipe:
    return together([Problem(f"{name}:{line}:{column}", line, column, text)])
