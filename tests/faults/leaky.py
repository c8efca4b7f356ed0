"""The toy command line with one stage that gives away what it knows: it prints, says, raises or writes every secret within its reach."""

import base64
import json
import os
import sys
from pathlib import Path
from typing import ClassVar, Literal
from urllib.parse import quote

import toy_main
import toy_stages
from pydantic import Field

from pipeline import cli
from pipeline.errors import BadData
from pipeline.stage import Made, Stage

KINDS = {**toy_stages.KINDS, "leak": "leaky:Leak"}
FILES = ("plain", "json", "url", "hex", "HEX", "base64-0", "base64-1", "base64-2", "utf-32", "split", "name")
HOWS = ("quiet", "prints", "says", "raises", "bug", "crash", *FILES, "facts", "beside")
TELL = "TELL"  # the variable that names, by commas, those whose values the stage gives away


class Leak(Stage):
    kind: Literal["leak"]
    makes: ClassVar[str] = "Checkpoint"
    how: Literal[HOWS] = Field("quiet", description="How it gives away what it knows.")
    url: str = Field("", description="A place with a password in it.")
    token: str = Field("", description="A token, given in the recipe.")
    size: int = Field(0, description="A number; a text here is a mistake of the recipe.")

    def run(self, inputs, job):
        known = [os.environ[name] for name in os.environ.get(TELL, "").split(",") if name] + [t for t in (self.url, self.token) if t]
        told = " and ".join(known)
        if self.how != "quiet":
            print(dict(os.environ), repr(self), told, flush=True)
            print(json.dumps(dict(os.environ)), told, file=sys.stderr, flush=True)
        if self.how == "says":
            job.say(f"connecting with {told}")
            job.progress(1, 1, loss=0.5)
        elif self.how == "raises":
            raise BadData(f"cannot fetch with {told}: look there")
        elif self.how == "bug":
            raise KeyError(told)
        elif self.how == "crash":
            os.kill(os.getpid(), 9)
        for n, value in enumerate(known):
            if self.how in FILES:
                name = "".join(c for c in value if c.isalnum() or c in "._-")[:100] if self.how == "name" else f"file{n}.bin"
                (job.out / name).write_bytes(_written(self.how, value))
        (job.out / "number.txt").write_text("1")
        facts = {"deep": [{"used": told}]} if self.how == "facts" else {}
        return Made({"value": 1.0, **facts}, {"used": told} if self.how == "beside" else {})


def _written(how, value):
    data = value.encode()
    if how == "json":
        return json.dumps({"used": value}).encode()
    if how == "url":
        return f"https://host/?q={quote(value, safe='')}".encode()
    if how.startswith("base64"):
        return base64.b64encode(b"abc"[: int(how[-1])] + data + b"rest of it")
    if how == "split":  # across the border of two pieces that are read one after the other
        return b"\0" * ((1 << 20) - len(data) // 2) + data + b"\1" * 100
    plain = {"hex": data.hex().encode(), "HEX": data.hex().upper().encode(), "utf-32": value.encode("utf-32-le"), "name": b""}
    return b"before " + plain.get(how, data) + b" after"


def main(arguments):
    parts = cli.Parts(KINDS, lambda: True, lambda: {"cpu": "toy"}, toy_main.page)
    return cli.main(arguments, parts)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    sys.exit(main(sys.argv[1:]))
