"""Recipes gone wrong in the ways a hand, an editor, a disk or malice finds: seeded mutators of text, of data and of arguments."""

import copy
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from oddities import NUMBERS, ODD, RAW, VALUES, WORDS, YAML
from slips import spelled_out, written

KIB = 1024


@dataclass(frozen=True)
class Mutant:
    """A recipe file and the arguments beside it. `how` names what was done."""

    how: str
    content: bytes
    arguments: tuple[str, ...] = ()


def mutant(chance: Random, seeds: list[str], parse: Callable[[str], dict]) -> Mutant:
    """One of the mutators below on one of the seeds; now and then two, one after the other."""
    text = chance.choice(seeds)
    kind = chance.choices(("text", "data", "arguments", "large"), (40, 45, 12, 3))[0]
    if kind == "data":
        return _of_data(chance, parse(text))
    if kind == "arguments":
        name, make = chance.choice(list(ARGUMENTS.items()))
        return Mutant(name, text.encode(), tuple(make(chance, parse(text))))
    table = TEXT if kind == "text" else LARGE
    name, change = chance.choice(list(table.items()))
    content = _bytes(change(chance, text))
    if chance.random() < 0.15:
        name, content = f"{name}, cut", content[: chance.randrange(len(content) + 1)]
    return Mutant(name, content)


# -- of text


def _cut(chance: Random, text: str) -> bytes:
    return text.encode()[: chance.randrange(len(text))]


