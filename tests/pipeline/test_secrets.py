"""Passwords and tokens are known by their names, and struck out of texts and found in files however they are written."""

import base64
import io
import json
import random
import sys
from urllib.parse import quote

import pytest

from pipeline import secrets
from pipeline.errors import Refused
from pipeline.show import discreet

TOKEN = "hf_Zq7LmN2xR9vK4tB8wY1c"
SHAPES = {
    "token": TOKEN,
    "eight": "s3same-8",
    "with signs": "p@ss/w\"ör'd+&%=<x>",
    "base64": base64.b64encode(bytes(range(200, 240))).decode(),
    "key": "-----BEGIN KEY-----\nMIIEpAIBAAKCAQEA7v1x\nq9Jm0aZ\n-----END KEY-----",
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("HF_TOKEN", v) for v in SHAPES.values()),
        *((n, "correct horse") for n in ("PASSWORD", "db_password", "PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "apiKey", "my-credentials")),
        *((n, TOKEN) for n in ("API_KEY_PROD", "HF_TOKEN_2", "TOKEN2", "SECRET_KEY_BASE", "accessToken", "AWS_ACCESS_KEY_ID")),
    ],
)
def test_what_counts_as_a_secret(name, value):
    assert secrets.values({name: value}) == {name: value}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SSH_AUTH_SOCK", "/tmp/agent.1234"),
        ("KEYBOARD", "qwertz-105-keys"),
        ("XKB_DEFAULT_LAYOUT", "de-nodeadkeys1"),
        ("GNOME_KEYRING_CONTROL", "/run/user/1000/x1"),
        ("TOKENIZERS_PARALLELISM", "disabled1"),
        ("GPG_KEY", "A035C8C19219BA821ECEA86B64E628F8D684696D"),
        ("TOKEN_SOURCE", "environment"),
        ("SECRETS_BACKEND", "keychain"),
        ("GIT_ASKPASS", "/usr/bin/askpass1"),
        ("HF_TOKEN", "short"),
        ("PASSAGE", "from 1 to 99 of it"),
        ("MONKEY", "chimpanzee42"),
        ("", TOKEN),
    ],
)
def test_what_does_not(name, value):
    assert secrets.values({name: value}) == {}


def test_the_place_of_a_secret_is_none_but_a_value_that_only_looks_like_a_path_is(tmp_path):
    file = tmp_path / "credentials1.json"
    file.write_text("{}")
    assert secrets.values({"GOOGLE_APPLICATION_CREDENTIALS": str(file)}) == {}
    assert secrets.values({"AWS_SECRET_ACCESS_KEY": "/wJalr/UtnFEMI/K7MDENG"})


def test_recipes_and_arguments_give_secrets_away_by_their_form(monkeypatch):
    monkeypatch.setattr("os.environ", {"HF_TOKEN": TOKEN, "HOME": "/home/home1234"})
    recipe = {"stages": {"one": {"url": "https://me:pass%2Fword1@host/p?token=abcdefgh1&format=safetensors", "api_key": "open-sesame"}}}
    found = secrets.known(
        recipe, ["stages.two.password=friend-and-enter", "stages.two.size=[512, 1024]", "a.url=https://t0kenasuser@host/"]
    )
    assert set(found.values()) == {TOKEN, "pass%2Fword1", "pass/word1", "abcdefgh1", "open-sesame", "friend-and-enter", "t0kenasuser"}


def test_two_secrets_at_one_place_are_both_known(monkeypatch):
    monkeypatch.setattr("os.environ", {})
    told = [f"--set=stages.one.token={value}" for value in ("first-secret-1", "second-secret-2")]
    told += [f"https://u:{value}@host/" for value in ("third-secret-3", "fourth-secret-4")]
    assert set(secrets.known(told).values()) == {"first-secret-1", "second-secret-2", "third-secret-3", "fourth-secret-4"}


def ways(value):
    """How a value may stand in a text, each within other text."""
    data = value.encode()
    yield from (
        value,
        json.dumps({"k": value}),
        json.dumps([value], ensure_ascii=False),
        repr({"k": value}),
        data.hex(),
        data.hex().upper(),
    )
    yield from (f"https://host/{quote(value, safe='')}", quote(value))
    for before in range(3):
        yield base64.b64encode(b"xyz"[:before] + data + b"end").decode()
        yield base64.urlsafe_b64encode(b"xyz"[:before] + data + b"end").decode()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_value_is_struck_out_and_found_however_it_is_written(shape, tmp_path):
    known = {"SOME_TOKEN": SHAPES[shape], "OTHER_TOKEN": "never-there-1"}
    for text in ways(SHAPES[shape]):
        told = secrets.redact(f"before {text} after", known)
        assert "***" in told and told.startswith("before ") and told.endswith(" after")
        assert SHAPES[shape] not in told and base64.b64encode(SHAPES[shape].encode()).decode()[:12] not in told
        assert secrets.redact(told, known) == told
        file = tmp_path / "file"
        file.write_text(f"before {text} after", encoding="utf-8")
        assert secrets.find(file, known) == "SOME_TOKEN"
    for code in ("utf-16-le", "utf-32-le"):
        file.write_bytes(b"\0" + SHAPES[shape].encode(code))
        assert secrets.find(file, known) == "SOME_TOKEN"


