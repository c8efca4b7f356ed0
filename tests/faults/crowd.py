"""Many processes that use one store at the same time, forked so that a thousand of them are cheap, and a check of what they leave."""

import contextlib
import os
import signal
import time
import traceback
from pathlib import Path

from pipeline import limits, locks
from pipeline.fsck import examine
from pipeline.gc import sweep
from pipeline.keys import digest
from pipeline.pins import pin
from pipeline.store import Store

CONTENTS = 6  # different artifacts; many keys lead to the same one
KEYS = 12
PATIENCE = 120  # seconds that all of them together may take


class Crowd:
    """`keep`: how many runs of each recipe the sweeping loop counts, as in `store gc --keep`."""

    def __init__(self, place, chance, keep=None, store=None):
        self.place, self.chance, self.keep = place, chance, keep
        self.store = Store(store or place / "store").prepare()
        self.swept = 0
        for folder in ("errors", "told", "swept"):
            (place / folder).mkdir()

    def publish(self, publishers, at_once, killed):
        """So many publishers, some killed at any moment. Returns figures; raises where something in use was lost."""
        plans = [self._plan(n, killed) for n in range(publishers)]
        count = 0
        with self.sweeping():
            at_work = {}
            limit = time.monotonic() + PATIENCE
            try:
                while plans or at_work:
                    assert time.monotonic() < limit, f"{len(at_work)} publishers hang"
                    while plans and len(at_work) < at_once:
                        plan = plans.pop(0)
                        ends = time.monotonic() + plan["killed"] if plan["killed"] is not None else None
                        at_work[forked(lambda plan=plan: self._publisher(plan), self.place)] = ends
                    for pid, ends in list(at_work.items()):
                        if ends is not None and time.monotonic() >= ends:
                            os.kill(pid, signal.SIGKILL)
                        gone, status = os.waitpid(pid, os.WNOHANG)
                        if gone:
                            count += os.WIFSIGNALED(status)
                            del at_work[pid]
                    time.sleep(0.001)
            finally:
                for pid in at_work:
                    put_down(pid)
        self._examined()
        return {"publishers": publishers, "killed": count, "swept": self.swept}

    @contextlib.contextmanager
    def sweeping(self):
        """Another process sweeps as fast as it can meanwhile."""
        pid = forked(self._sweeper, self.place)
        try:
            yield
            assert os.waitpid(pid, os.WNOHANG) == (0, 0), f"sweeping failed: {self._errors()}"
        finally:
            put_down(pid)
        self.swept = sum(map(int, (self.place / "swept/count").read_text().split())) if (self.place / "swept/count").exists() else 0

    # -- what the processes do

    def _plan(self, n, killed):
        """Decided here, so that a seed decides it: whose run, which key, what content, whether and when it is killed."""
        chance = self.chance
        key = chance.randrange(KEYS)
        return {
            "n": n,
            "key": key,
            "content": key % CONTENTS,
            "recipe": f"recipe{chance.randrange(3)}",
            "rooted": chance.random() < 0.75,
            "pinned": chance.random() < 0.15,
            "killed": chance.uniform(0.0, 0.06) if chance.random() < killed else None,
        }

    def _publisher(self, plan):
        """As the runner does it: what a run will need is noted before it is made."""
        store, image = Store(self.store.root), {"key": plan["key"]}
        key = digest(image)
        if not plan["rooted"]:  # nobody will ever ask for it
            with locks.alone(store.alone(key), "nobody", lambda holder: None):
                self._made(store, key, image, plan)
            return
        with contextlib.ExitStack() as at_work:
            with store.shared():  # sweeping sees no run that is not locked yet
                run = store.new_run(plan["recipe"])
                at_work.enter_context(locks.alone(store.alone(run), run, None))
            store.note(run, "begin", sequence=store.next_sequence(), recipe=plan["recipe"])
            with store.shared():
                store.note(run, "starts", stage="it", key=key)
            with locks.alone(store.alone(key), run, lambda holder: None):
                found = store.find(key)
                id = found.id if found else self._made(store, key, image, plan)
            store.verify(id)
            store.note(run, "stage", stage="it", state="kept" if found else "made", key=key, id=id, seconds=0.0)
            if plan["pinned"]:
                pin(store, f"{run}/it")
            self._tell(plan, f"{run} {key} {id} {plan['pinned']:d}")
            store.note(run, "end", code=0, error=None)

    def _made(self, store, key, image, plan):
        store.clear_workplaces(key)
        with store.workplace(key) as folder:
            for n in range(3):
                (folder / f"{n}.bin").write_bytes(f"{plan['content']} {n} ".encode() * 50 * n)
            return store.publish(key, image, folder, "Dataset", {"content": plan["content"]}, {"by": plan["n"]})

    def _sweeper(self):
        while True:
            taken = sweep(Store(self.store.root), self.keep)
            with open(self.place / "swept/count", "a") as file:
                file.write(f"{len(taken.objects)}\n")

    def _tell(self, plan, line):
        fresh = self.place / f"told.{plan['n']}"
        fresh.write_text(line)
        fresh.rename(self.place / "told" / str(plan["n"]))  # whole or not at all, also when killed here

    # -- what must be true afterwards

    def _examined(self):
        assert not self._errors(), self._errors()
        store = Store(self.store.root)
        held = [p.name for p in (store.root / "locks").glob("*.lock") if p.name != "store.lock" and not locks.is_free(p)]
        assert not held, f"still locked: {held}"
        sweep(store, self.keep)  # also takes the exclusive lock
        needed = self._needed(store)
        for key, id in needed:
            found = Store(store.root).find(key)
            assert found and found.id == id, f"{id[:12]} was told to be there, is needed, and is lost"
            Store(store.root).verify(id)
        found = {p.name for p in store.root.glob("objects/sha256/*/*")}
        assert {id for _, id in needed} <= found
        left = [f for f in examine(store) if not f.where.endswith("journal.jsonl")]  # a kill may tear a line of those
        assert not left, f"fsck says {left}"
        for folder in ("tmp", "trash", "quarantine"):
            assert not list((store.root / folder).iterdir()), f"left in {folder}"

    def _needed(self, store):
        """(key, id) of what was announced by runs that count, or is pinned."""
        runs = {run for recipe in {r.rpartition("-")[0] for r in store.runs()} for run in store.runs(recipe)[-(self.keep or 0) :]}
        told = [file.read_text().split() for file in (self.place / "told").iterdir()]
        return {(key, id) for run, key, id, is_pinned in told if run in runs or is_pinned == "1"}

    def _errors(self):
        return "\n".join(file.read_text()[-1500:] for file in (self.place / "errors").iterdir())


def forked(act, place):
    """Runs `act` in a process of its own that dies with this one; what goes wrong there is found in place/errors."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        limits.die_with(parent)
        act()
        os._exit(0)
    except BaseException:
        Path(place, "errors", str(os.getpid())).write_text(traceback.format_exc())
    finally:
        os._exit(1)


def put_down(pid):
    """Killed and reaped, if it is not yet."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
