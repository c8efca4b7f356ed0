"""Machines on which stages build and measure: read from the user's targets.yaml, so that no recipe names a host.

    jetson: {host: 192.168.1.7, user: build, workdir: stillhouse}

What stands there becomes arguments of the ssh client, so every field has a strict pattern, and none may begin with a dash.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import BadRecipe
from .finding import meant
from .parse import parse
from .problems import Problem, together
from .stage import Stage
from .words import explained

FILE = Path("targets.yaml")
NAME = r"^[a-z][a-z0-9_]{0,31}$"  # as a recipe writes it
MOST = 64  # targets in a file

LocalPath = Annotated[str, Field(pattern=r"^(~/|/)?[A-Za-z0-9._][A-Za-z0-9._@+/-]{0,500}$")]  # ssh would read %, blanks and quotes


class Target(BaseModel):
    """One entry of targets.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    host: str = Field(pattern=r"^([A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|[0-9A-Fa-f]{0,4}(:[0-9A-Fa-f]{0,4}){2,7})$",
                      description="Name or address of the machine.")  # fmt: skip
    user: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,31}$", description="Who logs in there.")
    port: int = Field(22, ge=1, le=65535, description="Port of its ssh server.")
    workdir: str = Field(pattern=r"^(~/|/)?[A-Za-z0-9_][A-Za-z0-9._-]{0,100}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,100}){0,16}$",
                         description="Folder for what is sent and built; from the user's home, unless it begins with /.")  # fmt: skip
    python: str = Field("python3", pattern=r"^(/[A-Za-z0-9_.+][A-Za-z0-9_.+-]{0,100}){1,16}$|^[A-Za-z][A-Za-z0-9_.-]{0,40}$",
                        description="Python 3.9 or newer there, with numpy and the runtime.")  # fmt: skip
    identity_file: LocalPath | None = Field(None, description="Private key here; none: those the ssh client finds.")
    known_hosts: LocalPath | None = Field(None, description="File with the machine's public key; none: ~/.ssh/known_hosts.")

    def placed(self, folder: Path) -> Self:
        """With paths made whole: from the home folder, or from where targets.yaml lies."""
        files = {key: getattr(self, key) for key in ("identity_file", "known_hosts")}
        whole = {key: str((folder / Path(value).expanduser()).absolute()) for key, value in files.items() if value}
        return self.model_validate(self.model_dump() | whole)


class Asked(BaseModel):
    """A target that has answered: how to reach it, and what it said of itself when the run began."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    target: Target
    facts: dict[str, Any]


def read(file: Path) -> dict[str, Target]:
    """All targets of a file, or all that is wrong with it."""
    try:
        data, marks = parse(file.read_bytes(), str(file))
    except OSError as error:
        raise BadRecipe(f"{file} cannot be read ({error.strerror}): it names the hosts of targets, --targets says where it is") from None
    found, problems = {}, []

    def wrong(path: tuple, text: str) -> None:
        mark = next(marks[path[:n]] for n in range(len(path), -1, -1) if path[:n] in marks)
        problems.append(Problem(f"{file}:{mark.line}:{mark.column}", mark.line, mark.column, f"{'.'.join(map(str, path))}: {text}"))

    for name, settings in list(data.items())[:MOST]:
        if not re.fullmatch(NAME[1:-1], name):
            wrong((name,), "is no name for a target; small letters, digits and _ (32 at most), a letter first")
            continue
        try:
            found[name] = Target.model_validate(settings).placed(file.absolute().parent)
        except ValidationError as error:
            if not isinstance(settings, dict):
                wrong((name,), "a mapping was expected, for example {host: 192.168.1.7, user: build, workdir: stillhouse}")
                continue
            for message in explained(Target, settings, error):
                wrong((name, *message.path), message.text)
    if len(data) > MOST:
        wrong((), f"{len(data)} targets stand here, and at most {MOST} are read")
    if problems:
        raise together(problems)
    return found


def named(stages: Mapping[str, Stage]) -> dict[str, str]:
    """Target -> the first stage that works there."""
    found: dict[str, str] = {}
    for name, stage in stages.items():
        if target := getattr(stage, "target", None):
            found.setdefault(target, name)
    return found


def chosen(stages: Mapping[str, Stage], file: Path | None) -> dict[str, Target]:
    """The targets that stages name, from the file; no file is needed where none is named."""
    wanted = named(stages)
    if not wanted:
        return {}
    known = read(file or FILE)
    for target, stage in wanted.items():
        if target not in known:
            raise BadRecipe(f"stages.{stage}.target: {file or FILE} has no target {target!r}{meant(target, known)}")
    return {name: known[name] for name in wanted}


def reached(stages: Mapping[str, Stage], file: Path | None, ask: Callable[[str, Target], dict[str, Any]]) -> dict[str, Stage]:
    """The stages, those with a target knowing what that said of itself: each target is asked once."""
    asked = {name: Asked(name=name, target=target, facts=ask(name, target)) for name, target in chosen(stages, file).items()}
    return {name: stage.at(asked[stage.target]) if getattr(stage, "target", None) else stage for name, stage in stages.items()}
