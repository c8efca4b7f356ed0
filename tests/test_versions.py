import importlib.util
import json
from pathlib import Path

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("versions", HERE / "versions.py")
versions = importlib.util.module_from_spec(spec)
spec.loader.exec_module(versions)


def test_code_that_changed_has_a_new_version():
    pinned, found = json.loads(versions.PINNED.read_text()), versions.current()
    stale = [name for name in found if name in pinned and found[name][1] != pinned[name][1] and found[name][0] == pinned[name][0]]
    assert not stale, f"{stale}: the code changed. Raise `version` there (or, if no result can change, leave it), then `make pin`"
    assert found == pinned, "run `make pin` to record new versions and new rows"


def test_a_changed_line_changes_the_digest_and_a_comment_does_not(tmp_path):
    file = tmp_path / "a.py"
    digests = []
    for text in ("x = 1\n", "x = 1  # why\n", '"""Words."""\nx = 1\n', "x = 2\n"):
        file.write_text(text)
        digests.append(versions.digest({file}))
    assert digests[0] == digests[1] == digests[2] != digests[3]


def test_every_variant_of_an_operation_counts_for_the_rows_that_use_it():
    found = {path.relative_to(versions.ROOT).as_posix() for path in versions.closure(versions.ROOT / "stages/kd/cwd/loss.py")}
    assert {f"kernels/channel_kl/{name}" for name in ("reference.py", "triton_.py", "cpu.py", "cpu.cpp")} <= found