def _bits(chance: Random, text: str) -> bytes:
    data = bytearray(text.encode())
    for _ in range(chance.choice((1, 1, 2, 5, 20, 200))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def _raw(chance: Random, text: str) -> bytes:
    data = text.encode()
    for _ in range(chance.randrange(1, 4)):
        data = _put(chance, data, chance.choice(RAW))
    return data


def _odd(chance: Random, text: str) -> str:
    for _ in range(chance.choice((1, 1, 2, 8))):
        text = _put(chance, text, chance.choice(ODD))
    return text


def _letters(chance: Random, text: str) -> str:
    letters = list(text)
    for _ in range(chance.choice((1, 2, 3, 10))):
        i = chance.randrange(len(letters) - 1)
        what = chance.randrange(4)
        if what == 0:
            letters[i] = ""
        elif what == 1:
            letters[i] = chance.choice(text)
        elif what == 2:
            letters[i] += chance.choice(text)
        else:
            letters[i], letters[i + 1] = letters[i + 1], letters[i]
    return "".join(letters)


def _yaml(chance: Random, text: str) -> str:
    for _ in range(chance.choice((1, 1, 2, 4))):
        place = chance.choice([m.start() for m in re.finditer(r"\b|$", text)])
        text = text[:place] + chance.choice(YAML) + text[place:]
    return text


def _aliased(chance: Random, text: str) -> str:
    """Anchors, aliases, merge keys where a value stands."""
    places = [m.end() for m in re.finditer(r": ", text)]
    one, two = sorted(chance.sample(places, 2))
    return text[:one] + "&a " + text[one:two] + chance.choice(("*a ", "{<<: *a} ", "!!set ", "!!binary ", "&a &b ")) + text[two:]


def _number(chance: Random, text: str) -> str:
    numbers = list(re.finditer(r"(?<=[ \[])-?\d[\d.e-]*(?=[,\]}\n])", text))
    for match in reversed(chance.sample(numbers, min(len(numbers), chance.choice((1, 1, 2))))):
        text = text[: match.start()] + chance.choice(NUMBERS) + text[match.end() :]
    return text


def _word(chance: Random, text: str) -> str:
    match = chance.choice(list(re.finditer(r"[\w./-]+", text)))
    word = chance.choice(WORDS)
    return text[: match.start()] + (json.dumps(word) if chance.random() < 0.7 else word) + text[match.end() :]


def _lines(chance: Random, text: str) -> str:
    lines = text.splitlines(keepends=True)
    for _ in range(chance.choice((1, 1, 2, 5))):
        i, j = chance.randrange(len(lines)), chance.randrange(len(lines))
        what = chance.randrange(6)
        if what == 0:
            lines[i] = ""
        elif what == 1:  # duplicate keys
            lines.insert(j, lines[i])
        elif what == 2:
            lines[i], lines[j] = lines[j], lines[i]
        elif what == 3:
            lines[i] = " " * chance.choice((1, 2, 4, 40)) + lines[i]
        elif what == 4:
            lines[i] = lines[i][chance.randrange(1, 4) :]
        else:
            lines[i] = lines[i].rstrip("\n") + chance.choice((" ", " #", "#", " \\", ",", ":", " :x")) + "\n"
    return "".join(lines)


def _breaks(chance: Random, text: str) -> str:
    return text.replace("\n", chance.choice(("\r\n", "\r", "\x85", "\u2028", "\n\n", "\n\t", "\t\n", "")))


def _tabs(chance: Random, text: str) -> str:
    return re.sub(r"^ +", lambda m: "\t" * len(m[0]) if chance.random() < 0.5 else m[0], text, flags=re.M)


def _whole(chance: Random, text: str) -> bytes:
    """Nothing to do with the recipe any more."""
    nothing = b"", b"\n", b" ", b"#", b"null", b"[]", b"{}", b"x", b"---", b"--- {}"
    encoded = b"\xef\xbb\xbf" + text.encode(), text.encode("utf-16"), text.encode("utf-32"), text[::-1].encode(), text.upper().encode()
    return chance.choice((*nothing, *encoded, chance.randbytes(chance.randrange(1, 300))))


def _twice(chance: Random, text: str) -> str:
    return text + chance.choice(("", "---\n", "...\n", "\n--- \n", "# ")) + text


def _spliced(chance: Random, text: str) -> str:
    one, two = sorted(chance.sample(range(len(text)), 2))
    return text[: chance.randrange(len(text))] + text[one:two] + text[chance.randrange(len(text)) :]


TEXT: dict[str, Callable[[Random, str], str | bytes]] = {
    "cut short": _cut,
    "bits flipped": _bits,
    "bytes that are no text": _raw,
    "odd characters": _odd,
    "letters": _letters,
    "signs of YAML": _yaml,
    "anchors and aliases": _aliased,
    "numbers": _number,
    "words": _word,
    "lines": _lines,
    "line breaks": _breaks,
    "tabs": _tabs,
    "another file": _whole,
    "twice": _twice,
    "spliced": _spliced,
}


# -- of what is large


def _value(chance: Random, text: str, value: str) -> str:
    place = chance.choice([m.end() for m in re.finditer(r": ", text)])
    return text[:place] + value + " " + text[place:]


def _laughs(chance: Random, text: str) -> str:
    return "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]\n" for i in range(chance.randrange(2, 30))) + text


