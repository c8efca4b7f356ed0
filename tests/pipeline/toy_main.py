"""The real command line over the toy table, so that tests can drive it as a process: python toy_main.py run recipe.yaml

What tests may set, in the environment: TOY_DEVICE (there is a device), TOY_PYTHON (the program that stages run in: a wrapper that
traces it), TOY_RESERVE (bytes that must stay free: with 0 the writing itself meets the end of the disk).
"""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # as pipeline/__main__.py does before it imports anything else

import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402

import toy_stages  # noqa: E402

from pipeline import cli, room  # noqa: E402


def page(run, artifacts):
    facts = {**run, "facts": {name: artifact.facts for name, artifact in artifacts.items()}}
    return f"<html>{run['run']}</html>", json.loads(json.dumps(facts))


if __name__ == "__main__":
    sys.executable = os.environ.get("TOY_PYTHON", sys.executable)
    room.RESERVE = int(os.environ.get("TOY_RESERVE", room.RESERVE))
    judging = {"judge": toy_stages.judged, "baseline": toy_stages.baseline}
    parts = cli.Parts(toy_stages.KINDS, lambda: "TOY_DEVICE" in os.environ, lambda: {"cpu": "toy"}, page, **judging)
    sys.exit(cli.main(sys.argv[1:], parts))
