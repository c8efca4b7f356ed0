"""Keeps passwords and tokens out of all that is written: knows their values, strikes them out of texts, finds them in files.

A value counts by the name it goes under. Names are read in words (HF_TOKEN, stages.one.api_key, accessToken): a value of at least
8 characters counts when the last word says secret, and when an earlier one does (API_KEY_PROD) and the value mixes letters and digits.
So KEYBOARD, TOKENIZERS_PARALLELISM and TOKEN_SOURCE=environment do not count. Nor does the path of something that is there
(GOOGLE_APPLICATION_CREDENTIALS says where a secret lies, it is none), nor GPG_KEY, the public fingerprint in every Python image.
Values are seen as they are, as JSON, Python, URLs, hexadecimal and base64 write them; not in what is compressed or cut in pieces.
"""

import base64
import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, unquote

from . import fsops
from .errors import Refused
from .problems import visible

LEAST = 8  # characters; shorter values would strike out harmless words
WORDS = {"TOKEN", "TOKENS", "SECRET", "SECRETS", "KEY", "KEYS", "PASS", "PASSPHRASE", "CREDENTIAL", "CREDENTIALS", "SIG", "SIGNATURE"}
ENDINGS = ("TOKEN", "SECRET", "PASSWORD", "PASSWORDS", "PASSWD", "APIKEY", "ACCESSKEY")  # also where words are glued: PGPASSWORD
PUBLIC = {"GPG_KEY"}
HIDDEN = "***"
ENDS = 16  # characters: a text that was cut to a readable length still shows the beginning of a value, or its end
CHUNK = 1 << 20  # bytes
_URL = re.compile(
    r"""(?<=[a-z0-9])(:/+|%3A%2F%2F)                                               # one stroke where it was taken for a file's path
        (?:([^\s/?#]*|[^\s/?#:]*:(?!\d+[/?#])\S{0,512})(@|%40|[.]{3}|…))?        # user and password, though badly escaped or cut; no port
        ([^\s?#]*?)(?:(\?|%3F)(\S+)|(\#)[^\s=]{0,64}=\S*|(?=[\s?#]|$))           # path, query; a fragment that names a value""",
    re.IGNORECASE | re.VERBOSE,
)


def known(*told: Any) -> dict[str, str]:
    """The secrets at hand, name -> value: those of the environment, and those in what is told (a recipe, arguments)."""
    found = values(os.environ)
    for path, leaf in _leaves(told):
        for name, value in _given_away(path, leaf):
            while found.get(name, value) != value:  # another one was told at the same place
                name += "'"
            found[name] = value
    return found


def values(named: Mapping[str, str]) -> dict[str, str]:
    """Those of the named values that are secret."""
    return {name: value.strip() for name, value in named.items() if _is_secret(name, value.strip())}


def redact(text: str, secrets: Mapping[str, str]) -> str:
    """The text with *** for every secret value, and for what URLs hold besides their address: user, password, query."""
    return _URL.sub(_bare, _struck(text, tuple(secrets.values())))


def redacted(value: Any, secrets: Mapping[str, str]) -> Any:
    """The same for every text inside plain data, keys included."""
    if isinstance(value, str):
        return redact(value, secrets)
    if isinstance(value, Mapping):
        return {redacted(k, secrets): redacted(v, secrets) for k, v in value.items()}
    return [redacted(v, secrets) for v in value] if isinstance(value, list | tuple) else value


def find(path: Path, secrets: Mapping[str, str]) -> str | None:
    """The name of a secret whose value stands in the file."""
    needles = _needles(secrets)
    kept, overlap = b"", max((len(n) for n, _ in needles), default=1) - 1
    with path.open("rb") as file:
        while needles and (chunk := file.read(CHUNK)):
            window = kept + chunk
            if name := next((name for needle, name in needles if needle in window), None):
                return name
            kept = window[-overlap:]
    return None