LARGE: dict[str, Callable[[Random, str], str | bytes]] = {
    "a deep list": lambda c, t: _value(c, t, "[" * c.choice((31, 33, 200, 5000, 200_000))),
    "a deep list that closes": lambda c, t: _value(c, t, "[" * (n := c.choice((20, 29, 900))) + "]" * n),
    "a deep mapping": lambda c, t: _value(c, t, "{a: " * c.choice((29, 33, 1000, 50_000))),
    "a long word": lambda c, t: _value(c, t, "x" * c.choice((4000, 64 * KIB, 64 * KIB + 1, 250 * KIB))),
    "a long quoted word": lambda c, t: _value(c, t, '"' + "\\n" * c.choice((4000, 100 * KIB)) + '"'),
    "a long list": lambda c, t: _value(c, t, "[" + "1, " * c.choice((1000, 9000, 19_900, 60_000)) + "1]"),
    "a long mapping": lambda c, t: _value(c, t, "{" + "".join(f"k{i}: 1, " for i in range(c.choice((1000, 9000, 20_000)))) + "}"),
    "many keys": lambda c, t: t + "".join(f"k{i}: 1\n" for i in range(c.choice((1000, 9000, 20_000)))),
    "a long comment": lambda c, t: t + "#" * (256 * KIB - len(t.encode()) + c.choice((-1, 0, 1))),
    "ten megabytes": lambda c, t: t.encode() * (10 * KIB * KIB // len(t.encode())),
    "many blanks": lambda c, t: t + c.choice((" ", "\n", "\t", "\r", "# \n", "---\n")) * 200_000,
    "laughs": _laughs,
}


# -- of data


def _of_data(chance: Random, data: dict) -> Mutant:
    data, names = copy.deepcopy(data), []
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        name, change = chance.choice(list(DATA.items()))
        change(chance, data)
        names.append(name)
    if chance.random() < 0.5 and set(data) <= {"name", "stages"} and isinstance(data.get("stages"), dict):
        text = spelled_out({"name": written(data.get("name")), "stages": data["stages"]})
    else:
        text = json.dumps(data, ensure_ascii=chance.random() < 0.5, indent=chance.choice((None, 1)), allow_nan=True)
    return Mutant(" and ".join(dict.fromkeys(names)), _bytes(text))


def places(data: Any) -> Iterator[tuple[Any, Any]]:
    """(holder, key) of every value inside."""
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield data, key
        yield from places(value)


def _place(chance: Random, data: dict) -> tuple[Any, Any]:
    return chance.choice(list(places(data)) or [(data, "name")])


def _swap_type(chance: Random, data: dict) -> None:
    holder, key = _place(chance, data)
    holder[key] = copy.deepcopy(chance.choice(VALUES))


def _swap_word(chance: Random, data: dict) -> None:
    texts = [(h, k) for h, k in places(data) if isinstance(h[k], str)]
    if texts:
        holder, key = chance.choice(texts)
        holder[key] = chance.choice((*WORDS, *ODD))


def _refer(chance: Random, data: dict) -> None:
    """One word of the recipe where another stood: later stages, the stage itself, another kind of artifact, cycles."""
    texts = [(h, k) for h, k in places(data) if isinstance(h[k], str) and k != "name"]
    if texts:
        holder, key = chance.choice(texts)
        words = [h[k] for h, k in texts] + [k for k in data["stages"]] if isinstance(data.get("stages"), dict) else ["data"]
        holder[key] = chance.choice(words)


def _drop(chance: Random, data: dict) -> None:
    holder, key = _place(chance, data)
    if isinstance(holder, list) or key in holder:
        del holder[key]


def _add(chance: Random, data: dict) -> None:
    holders = [h for h in (data, *(h[k] for h, k in places(data))) if isinstance(h, dict | list)]
    holder = chance.choice(holders)
    value = copy.deepcopy(chance.choice(VALUES))
    if isinstance(holder, list):
        holder.insert(chance.randrange(len(holder) + 1), value)
    else:
        holder[chance.choice(WORDS)] = value


def _rename(chance: Random, data: dict) -> None:
    keyed = [(h, k) for h, k in places(data) if isinstance(h, dict)]
    if keyed:
        holder, key = chance.choice(keyed)
        renamed = chance.choice((*WORDS, *ODD, *(k for _, k in keyed)))
        items = [(renamed if k == key else k, v) for k, v in holder.items()]
        holder.clear()
        holder.update(items)


def _shuffle(chance: Random, data: dict) -> None:
    """Stages, or whatever else a mapping or a list holds, in another order."""
    holder = data["stages"] if isinstance(data.get("stages"), dict) and chance.random() < 0.7 else _place(chance, data)[0]
    items = list(holder.items()) if isinstance(holder, dict) else list(holder)
    chance.shuffle(items)
    holder.clear()
    holder.update(items) if isinstance(holder, dict) else holder.extend(items)


def _wrap(chance: Random, data: dict) -> None:
    holder, key = _place(chance, data)
    for _ in range(chance.choice((1, 1, 2, 10, 29, 40))):
        holder[key] = [holder[key]] if chance.random() < 0.5 else {chance.choice(("kind", "a", "stages")): holder[key]}


def _unwrap(chance: Random, data: dict) -> None:
    """A list for a mapping, keys for a mapping, one element for a list."""
    holders = [(h, k) for h, k in places(data) if isinstance(h[k], dict | list) and h[k]]
    if holders:
        holder, key = chance.choice(holders)
        inner = holder[key]
        values = list(inner.values()) if isinstance(inner, dict) else inner
        holder[key] = chance.choice((values, values[0], list(inner), str(inner), dict(enumerate(map(str, values)))))


def _exchange(chance: Random, data: dict) -> None:
    (one, a), (two, b) = _place(chance, data), _place(chance, data)
    if a in one if isinstance(one, dict) else True:
        one[a], two[b] = copy.deepcopy(two[b]), copy.deepcopy(one[a])


def _profile(chance: Random, data: dict) -> None:
    entries = {}
    for _ in range(chance.choice((1, 1, 3, 20))):
        entries[_path(chance, data)] = copy.deepcopy(chance.choice(VALUES))
    profiles = data.setdefault("profiles", {})
    if isinstance(profiles, dict):
        profiles[chance.choice(("cpu", "gpu", "none", "auto", *WORDS))] = entries if chance.random() < 0.9 else chance.choice(VALUES)


DATA: dict[str, Callable[[Random, dict], None]] = {
    "another type": _swap_type,
    "another word": _swap_word,
    "wrong references": _refer,
    "something left out": _drop,
    "something added": _add,
    "a key renamed": _rename,
    "another order": _shuffle,
    "wrapped": _wrap,
    "unwrapped": _unwrap,
    "exchanged": _exchange,
    "profiles": _profile,
}


# -- of arguments


def _path(chance: Random, data: dict) -> str:
    """A dotted path into the recipe, as it is or with something wrong in it."""
    steps, node = [], data
    while isinstance(node, dict | list) and node and (not steps or chance.random() < 0.85):
        step = chance.choice(list(node)) if isinstance(node, dict) else chance.randrange(len(node))
        steps.append(str(step))
        node = node[step]
    wrong = chance.randrange(6)
    if wrong == 0:
        steps[chance.randrange(len(steps))] = chance.choice((*WORDS, *ODD))
    elif wrong == 1:
        steps += chance.choice((["x"], [""], ["0"], ["-1"], ["9" * 30], ["a"] * 2000))
    elif wrong == 2:
        steps.pop(chance.randrange(len(steps)))
    return ".".join(steps)


def _set(chance: Random, data: dict) -> Iterator[str]:
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        what = chance.randrange(4)
        if what == 0:
            value = chance.choice((*WORDS, *ODD, *NUMBERS))
        elif what == 1:
            value = chance.choice(YAML) + written(chance.choice(VALUES))
        elif what == 2:
            value = chance.choice(("[" * 50, "[" * 20_000, "{a: " * 50, "x" * 70_000, "&a [*a]", "{<<: {a: 1}}", "{a: 1, a: 2}", "'"))
        else:
            value = written(chance.choice(VALUES))
        text = _path(chance, data) + chance.choice(("=", "=", "=", "=", "", " = ", "==", ":")) + value
        yield "--set=" + text.replace("\0", "")  # no argument of a process can hold a NUL


def _profiles(chance: Random, data: dict) -> Iterator[str]:
    yield "--profile=" + chance.choice((*WORDS, *ODD, "cpu", "none", "auto", "cpuu")).replace("\0", "")


ARGUMENTS: dict[str, Callable[[Random, dict], Iterator[str]]] = {"--set": _set, "--profile": _profiles}


def _put(chance: Random, text: Any, what: Any) -> Any:
    place = chance.randrange(len(text) + 1)
    return text[:place] + what + text[place:]


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
