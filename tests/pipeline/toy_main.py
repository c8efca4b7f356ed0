"""The real command line over the toy table, so that tests can drive it as a process: python toy_main.py run recipe.yaml"""

import json
import os
import sys

import toy_stages

from pipeline import cli


def page(run, artifacts):
    facts = {**run, "facts": {name: artifact.facts for name, artifact in artifacts.items()}}
    return f"<html>{run['run']}</html>", json.loads(json.dumps(facts))


if __name__ == "__main__":
    sys.exit(cli.main(sys.argv[1:], cli.Parts(toy_stages.KINDS, lambda: "TOY_DEVICE" in os.environ, lambda: {"cpu": "toy"}, page)))