def require_none(folder: Path, secrets: Mapping[str, str], **told: Any) -> None:
    """Refuses a finished artifact that holds a secret in a file, a file's name, or in what is told of it (facts, beside)."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.is_symlink())
    places = [(redact(file.name, secrets), find(file, secrets) or _named(file.name, secrets)) for file in files]
    places += [(f"what it says of itself ({key})", _named(json.dumps(value), secrets)) for key, value in told.items()]
    for place, name in places:
        if name:
            raise Refused(
                f"{place} holds the value of {redact(name, secrets)}, so nothing was published: keep it out of what the stage writes; "
                "if that value is no secret, give it another name, or run without it"
            )


def scrub(path: Path, secrets: Mapping[str, str]) -> None:
    """Strikes secrets out of a finished log."""
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    if (clean := redact(text, secrets)) != text:
        fsops.replace(path, clean.encode("utf-8", "surrogateescape"))


def _is_secret(name: str, value: str) -> bool:
    words = [word.rstrip("0123456789") for word in re.split(r"[^A-Z0-9]+", name.upper())]
    telling = [word in WORDS or word.endswith(ENDINGS) for word in words if word]
    if not any(telling) or name in PUBLIC or len(value) < LEAST:
        return False
    is_place = os.sep in value and os.path.exists(os.path.expanduser(value))
    return (telling[-1] or _is_mixed(value)) and not is_place


def _is_mixed(value: str) -> bool:
    return bool(re.search("[0-9]", value) and re.search("[A-Za-z]", value))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text in plain data with its dotted path."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, child in value.items():
            yield from _leaves(child, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for child in value:
            yield from _leaves(child, path)


def _given_away(path: str, text: str) -> Iterator[tuple[str, str]]:
    """Secrets that a text gives away by its form: a field or an argument named like one, and what stands in a URL."""
    place = path or "the command line"
    pairs = [(path.rpartition(".")[2], path, text)]
    rest = text
    while argument := re.match(r"([\w.-]+)=(.+)", rest, re.DOTALL):  # --set=stages.one.token=...
        rest = argument[2]
        pairs.append((argument[1], f"{argument[1]} at {place}", rest))
    for url in _URL.finditer(text):
        user, _, password = (url[2] or "").partition(":")
        if password or _is_mixed(user):
            pairs.append(("password", f"a URL's password at {place}", password or user))
        pairs += [(key, f"{key} of a URL at {place}", value) for key, value in parse_qsl(url[6] or "")]
    for name, said, value in pairs:
        yield from ((said, spelled) for spelled in (value.strip(), unquote(value).strip()) if _is_secret(name, spelled))


def _bare(url: re.Match) -> str:
    user, mark = f"{HIDDEN}{url[3]}" if url[3] else "", url[5] or url[7]
    return f"{url[1]}{user}{url[4]}" + (f"{mark}{HIDDEN}" if mark else "")


def _struck(text: str, secrets: tuple[str, ...]) -> str:
    """Every value is struck out, and of one that was cut whatever is left at either end."""
    for way in (1, -1):  # from the left, then mirrored
        heads, spelled = _heads(secrets, way)
        mirrored, parts, at = text[::way], [], 0
        while heads and (found := heads.search(mirrored, at)):
            start = found.start()
            parts += [mirrored[at:start], HIDDEN]
            at = start + max(_alike(whole, mirrored[start : start + len(whole)]) for whole in spelled[found[0]])
        text = ("".join(parts) + mirrored[at:])[::way]
    return text


@lru_cache(maxsize=16)
def _heads(secrets: tuple[str, ...], way: int) -> tuple[re.Pattern | None, dict[str, list[str]]]:
    spelled: dict[str, list[str]] = {}
    for whole in (s[::way] for value in secrets for s in _spellings(value)):
        spelled.setdefault(whole[:ENDS], []).append(whole)
    heads = sorted(spelled, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, heads))) if heads else None, spelled


def _alike(one: str, other: str) -> int:
    """How many characters two texts begin with in common."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _spellings(value: str) -> list[str]:
    """As it is, as JSON, Python, messages and URLs write it, in hexadecimal, and in base64 after 0, 1 or 2 other bytes."""
    data = value.encode("utf-8", "surrogateescape")
    found = [value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1], visible(value)]
    found += [quote(data, safe=""), quote(data), quote_plus(data), data.hex(), data.hex().upper()]
    for before in range(3):
        whole = base64.b64encode(b"\0" * before + data).decode()
        inner = whole[(0, 2, 3)[before] : (before + len(data)) * 8 // 6]  # the letters that no neighbour has a part in
        found += [inner, inner.translate(str.maketrans("+/", "-_"))]
    return list(dict.fromkeys(found))


def _needles(secrets: Mapping[str, str]) -> list[tuple[bytes, str]]:
    found = [(s.encode("utf-8", "surrogateescape"), name) for name, value in secrets.items() for s in _spellings(value)]
    wide = [(value.encode(code, "surrogatepass"), name) for name, value in secrets.items() for code in ("utf-16-le", "utf-32-le")]
    return found + wide  # numpy keeps texts as UTF-32


def _named(text: str, secrets: Mapping[str, str]) -> str | None:
    return next((name for name, value in secrets.items() if any(s in text for s in _spellings(value))), None)
