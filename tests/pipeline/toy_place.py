"""A folder with a toy recipe, and the real command line to drive over it."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
RECIPE = """
name: toy
stages:
  one: {kind: number, value: 1}
  two: {kind: number, value: 2}
  sum: {kind: sum, of: [one, two]}
  far: {kind: count, of: one, steps: 3}
  judge: {kind: judge, of: sum, at_most: 10}
profiles:
  cpu: {stages.two.value: 20}
"""


class Place:
    def __init__(self, folder):
        self.folder, self.recipe = folder, folder / "toy.yaml"
        self.recipe.write_text(RECIPE)
        self.environment = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent.parent}", "TOY_DEVICE": "1"}

    def start(self, *arguments):
        command = [sys.executable, str(HERE / "toy_main.py"), *map(str, arguments)]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": self.folder, "env": self.environment}
        return subprocess.Popen(command, start_new_session=True, **options)

    def call(self, *arguments, code=0):
        process = self.start(*arguments)
        out, err = process.communicate(timeout=60)
        assert code is None or process.returncode == code, out + err
        assert "Traceback" not in out + err
        return out + err

    def run(self, *more, code=0):
        return self.call("run", self.recipe, "--profile", "none", *more, code=code)

    def edit(self, old, new):
        assert old in self.recipe.read_text()
        self.recipe.write_text(self.recipe.read_text().replace(old, new))

    def states(self, run):
        return {line.split()[0]: line.split()[1] for line in self.call("ls", run).splitlines()}


def wait_for(process, words):
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(process.stderr.read())
