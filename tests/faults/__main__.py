"""Runs the fault tests in full: `python tests/faults [PART ...] [--quick] [--fresh] [--table FILE]`.

Two processes work at a part at a time. Each result is appended to .faults/<part>.jsonl at once: after Ctrl-C the next call goes on,
and results of code that has changed since are dropped. A failure stays recorded until the code changes or --fresh is given.
"""

import argparse
import datetime
import os
import platform
import sys
import threading
import time
from pathlib import Path

import parts

WORKERS = 2
EVERY = 10.0  # seconds between two lines of progress


def main(arguments):
    asked = _parser().parse_args(arguments)
    found = parts.find(asked.parts, asked.folder)
    rows = [Row(name, path, asked) for name, path in found.items()]
    try:
        for row in rows:
            row.run()
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here")
        return 130
    print("\n".join(["", *(row.line() for row in rows)]))
    good = all(row.good() for row in rows)
    if asked.table:
        ran = {row.name: row for row in rows}  # as they are: a part may list its cases from a trace, which is never quite the same again
        known = parts.find((), asked.folder).items()
        everything = [ran[name] if name in ran else Row(name, path, asked, fresh=False) for name, path in known]
        good = _write_table(everything, asked) and good
    return 0 if good else 1


class Row:
    """One part: which of its cases are due, what came of them, and how that reads."""

    def __init__(self, name, path, asked, fresh=None):
        self.name, self.path, self.part = name, path, parts.load(path)
        self.lacking = parts.lacking(self.part)
        self.all = [] if self.lacking else list(self.part.cases())
        self.cases = parts.quick(self.part) if asked.quick and not self.lacking else self.all
        self.records = parts.Records(asked.records, name, parts.digest(path, self.part), asked.fresh if fresh is None else fresh)

    def run(self):
        if self.lacking:
            print(f"{self.name}: skipped: {'; '.join(self.lacking)}", flush=True)
            return
        due = [case for case in reversed(self.cases) if case not in self.records.by_case]
        lock, stop = threading.Lock(), threading.Event()
        threads = [threading.Thread(target=self._work, args=(due, lock, stop), daemon=True) for _ in range(min(WORKERS, len(due)))]
        for thread in threads:
            thread.start()
        try:
            shown = time.monotonic() if due else 0.0
            while any(thread.is_alive() for thread in threads):
                time.sleep(0.05)
                if time.monotonic() - shown > EVERY:
                    shown = time.monotonic()
                    print(self.progress(), flush=True)
        finally:
            stop.set()
            for thread in threads:
                thread.join(60)
        print(self.progress(), flush=True)

    def _work(self, due, lock, stop):
        worker = parts.Worker(self.path)
        try:
            while due and not stop.is_set():
                with lock:
                    if not due:
                        break
                    case = due.pop()
                record = worker.run(case)
                if record is None or (stop.is_set() and not record["ok"]):  # Ctrl-C reached the case too
                    break
                with lock:
                    self.records.add(record)
                    if not record["ok"]:
                        print(f"{self.name}: {case} FAILED: {record['words']}", flush=True)
        finally:
            worker.close()

    # -- what came of it

    def done(self):
        return [self.records.by_case[case] for case in self.cases if case in self.records.by_case]

    def failures(self):
        return sum(not record["ok"] for record in self.done())

    def complete(self):
        return bool(self.all) and all(case in self.records.by_case for case in self.all)

    def judged(self):
        return parts.judged(self.part, [record["figures"] for record in self.done()])

    def good(self):
        return bool(self.lacking) or (len(self.done()) == len(self.cases) and self.failures() == 0 and self.judged()[0])

    def progress(self):
        return f"{self.name}: {len(self.done())} of {len(self.cases)} cases, {self.failures()} failed"

    def line(self):
        if self.lacking:
            return f"{self.name}: skipped: {'; '.join(self.lacking)}"
        ok, words = self.judged()
        rate = f"at most {100 * parts.bound(self.failures(), len(self.done())):.3g} % fail (95 %)"
        return f"{self.progress()}, {rate}" + (f"; {words}" if words else "") + ("" if ok else " -- NOT AS PROMISED")


def _write_table(rows, asked):
    unfinished = [row for row in rows if not row.complete()]
    if asked.quick or unfinished:
        names = ", ".join(row.name for row in unfinished) or "--quick was given"
        print(f"{asked.table} is not written: not run in full: {names}", file=sys.stderr)
        return False
    asked.table.parent.mkdir(parents=True, exist_ok=True)
    asked.table.write_text(table(rows), encoding="utf-8")
    print(f"wrote {asked.table}")
    return True


def table(rows):
    """The page for people: what was tried, how often it went wrong, and what that excludes."""
    lines = [
        "# Fault tests",
        "",
        f"{datetime.date.today().isoformat()}, {_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"{platform.system()} {platform.release()}. Command: `make faults`.",
        "",
        "Bound: with 95 % confidence at most this share of such faults breaks the promise (3/n where nothing failed).",
        "",
        "| Part | Faults and promise | Tests | Failures | Bound | Found |",
        "|---|---|---:|---:|---:|---|",
    ]
    mutations = [row for row in rows if row.name == "mutations"]
    for row in (row for row in rows if row not in mutations):
        name, _, text = parts.title(row.part).partition(":")
        failures, count = row.failures(), len(row.done())
        ok, words = row.judged()
        cells = (
            name,
            text.strip(),
            f"{count:,}",
            str(failures),
            f"{100 * parts.bound(failures, count):.2g} %",
            words + ("" if ok else " (not as promised)"),
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    for row in mutations:
        count = len(row.done())
        lines += ["", f"{parts.title(row.part)} Caught: {count - row.failures()} of {count}."]
    return "\n".join(lines) + "\n"


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor() or "unknown processor"
    )


def _parser():
    parser = argparse.ArgumentParser(prog="python tests/faults", description="Runs the fault tests; results are kept in .faults/.")
    parser.add_argument("parts", nargs="*", metavar="PART", help="f07, f07_corruption, mutations; all when none is named")
    parser.add_argument("--quick", action="store_true", help="only the cases that `make test` takes")
    parser.add_argument("--fresh", action="store_true", help="forget what was recorded of these parts")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the table of all parts; refused while one is incomplete")
    parser.add_argument("--folder", type=Path, default=parts.HERE, help=argparse.SUPPRESS)
    parser.add_argument("--records", type=Path, default=parts.ROOT / ".faults", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
