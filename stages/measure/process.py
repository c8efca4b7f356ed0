"""A process that answers: lines go to its standard input, one JSON object comes back for each."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline import errors

ROOT = Path(__file__).resolve().parents[2]


class Process:
    """`name`: as it is called in errors. Started in a session of its own: a Ctrl-C reaches the stage, which then ends it."""

    def __init__(self, name: str, program: list[str], log: Path):
        self.name, self.log = name, log
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "start_new_session": True}
        with log.open("wb") as stderr:
            self.process = subprocess.Popen([sys.executable, *program], stderr=stderr, cwd=ROOT, **pipes)

    def ask(self, line: str) -> dict[str, Any]:
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer says why
        return self.answer()

    def answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            last = self.log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
            raise errors.Stillhouse(f"the process of {self.name} ended with {self.process.wait()}: {last[0]}")
        answer = json.loads(line)
        if "error" in answer:
            raise errors.BY_NAME[answer["error"]](f"{self.name}: {answer['message']}")
        return answer

    def end(self) -> None:
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
