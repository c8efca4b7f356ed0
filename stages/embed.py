"""Makes a vector of language per class, for methods that compare networks by what things are called: from a file of vectors, or by CLIP.

Which row of a file is which class is told by name, never by order: an order that is shifted by one would go unseen.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from pipeline.artifact import Artifact
from pipeline.errors import BadData
from pipeline.problems import listed, meant, visible
from pipeline.stage import Dataset, Job, Made, Stage
from stages.weights import Weights

Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
PROMPT = "a photo of a {}"
SHOWN = 10  # classes in one message


class Embed(Stage):
    kind: Literal["embed"]
    data: Dataset
    file: str | None = Field(None, min_length=1, description="A .npy or .safetensors file with one table of numbers, a row per name.")
    rows: list[Name] | None = Field(
        None, min_length=1, max_length=10_000, description='What each row of `file` is called; a .safetensors file may say it ("names").'
    )
    clip: Weights | None = Field(
        None, description="A CLIP text encoder and its tokenizer: {file: FOLDER}, or {hub: org/name, revision: ...}."
    )
    prompt: str = Field(PROMPT, max_length=200, description="The sentence that `clip` reads, with {} where the class is named.")
    names: dict[Name, Name] = Field(
        {}, max_length=255, description="Classes that have another name there: class of the data -> row of `file`, or words for `clip`."
    )

    makes: ClassVar[str] = "TextMatrix"

    @field_validator("prompt")
    @classmethod
    def names_the_class(cls, prompt: str) -> str:
        if prompt.count("{}") != 1 or not prompt.isprintable():
            raise ValueError(f"must hold {{}} once, where the class is named, as in {PROMPT!r}")
        return prompt

    @field_validator("rows", "names")
    @classmethod
    def told_apart(cls, given: Any) -> Any:
        for name, n in Counter(map(plain, given or ())).items():
            if n > 1:
                raise ValueError(
                    f"{listed((repr(g) for g in given if plain(g) == name), 'and')} are one name: capitals and blanks do not count"
                )
        return given

    @model_validator(mode="after")
    def one_source(self) -> Self:
        if (self.file is None) == (self.clip is None):
            raise ValueError("write either file: PATH or clip: {file: FOLDER}")
        if self.clip and self.rows is not None:
            raise ValueError("rows says what the rows of `file` are: leave it out with clip, which reads the names of the classes")
        if self.file and self.prompt != PROMPT:
            raise ValueError("prompt is for clip: the vectors of `file` were made with theirs")
        if self.file and self.rows is None and not self.file.lower().endswith(".safetensors"):
            raise ValueError("rows is missing: list what each row of the file is called, for only a .safetensors file may say it itself")
        return self

    def outside(self) -> dict[str, str]:
        if self.clip:
            from stages.clip import digest

            return {"clip": digest(self.clip)}
        from stages.vectors import look
        from stages.weights import sha256

        return {"file": sha256(look(Path(self.file)))}

    def run(self, inputs: dict[str, Artifact], job: Job) -> Made:
        data = inputs["data"]
        classes = data.facts["classes"]
        if self.clip:
            vectors, said = self._encoded(classes, data.name)
            source = f"{self.clip.hub}@{self.clip.revision}" if self.clip.hub else Path(self.clip.file).name
        else:
            vectors, said = self._picked(classes, data.name)
            source = Path(self.file).name
        from stages.vectors import save

        for line in save(job.out, vectors, classes):
            job.say(line)
        facts = {"classes": classes, "dim": vectors.shape[1], "source": source, "said": said}
        return Made(facts, {"path": self.file or self.clip.file or self.clip.hub})

    def _picked(self, classes: list[str], data: str) -> tuple[Any, list[str]]:
        """Rows of the file in the order of the classes, and what each is called there."""
        from stages.vectors import read

        path = Path(self.file)
        table, own = read(path)
        rows = own if self.rows is None else self.rows
        if rows is None:
            raise BadData(
                f"{path} does not say what its rows are (no `names` in its metadata): write rows: [NAME, ...], {len(table)} of them"
            )
        if len(rows) != len(table):
            raise BadData(f"{path} has {len(table)} rows, and {len(rows)} are named: rows must name each, also those that no class needs")
        at = matched(classes, rows, self.names, str(path), data)
        return table[at], [rows[i] for i in at]

    def _encoded(self, classes: list[str], data: str) -> tuple[Any, list[str]]:
        from stages.clip import FILES, encode

        known = {plain(c) for c in classes}
        strange = [f"{n}{meant(n, classes)}" for n in self.names if plain(n) not in known]
        if strange:
            raise BadData(
                told(
                    f"names speaks of {len(strange)} that {data} does not have:", strange, f"Its classes are {listed(classes, 'and', 60)}."
                )
            )
        words = {plain(c): w for c, w in self.names.items()}
        prompts = [self.prompt.replace("{}", words.get(plain(c), spoken(c)).strip()) for c in classes]
        return encode(self.clip.locate(also=tuple(FILES)), prompts), prompts


def matched(classes: list[str], rows: list[str], names: dict[str, str], where: str, data: str) -> list[int]:
    """The row of each class; BadData tells of all that do not fit."""
    if twice := [name for name, n in Counter(map(plain, rows)).items() if n > 1]:
        raise BadData(f"{where}: {listed(map(repr, twice[:SHOWN]), 'and')} name several rows: name them anew with rows: [...]")
    place = {plain(row): i for i, row in enumerate(rows)}
    known, other = {plain(c) for c in classes}, {plain(c): row for c, row in names.items()}
    faults = [f"names: {c} is no class{meant(c, classes)}" for c in names if plain(c) not in known]
    for c in classes:
        wanted = other.get(plain(c), c)
        if plain(wanted) not in place:
            faults.append(f"{c}{f' ({wanted})' if wanted != c else ''} has no row{meant(wanted, rows)}")
    if faults:
        head = f"the rows of {where} do not fit the {len(classes)} classes of {data}:"
        raise BadData(told(head, faults, f"There are rows for {listed(rows, 'and', 60)}. Say which is meant: names: {{CLASS: ROW}}"))
    return [place[plain(other.get(plain(c), c))] for c in classes]


def told(head: str, faults: list[str], end: str) -> str:
    more = [f"... and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
    return "\n".join([visible(head), *(f"  {visible(fault)}" for fault in [*faults[:SHOWN], *more]), visible(end)])


def plain(name: str) -> str:
    """Alike for names that differ in capitals, blanks, hyphens and underscores only: "Traffic light" is "traffic_light"."""
    return re.sub(r"[\s_-]+", "", name.casefold()) or name


def spoken(name: str) -> str:
    """A class name as one would say it."""
    return re.sub(r"[\s_]+", " ", name).strip()
