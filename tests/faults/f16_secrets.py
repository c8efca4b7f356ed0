"""F16: stages print, say, raise and publish passwords and tokens; nothing that is written or printed holds one, in any spelling.

1,000 runs of the real command line over a toy table: 200 as processes, 800 in forks of this one, in which a stage's process is a fork
too (the same code, without the time a new interpreter takes). Secrets come in variables, in --set, in recipes and on the command line.
"""

import base64
import functools
import io
import itertools
import json
import os
import random
import signal
import string
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).parent))
from common import ROOT, TOY, Toy

QUICK = 40
COVERS = ("pipeline",)
PATIENCE = 120  # seconds; only a hang takes that long

SHAPES = ("token", "short", "signs", "base64", "pem", "hex", "long")
NAMES = ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "API_KEY_PROD", "my_credentials", "DbPassword", "SECRET_2")
CODES = {"quiet": 0, "prints": 0, "says": 0, "raises": 2, "bug": 1, "crash": 1}  # all else publishes the secret and is refused
MISTAKES = ("command", "recipe", "option", "value", "field", "stage", "profile", "run")
SIGNS = "p@ss/w\"o'r+d&%=<ü> "
USER = "umberto_q7"  # who logs in is nobody's business either, though it is no secret that could be known by its name
WITHIN = 20  # characters: so much of the beginning of a secret is as good as the whole


def cases():
    import leaky

    ways = [("variable", how, shape) for how in leaky.HOWS for shape in SHAPES if how != "name" or shape in ("token", "hex", "short")]
    ways += [("url", how, shape) for how in leaky.HOWS for shape in SHAPES if how != "name"]
    ways += [("recipe", how, shape) for how in ("quiet", "prints", "says", "raises", "bug", "plain", "hex", "facts") for shape in SHAPES]
    ways += [("token", how, shape) for how in leaky.HOWS for shape in ("token", "short", "base64", "long") if how != "name"]
    ways += [("mistake", how, shape) for how in MISTAKES for shape in ("token", "short", "base64", "long")]
    chosen = itertools.islice(itertools.cycle(ways), 1000)
    return [f"{n:03} {'process' if (n + n // len(ways)) % 5 == 4 else 'fork'} {' '.join(way)}" for n, way in enumerate(chosen)]


def check(case, place):
    number, by, channel, how, shape = case.split()
    chance = random.Random(f"{number} {shape}")
    secrets = [canary(shape, chance) for _ in range(2)]
    environment, recipe, run, code = STORIES[channel](how, secrets, chance)
    (place / "toy.yaml").write_text(f"name: toy\n{recipe}", encoding="utf-8")
    ends = in_process if by == "process" else in_fork
    asked = [run, *AFTERWARDS] if by == "fork" and channel != "mistake" else [run]
    codes, said = ends(place, environment, asked)
    assert codes[0] == code, f"ended with {codes[0]}, not {code}: {said[-600:]}"
    assert not {1, 130} & set(codes[1:]), f"a look at the run ended with {codes}: {said[-600:]}"
    assert "Traceback" not in said, said[-600:]
    (place / "toy.yaml").unlink()  # the user's own
    assert_nowhere([*secrets, USER], place, said.encode())
    if channel != "mistake":
        published = list((place / ".stillhouse/refs/cache").glob("[!.]*.json"))
        assert len(published) == (code == 0), "a refused artifact was published" if published else "nothing was published"
    return {"refused": code == 7}


def summary(figures):
    return True, f"{sum(f['refused'] for f in figures)} artifacts refused"


def canary(shape, chance):
    def letters(known, many):
        return "".join(chance.choices(known, k=many))

    plain = string.ascii_letters + string.digits
    if shape == "pem":
        lines = [letters(plain + "+/", 40) for _ in range(3)]
        return "\n".join((f"{lines[0][:30]}7", *lines, "-----END-----"))
    return {
        "token": lambda: f"hf_{letters(plain, 30)}9x",
        "short": lambda: f"{letters(plain, 8)}7q",
        "signs": lambda: f"{letters(plain, 6)}{SIGNS}{letters(plain, 6)}5",
        "base64": lambda: base64.b64encode(chance.randbytes(31)).decode(),
        "hex": lambda: chance.randbytes(20).hex(),
        "long": lambda: f"{letters(plain, 160)}8",  # longer than what messages show of a value
    }[shape]()


