"""Some cases of every fault test, and the driver that runs them all (`make faults`)."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))

import parts  # noqa: E402

FAKE = '''"""F99: numbers, of which one is bad, and that none is."""
QUICK = 2
BAD = {bad!r}


def cases():
    return [f"number-{{i}}" for i in range(6)]


def check(case, place):
    (place / "locked").mkdir(mode=0o500)
    with open(LOG, "a") as log:
        log.write(case + "\\n")
    assert case != BAD, "that one is bad"
    return {{"value": int(case[-1])}}


def summary(figures):
    return True, f"largest {{max(f['value'] for f in figures)}}"
'''


@pytest.mark.parametrize("name", list(parts.find()))
def test_a_sample_of_the_faults_breaks_no_promise(name):
    path = parts.find()[name]
    part = parts.load(path)
    if missing := parts.lacking(part):
        pytest.skip(f"{name}: {'; '.join(missing)}")
    worker = parts.Worker(path)
    try:
        records = [worker.run(case) for case in parts.quick(part)]
    finally:
        worker.close()
    assert records and [f"{r['case']}: {r['words']}" for r in records if not r["ok"]] == []
    ok, words = parts.judged(part, [r["figures"] for r in records])
    assert ok, words


class Driver:
    def __init__(self, folder):
        self.folder, self.log = folder, folder / "log"
        self.write(bad=None)

    def write(self, bad):
        (self.folder / "f99_fake.py").write_text(FAKE.format(bad=bad).replace("LOG", repr(str(self.log))))
        self.log.write_text("")

    def start(self, *arguments):
        command = [sys.executable, HERE, *arguments, "--folder", self.folder, "--records", self.folder / "records"]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # in the background of a shell it would be ignored
        return subprocess.Popen([str(word) for word in command], **options)

    def call(self, *arguments, code=0):
        process = self.start(*arguments)
        out, err = process.communicate(timeout=120)
        assert process.returncode == code, out + err
        return out + err

    def ran(self):
        return sorted(self.log.read_text().split())


@pytest.fixture
def driver(tmp_path):
    return Driver(tmp_path)


def test_the_driver_goes_on_where_it_was_and_forgets_what_changed(driver):
    assert "2 of 2 cases, 0 failed" in driver.call("f99", "--quick")
    assert driver.ran() == ["number-1", "number-4"]
    out = driver.call("f99")
    assert "6 of 6 cases, 0 failed, at most 50 % fail (95 %); largest 5" in out
    assert driver.ran() == [f"number-{i}" for i in range(6)]
    driver.call("--fresh", "f99_fake")
    assert len(driver.ran()) == 12
    driver.write(bad="number-9")
    driver.call()
    assert len(driver.ran()) == 6


def test_ctrl_c_leaves_what_is_done_and_the_next_call_goes_on(driver):
    path = driver.folder / "f99_fake.py"
    path.write_text(path.read_text().replace("    assert case", "    __import__('time').sleep(0.2)\n    assert case"))
    process = driver.start()
    while len(driver.ran()) < 3:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "goes on from here" in out and "FAILED" not in out, out + err
    done = [json.loads(line)["case"] for line in (driver.folder / "records/f99_fake.jsonl").read_text().splitlines()]
    assert 1 <= len(done) < 6
    driver.log.write_text("")
    assert "6 of 6 cases, 0 failed" in driver.call()
    assert driver.ran() == [f"number-{i}" for i in range(6) if f"number-{i}" not in done]


def test_the_driver_notices_a_failing_case_and_keeps_it(driver):
    driver.write(bad="number-2")
    assert "number-2 FAILED: that one is bad" in driver.call(code=1)
    assert "6 of 6 cases, 1 failed, at most 58.2 % fail" in driver.call(code=1)
    assert len(driver.ran()) == 6
    records = [json.loads(line) for line in (driver.folder / "records/f99_fake.jsonl").read_text().splitlines()]
    assert sum(not r["ok"] for r in records) == 1


def test_the_driver_notices_that_the_process_of_a_case_died(driver):
    path = driver.folder / "f99_fake.py"
    path.write_text(
        path.read_text().replace("    assert case", '    if case == "number-3":\n        __import__("os")._exit(7)\n    assert case')
    )
    assert "number-3 FAILED: the process that ran it ended with code 7" in driver.call(code=1)
    assert len(driver.ran()) == 6


def test_the_table_wants_every_part_in_full(driver):
    table = driver.folder / "docs/faults.md"
    assert "not run in full" in driver.call("--quick", "--table", table, code=1) and not table.exists()
    driver.call("--table", table)
    assert "| F99 | numbers, of which one is bad, and that none is. | 6 | 0 | 50 % | largest 5 |" in table.read_text()


def test_an_unknown_part_is_named(driver):
    assert "there is no part 'f98'" in driver.call("f98", code=1)


def test_bounds_are_those_of_the_binomial_distribution():
    assert parts.bound(0, 1000) == 0.003
    assert parts.bound(1, 6) == pytest.approx(0.5818, abs=1e-4)
    assert parts.bound(2, 1000) == pytest.approx(0.006283, abs=1e-5)
