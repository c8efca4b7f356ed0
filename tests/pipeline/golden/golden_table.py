"""The stages that made the golden stores, and the real command line over them. They never change: their keys are in the stores."""

import sys
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline import cli
from pipeline.stage import Made, Stage, Takes

KINDS = {"letters": "golden_table:Letters", "word": "golden_table:Word", "judge": "golden_table:Judge"}


class Letters(Stage):
    kind: Literal["letters"]
    makes: ClassVar[str] = "Dataset"
    text: str = Field("", description="The letters.")

    def run(self, inputs, job):
        (job.out / "letters.txt").write_text(self.text)
        (job.out / "none.txt").write_text("")
        return Made({"count": len(self.text), "mean": sum(map(ord, self.text)) / max(1, len(self.text))}, {"by": "letters"})


class Word(Stage):
    kind: Literal["word"]
    makes: ClassVar[str] = "Checkpoint"
    of: Annotated[list[str], Takes(("Dataset",), named=True)]
    times: float = Field(1.0, description="How often.")

    def run(self, inputs, job):
        text = "-".join(a.file("letters.txt").read_text() for a in inputs["of"]) * int(self.times)
        (job.out / "word.txt").write_text(text)
        return Made({"length": len(text)}, {"by": "word"})


class Judge(Stage):
    kind: Literal["judge"]
    makes: ClassVar[str] = "Verdict"
    of: Annotated[str, Takes(("Checkpoint",))]
    at_most: int = Field(10, description="The longest word that passes, in letters.")

    def run(self, inputs, job):
        return Made({"passed": inputs["of"].facts["length"] <= self.at_most})


def page(run, artifacts):
    return f"<html>{run['run']}</html>", {"run": run["run"], "facts": {name: a.facts for name, a in artifacts.items()}}


if __name__ == "__main__":
    sys.exit(cli.main(sys.argv[1:], cli.Parts(KINDS, lambda: True, lambda: {"cpu": "golden"}, page)))