# -- where a secret comes from: (environment, rest of the recipe, arguments of the run, its exit code)


def variable(how, secrets, chance):
    names = chance.sample(NAMES, 2)
    environment = {**dict(zip(names, secrets, strict=True)), "TELL": ",".join(names)}
    return environment, f"stages: {{leak: {{kind: leak, how: {how}}}}}", RUN, CODES.get(how, 7)


def url(how, secrets, chance):
    return {}, f"stages: {{leak: {{kind: leak, how: {how}}}}}", [*RUN, "--set", f"stages.leak.url={address(secrets)}"], CODES.get(how, 7)


def recipe(how, secrets, chance):
    """In the stage itself, or in a profile."""
    written = json.dumps(address(secrets))
    if chance.random() < 0.5:
        return {}, f"stages: {{leak: {{kind: leak, how: {how}, url: {written}}}}}", RUN, CODES.get(how, 7)
    rest = f"stages: {{leak: {{kind: leak, how: {how}}}}}\nprofiles: {{there: {{stages.leak.url: {written}}}}}"
    return {}, rest, ["run", "toy.yaml", "--profile", "there"], CODES.get(how, 7)


def token(how, secrets, chance):
    """A field that is called like a secret, and an address, both on the command line."""
    sets = ["--set", f"stages.leak.token={json.dumps(secrets[0])}", f"--set=stages.leak.url={address(secrets[1:] * 2)}"]
    return {}, f"stages: {{leak: {{kind: leak, how: {how}}}}}", [*RUN, *sets], CODES.get(how, 7)


def mistake(how, secrets, chance):
    """A secret where it does not belong, quoted by the complaint: as a variable's value, or in an address."""
    one, at = secrets[0], address(secrets)
    run = {
        "command": [one],
        "recipe": ["run", at],
        "option": [*RUN, f"--token={one}"],
        "value": [*RUN, "--set", f"stages.leak.size={at if chance.random() < 0.5 else one}"],
        "field": [*RUN, "--set", f"stages.leak.api_token={one}"],
        "stage": ["why", one, "toy.yaml"],
        "profile": ["plan", "toy.yaml", "--profile", one],
        "run": ["show", f"{one}/leak"],
    }[how]
    environment = dict(zip(NAMES, secrets, strict=False)) if how not in ("recipe", "option", "field") else {}
    return environment, "stages: {leak: {kind: leak}}", run, 2


RUN = ["run", "toy.yaml", "--profile", "none"]
AFTERWARDS = (
    *(["ls"], ["ls", "toy-1"], ["show", "toy-1/leak"], ["plan", "toy.yaml"], ["diff", "toy-1", "toy-1"], ["report", "toy-1"]),
    *(["why", "leak", "toy.yaml"], ["check", "toy.yaml"], ["why", "leak", "toy.yaml", "--set", "stages.leak.size=3"]),
)
STORIES = {f.__name__: f for f in (variable, url, recipe, token, mistake)}


def address(secrets):
    password, key = (quote(s, safe="") for s in secrets)
    return f"https://{USER}:{password}@models.example/a/b.safetensors?token={key}&format=x"


# -- how the command line is run: both return its exit codes and all it said


def in_process(place, environment, asked):
    start = Toy(place, (place / "toy.yaml").read_text(), environment, main=Path(__file__).with_name("leaky.py"))
    start.environment["PYTHONPATH"] = os.pathsep.join((str(Path(__file__).parent), str(TOY), str(ROOT)))
    called = [start.call(*arguments, timeout=PATIENCE) for arguments in asked]
    return [code for code, _ in called], "".join(said for _, said in called)