def test_of_a_value_that_was_cut_off_nothing_is_left():
    assert secrets.redact(f"found {TOKEN[:18]}..., expected a number", {"A_TOKEN": TOKEN}) == "found ***..., expected a number"
    assert secrets.redact(f"found {TOKEN[:16]}...{TOKEN[-17:]}", {"A_TOKEN": TOKEN}) == "found ***...***"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://me:word@host:8080/p?token=x", "https://***@host:8080/p?***"),
        ("see https://host/p?a='1' now", "see https://host/p?*** now"),
        ("https://me:w/o?r#d@host/p", "https://***@host/p"),
        ("https%3A%2F%2Fme%3Aword%40host%2Fp%3Fq%3D1", "https%3A%2F%2F***%40host%2Fp%3F***"),
        ("https:/me:word@host/p is no file", "https:/***@host/p is no file"),
        ("git+ssh://t0ken@host/x#access_token=1", "git+ssh://***@host/x#***"),
        ("found 'https://me:wooooo... expected", "found 'https://***... expected"),
        ("https://host:8080/org/name@main", "https://host:8080/org/name@main"),
        ("https://host/page#section and me@host", "https://host/page#section and me@host"),
        ("what is this? a://", "what is this? a://"),
    ],
)
def test_of_a_url_only_the_address_is_told(url, told):
    assert secrets.redact(url, {}) == told


def test_plain_data_keeps_its_shape():
    data = {"sets": [f"x={TOKEN}"], "deep": [{"a": (1, None, 2.5, True, "https://u:p@h")}], TOKEN: 1}
    assert secrets.redacted(data, {"A_TOKEN": TOKEN}) == {
        "sets": ["x=***"],
        "deep": [{"a": [1, None, 2.5, True, "https://***@h"]}],
        "***": 1,
    }


def test_a_value_is_found_wherever_it_lies_in_a_large_file(tmp_path):
    file, chance = tmp_path / "weights.bin", random.Random(1)
    noise = chance.randbytes(3 * secrets.CHUNK)
    for place in (0, secrets.CHUNK - 1, secrets.CHUNK - len(TOKEN), 2 * secrets.CHUNK - 5, len(noise) - len(TOKEN)):
        file.write_bytes(noise[:place] + TOKEN.encode() + noise[place + len(TOKEN) :])
        assert secrets.find(file, {"A_TOKEN": TOKEN}) == "A_TOKEN"
    file.write_bytes(noise)
    assert secrets.find(file, {"A_TOKEN": TOKEN}) is None and secrets.find(file, {}) is None


@pytest.mark.parametrize("where", ["file", "name", "facts"])
def test_an_artifact_that_holds_a_secret_is_refused_with_its_name_and_never_its_value(where, tmp_path):
    (tmp_path / "notes.txt").write_text(TOKEN if where == "file" else "nothing")
    if where == "name":
        (tmp_path / f"{TOKEN}.txt").write_text("x")
    facts = {"deep": [{"url": TOKEN}]} if where == "facts" else {}
    with pytest.raises(Refused, match="MY_TOKEN") as refusal:
        secrets.require_none(tmp_path, {"MY_TOKEN": TOKEN}, facts=facts)
    assert TOKEN not in str(refusal.value) and ("notes.txt" in str(refusal.value)) == (where == "file")
    secrets.require_none(tmp_path, {"MY_TOKEN": TOKEN[::-1]}, facts=facts)


def test_a_log_is_scrubbed_with_all_else_left_as_it_was(tmp_path):
    log = tmp_path / "one.log"
    log.write_bytes(b"\xff\xfe step 1\n" + TOKEN.encode() + b"\r\n\x1b[1mend")
    secrets.scrub(log, {"A_TOKEN": TOKEN})
    assert log.read_bytes() == b"\xff\xfe step 1\n***\r\n\x1b[1mend"


def test_what_is_printed_meanwhile_is_discreet_and_plain(monkeypatch):
    monkeypatch.setattr("sys.stdout", out := io.StringIO())
    with discreet({"A_TOKEN": TOKEN}):
        print(f"one {TOKEN}\x1b[31m red\x1b]0;title\x07", "two\u202e\u2028\r", file=sys.stdout)
    print("after")
    assert out.getvalue() == "one *** red two\nafter\n" and sys.stdout is out
