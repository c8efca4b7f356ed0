"""With STILLHOUSE_FULL=1 (`make test-full`) a test that is skipped for a missing tool is a failure: nothing is left out silently."""

import os

import pytest

ELSEWHERE = ("test_optimum.py", "STILLHOUSE_CAMVID", "an NVIDIA GPU")  # has an environment of its own; needs data; a device


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name != "test_line.py")  # the longest first, so that two processes end together


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if os.environ.get("STILLHOUSE_FULL") and report.skipped and not any(word in f"{item.nodeid} {report.longrepr}" for word in ELSEWHERE):
        report.outcome, report.longrepr = "failed", f"skipped although everything was asked for: {report.longrepr}"