def in_fork(place, environment, asked):
    """A fork that runs one command after the other, as processes would, from the same working folder."""
    leaky = warm()
    said = place.parent / f"{place.name}.said"  # beside the place: it is looked at as what was said
    pid = os.fork()
    if pid == 0:
        become(os.open(os.devnull, os.O_RDONLY), os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
        os.chdir(place)
        renew({**os.environ, **environment})
        with mock.patch("subprocess.Popen", Forked):
            leave(lambda: print("\ncodes", json.dumps([leaky.main(list(arguments)) for arguments in asked])) or 0)
    try:
        ends = time.monotonic() + PATIENCE
        while not (done := os.waitpid(pid, os.WNOHANG)[0]) and time.monotonic() < ends:
            time.sleep(0.002)
        assert done, "hangs"
        text = said.read_text(encoding="utf-8", errors="replace")
        assert "\ncodes " in text, f"ended before its end: {text[-600:]}"
        return json.loads(text.rpartition("\ncodes ")[2]), text
    finally:
        said.unlink(missing_ok=True)
        if not done:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


class Forked:
    """What the runner uses of subprocess.Popen, with a fork of this process in place of `python -m pipeline.child`."""

    def __init__(self, command, *, stdin, stdout, stderr, pass_fds, start_new_session, env):
        from pipeline import child

        read, given = os.pipe()
        self.stdin = os.fdopen(given, "wb") if stdin == subprocess.PIPE else None
        self.pid = os.fork()
        if self.pid == 0:
            os.close(given)
            become(read if self.stdin else os.open(os.devnull, os.O_RDONLY), stdout.fileno())
            renew(env)
            leave(lambda: child.main(*command[3:]))
        os.close(read)

    def wait(self):
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def send_signal(self, number):
        os.kill(self.pid, number)


@functools.cache
def warm():
    """Loads all that a run imports, so that every fork has it."""
    import leaky
    import toy_stages  # noqa: F401

    from pipeline import child, plan, recipe, report, runner, show  # noqa: F401

    with mock.patch("sys.stdout", io.StringIO()), mock.patch("sys.stderr", io.StringIO()):
        leaky.main(["plan", "no such recipe"])
    return leaky


def become(given, out):
    """A process of its own group that reads from one descriptor and writes everything to another."""
    os.setsid()
    for source, target in ((given, 0), (out, 1), (out, 2)):
        os.dup2(source, target)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 (these three last as long as the process)
    sys.stdout, sys.stderr = (open(fd, "w", 1, closefd=False) for fd in (1, 2))  # noqa: SIM115


def renew(environment):
    os.environ.clear()
    os.environ.update(environment)


def leave(work):
    """Ends the fork with what the work returned, and never returns into the code of its parent."""
    code = 70
    try:
        code = work()
    except BaseException as error:
        print(f"the fork ended in {error!r}", file=sys.stderr)
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


# -- looking at every byte


def assert_nowhere(secrets, place, said):
    needles = {spelled: secret for secret in secrets for spelled in spellings(secret)}
    for what, data in {"what was said": said, **everything(place)}.items():
        for spelled in needles:
            if (at := data.find(spelled)) >= 0:
                raise AssertionError(f"{what} holds a secret: {data[max(0, at - 60) : at + 60]!r}")


def everything(folder):
    """{name: bytes}, and all names as one text."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*")}
    return {"a file's name": "\n".join(files).encode()} | {name: path.read_bytes() for name, path in files.items() if path.is_file()}


def spellings(secret):
    """Bytes that nobody may see, in the spellings that programs use without being asked; made here without the code that is tested."""
    data = secret.encode()
    yield from (data, data[:WITHIN], data.hex().encode(), data.hex().upper().encode(), secret.encode("utf-32-le"))
    yield from (text.encode() for text in (json.dumps(secret)[1:-1], repr(secret)[1:-1], quote(secret), quote(secret, safe="")))
    for before in range(3):
        whole = base64.b64encode(b"\0" * before + data + b"\0\0\0")
        inner = whole[-(-8 * before // 6) : 8 * (before + len(data)) // 6]
        yield from (inner, inner.replace(b"+", b"-").replace(b"/", b"_"))
