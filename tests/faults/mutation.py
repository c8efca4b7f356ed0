"""What a mutation is, and the tests that must fail, by short names."""

from typing import NamedTuple

POWER = "f04"
STORE = "tests/pipeline/test_store.py"
LOOKS = "tests/pipeline/test_verification.py"
KEYS = "tests/pipeline/test_keys.py"
RUNNER = "tests/pipeline/test_runner.py"
UPKEEP = "tests/pipeline/test_upkeep.py"
ROOM = "tests/pipeline/test_room.py"
SECRETS = "tests/pipeline/test_secrets.py"
STATE = "tests/stages/test_state.py"
WEIGHTS = "tests/stages/test_weights.py"
SAMPLES = "tests/stages/test_samples.py"
SETBACKS = "tests/stages/test_setbacks.py"
EXPORT = "tests/stages/test_export.py"
ENGINES = "tests/stages/test_engines.py"


class Mutation(NamedTuple):
    """A text that stands once in a file, what takes its place, and the test that must fail: a fault part or pytest's name of a test."""

    name: str
    file: str
    old: str
    new: str
    test: str
    quick: bool = False  # one of those in `make test`


M = Mutation
