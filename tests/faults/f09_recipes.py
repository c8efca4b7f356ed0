"""F9: recipes with slips, damage and malice in them: one screen in plain words with a place, within a second, and what was meant.

9,800 mutants in process and 200 through the real command line, then more than 300 files made by hand through both. None may end in a
traceback, exit code 1 or a signal, take more than a second of CPU time or 300 MB; of the slips of one letter, 95 % must be told
the word that stood there before.
"""

import contextlib
import functools
import io
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from unittest.mock import patch

import nasty
import slips
from good_recipes import EVERYTHING
from mutants import Mutant, mutant

ROOT = Path(__file__).resolve().parent.parent.parent
QUICK = 30
COVERS = ("pipeline", "stages")

SLIPS, MUTANTS, AT_ONCE, TYPED = 4000, 5800, 25, 200
SECONDS, MEGABYTES, LINES, WIDTH = 1.0, 300, 40, 400
PATIENCE = 20  # seconds of CPU time, after which a mutant counts as hanging
RIGHT = 0.95  # of the slips
ENDINGS = (0, 2, 7)  # good after all, wrong, refused
WOULD_RUN = 8  # what `run` ends with here in place of running stages


def cases() -> list[str]:
    slipped = [f"slips {i}" for i in range(SLIPS // AT_ONCE)]
    damaged = [f"mutants {i}" for i in range(MUTANTS // AT_ONCE)]
    return [*slipped, *damaged, *(f"typed {i}" for i in range(TYPED)), *(f"by hand: {name}" for name in _nasty())]


def check(case: str, place: Path) -> dict:
    chance = Random(case)
    if case.startswith("slips"):
        return _batch(place, [_slip(chance, place) for _ in range(AT_ONCE)])
    if case.startswith("mutants"):
        found = [mutant(chance, list(seeds().values()), _data) for _ in range(AT_ONCE)]
        return _batch(place, [(one, command(chance, one), None) for one in found])
    if case.startswith("typed"):
        one = mutant(chance, list(seeds().values()), _data)
        (place / "r.yaml").write_bytes(one.content)
        verb = ["plan"] if any(a.startswith("--profile") for a in one.arguments) else ["check"]
        return _typed([*verb, str(place / "r.yaml"), *one.arguments], place, one.how)
    return _by_hand(case.removeprefix("by hand: "), place)


def summary(figures: list[dict]) -> tuple[bool, str]:
    total = {key: sum(f.get(key, 0) for f in figures) for key in ("mutants", "good", "slips", "right", "lands", "valid")}
    seconds, grown = max(f["seconds"] for f in figures), max(f["grown_mb"] for f in figures)
    share = total["right"] / max(1, total["slips"])
    roles: dict[str, list[int]] = {}
    for role, right, count in (entry for f in figures for entry in f.get("roles", ())):
        known = roles.setdefault(role, [0, 0])
        roles[role] = [known[0] + right, known[1] + count]
    said = [f"{total['mutants']} files, {total['good']} of them good recipes after all", f"at most {seconds:.2f} s and {grown:.0f} MB each"]
    if roles:
        least = min(roles, key=lambda role: roles[role][0] / max(1, roles[role][1]))
        said.append(f"{share:.1%} of {total['slips']} slips told the right word (least: {least}, {roles[least][0]}/{roles[least][1]})")
        said.append(f"not counted: {total['valid']} valid as they are, {total['lands']} another word of its place")
    return seconds <= SECONDS and grown <= MEGABYTES and share >= (RIGHT if roles else 0), "; ".join(said)


# -- what is mutated


@functools.cache
def seeds() -> dict[str, str]:
    """Name -> text of good recipes: those of the repository, the same with every default written out, and one with what they lack."""
    from pipeline.recipe import read

    found = {}
    for file in sorted((ROOT / "recipes").glob("*.yaml")):
        found[file.stem] = file.read_text(encoding="utf-8")
        found[f"{file.stem} spelled out"] = slips.spelled_out(read(file, dry()).resolved)
    return found | {"everything": EVERYTHING}


@functools.cache
def _names() -> dict[str, list[tuple[str, slips.Name]]]:
    """Role -> (name of the seed, a name in it)."""
    found: dict[str, list] = {}
    for seed, text in seeds().items():
        for name in slips.names(text, dry()):
            found.setdefault(name.role, []).append((seed, name))
    return found


@functools.cache
def _overrides() -> list[tuple[str, str, list[slips.Name]]]:
    """(name of the seed, a --set of what is there already, the names in it)."""
    return [(seed, *one) for seed, text in seeds().items() for one in slips.overrides(_data(text), dry()) if one[1]]


def _data(text: str) -> dict:
    from pipeline.parse import parse

    return parse(text, "seed")[0]


def _slip(chance: Random, place: Path) -> tuple[Mutant, list[str], slips.Slip]:
    """Mostly in the file, every role as often as another; else in --set, --profile or the name of the file."""
    where = chance.choices(("file", "set", "profile", "path"), (75, 20, 4, 1))[0]
    if where == "file":
        seed, name = chance.choice(_names()[chance.choice(sorted(_names()))])
        one = slips.slipped(chance, seeds()[seed], name)
        return Mutant(name.role, one.text.encode()), ["check", "r.yaml"], one
    if where == "set":
        seed, text, held = chance.choice(_overrides())
        one = slips.slipped(chance, text, chance.choice(held))
        return Mutant("--set", seeds()[seed].encode(), (f"--set={one.text}",)), ["check", "r.yaml"], one
    if where == "profile":
        word = chance.choice(("cpu", *slips.PROFILES))
        one = slips.slipped(chance, word, slips.Name("profile", word, 0, frozenset(("cpu", *slips.PROFILES)), word))
        return Mutant("--profile", seeds()["segformer_b5_to_b0"].encode(), (f"--profile={one.text}",)), ["plan", "r.yaml"], one
    right = str(place / "flagship.yaml")
    one = slips.slipped(chance, "flagship.yaml", slips.Name("file", "flagship", 0, frozenset(), right))
    return Mutant("file", seeds()["smoke"].encode()), ["check", one.text], one


def command(chance: Random, one: Mutant) -> list[str]:
    profile = any(a.startswith("--profile") for a in one.arguments)
    verb = chance.choices((["check"], ["plan"], ["run"], ["run", "--rehearse"], ["why", "data"]), (0 if profile else 70, 10, 8, 4, 8))[0]
    return [*verb, "r.yaml"]


# -- in process


def _batch(place: Path, mutants: list[tuple[Mutant, list[str], slips.Slip | None]]) -> dict:
    figures = {"mutants": len(mutants), "good": 0, "slips": 0, "right": 0, "lands": 0, "valid": 0, "seconds": 0.0, "missed": []}
    roles: dict[str, list[int]] = {}
    began = _peak(reset=True)
    for one, words, slip in mutants:
        (place / "r.yaml").write_bytes(one.content)
        (place / "flagship.yaml").write_text(seeds()["smoke"], encoding="utf-8")
        code, said, seconds = called([*words[:-1], str(place / words[-1]), *one.arguments], place)
        judged(code, said, one.content, f"{one.how}: {' '.join(words)}")
        figures["seconds"] = max(figures["seconds"], round(seconds, 3))
        figures["good"] += code == 0
        if slip:
            counted = "valid" if code == 0 else "lands" if slip.lands else "slips"
            figures[counted] += 1
            if counted == "slips":
                right = slips.suggested(said, slip.right)
                known = roles.setdefault(slip.role, [0, 0])
                roles[slip.role] = [known[0] + right, known[1] + 1]
                figures["right"] += right
                figures["missed"] += [] if right else [f"{slip.role}: {slip.typed} for {slip.right}"]
    figures["grown_mb"] = round(_peak() - began, 1)
    assert figures["grown_mb"] <= MEGABYTES, f"memory grew by {figures['grown_mb']} MB"
    assert figures["seconds"] <= SECONDS, f"took {figures['seconds']} s of CPU time"
    return {**figures, "roles": [[role, *counts] for role, counts in roles.items()]}


def called(arguments: list[str], place: Path, kinds: dict[str, str] | None = None) -> tuple[int, str, float]:
    """(exit code, what was said, CPU seconds) of a command in this process, over stages that read nothing outside and never run."""
    from pipeline import cli
    from pipeline.runner import Runner

    parts = cli.Parts(kinds=kinds or dry(), has_device=lambda: False, machine=dict, page=None)
    where = ["--store", str(place / "store"), *(["--out", str(place / "out")] if arguments[0] == "run" else [])]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), patch.object(Runner, "run", _planned), _bounded():
        began = time.process_time()
        code = cli.main([*arguments[:1], *where, *arguments[1:]], parts)
        seconds = time.process_time() - began
    return (0 if code == WOULD_RUN else code), err.getvalue() if code else out.getvalue(), seconds


def _planned(runner, recipe) -> None:
    """What the runner does before it starts a stage."""
    from pipeline.errors import Busy
    from pipeline.plan import last_keys, make

    stages = {name: stage.rehearsed() for name, stage in recipe.stages.items()} if runner.rehearsing else recipe.stages
    make(stages, runner.store, last_keys(runner.store, recipe.name))
    raise Busy("the stages would run now")


@functools.cache
def dry() -> dict[str, str]:
    """The stage kinds, except that they look at no file and no device: what lies there is no business of a recipe's reader."""
    import importlib

    import stages

    for target in stages.KINDS.values():
        module, _, name = target.partition(":")
        cls = getattr(importlib.import_module(module), name)
        body = {"__module__": __name__, "outside": lambda self: {}, "environment": lambda self: {}}
        globals()[f"Dry{name}"] = type(cls)(f"Dry{name}", (cls,), body)
    return {kind: f"{__name__}:Dry{target.partition(':')[2]}" for kind, target in stages.KINDS.items()}


def judged(code: int, said: str, content: bytes, how: str) -> None:
    """Whether the command ended as promised."""
    assert code in ENDINGS, f"{how} ended with {code}: {said[-600:]}"
    if code == 0:
        return
    lines = said.splitlines()
    assert 1 <= len(lines) <= LINES, f"{how}: {len(lines)} lines: {said[:600]}"
    assert max(map(len, lines)) <= WIDTH, f"{how}: a line of {max(map(len, lines))} characters: {said[:600]}"
    assert all(line.isprintable() for line in lines), f"{how}: not printable: {said[:600]!r}"
    assert not re.search(r"Traceback|pydantic|Input should|tagged-union|function-|<class|object at 0x", said), f"{how}: {said[:600]}"
    breaks = len(re.split(rb"\r\n|[\r\n\x0b\x0c]|\xc2\x85|\xe2\x80[\xa8\xa9]", content))
    for line in lines:
        placed = re.match(r"\S.*?:(\d+):(\d+)  .", line)  # a key may be all blanks
        if placed:
            assert 1 <= int(placed[1]) <= breaks and int(placed[2]) >= 1, f"{how}: there is no such place: {line}"
        else:
            assert re.match(_UNPLACED, line), f"{how}: no place: {line}"


_UNPLACED = re.compile(  # problems of the command line, of a file as a whole, and what follows the first screen
    r"--(set|profile) .|and \d+ more( at least)?$|\S.* (does not exist|cannot be read|is a folder|is no regular file|has no stage)|"
    r"\S.* needs a CUDA device, and none was found|"
    r"python -m pipeline( \w+)?: |try: "
)


@contextlib.contextmanager
def _bounded():
    """Raises after much CPU time, so that what hangs is a failure and not the end of the tests."""

    def ring(*_):
        raise AssertionError(f"still busy after {PATIENCE} s of CPU time")

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _peak(reset: bool = False) -> float:
    """The most memory this process ever held, or since the last reset, in MB; right after a reset what it holds now."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


# -- through the real command line


def _typed(arguments: list[str], place: Path, how: str) -> dict:
    """The command in a process of its own that gets no more than is promised."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(place), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    whole = [sys.executable, "-m", "pipeline", arguments[0], "--store", str(place / "store"), *arguments[1:]]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.run(
        whole, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, preexec_fn=_limits, timeout=120
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    said = (process.stderr if process.returncode else process.stdout).decode("utf-8")
    file = next(Path(a) for a in arguments[1:] if not a.startswith("-"))
    judged(process.returncode, said, _content(file), f"{how}: {' '.join(arguments)[:200]}")
    assert seconds <= SECONDS, f"{how}: took {seconds:.2f} s of CPU time"
    return {"mutants": 1, "good": int(process.returncode == 0), "seconds": round(max(0.0, seconds), 3), "grown_mb": 0.0}


def _limits() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEGABYTES * 2**20, MEGABYTES * 2**20))
    resource.setrlimit(resource.RLIMIT_CPU, (PATIENCE, PATIENCE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


# -- by hand


def _by_hand(name: str, place: Path) -> dict:
    """One nasty file: through the real command line, and in process through every command that reads a recipe."""
    made = _nasty()[name](place)
    figures = _typed(["check", str(made.file), *made.arguments], place, name)
    assert figures["good"] == made.good, f"{name}: {'refused' if made.good else 'taken'}"
    began = _peak(reset=True)
    for words in (["check"], ["plan"], ["run"], ["run", "--rehearse"], ["why", "data"]):
        code, said, seconds = called([*words, str(made.file), *made.arguments], place)
        judged(code, said, _content(made.file), f"{name}: {' '.join(words)}")
        assert seconds <= SECONDS, f"{name}: {' '.join(words)} took {seconds:.2f} s of CPU time"
        figures["seconds"] = max(figures["seconds"], round(seconds, 3))
    figures["grown_mb"] = round(_peak() - began, 1)
    assert figures["grown_mb"] <= MEGABYTES, f"{name}: memory grew by {figures['grown_mb']} MB"
    return figures


def _content(file: Path) -> bytes:
    """What a reader takes in at most; nothing where there is no file to read."""
    try:
        with open(file, "rb") if file.is_file() else io.BytesIO() as stream:
            return stream.read(2**20)
    except OSError:
        return b""


@functools.cache
def _nasty() -> dict:
    return nasty.files()
