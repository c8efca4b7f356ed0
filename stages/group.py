"""Training in several processes of one machine: started together, watched, and started again from the last state when one of them dies.

The process of the stage becomes their supervisor: it trains nothing, tells them to stop, passes on what the first one says, and never
lets one outlive the others. They find each other through a file and speak over the loopback device, so that no port is needed.
"""

import os
import re
import signal
import sys
import tempfile
import time
import traceback
from datetime import timedelta
from importlib import import_module
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any

from pipeline.errors import Missing, Stillhouse, Stopped
from pipeline.limits import die_with, memory_kills
from pipeline.stage import Job, Made

TIMEOUT = 300.0  # seconds that a process waits for the others before it takes them for dead
AGAIN = 2  # times the group is started again after a loss, each time only if it had saved something new
LINGER = 5.0  # seconds the others have to say what they know, once one has failed
LISTEN = 0.1  # seconds between two looks at the signals
PROGRESS_EVERY = 0.1  # seconds
START = "spawn"  # a process that starts afresh: CUDA does not survive a fork


class Lost(Exception):
    """A process died or fell silent, and nobody said why."""


def together(work: str, arguments: tuple, count: int, job: Job) -> Made:
    """What `work` ("module:function", called with the arguments and a job) makes in `count` processes at once."""
    job.stop_asked()  # from now on signals are heeded here
    for start in range(1 + AGAIN):
        known = _saved(job.state)
        try:
            return Group(work, arguments, count, job).followed()
        except Lost as loss:
            newest = _saved(job.state)
            if number := job.stop_asked():
                raise Stopped("stopped; the same command goes on from the last saved state", number) from None
            if start == AGAIN or newest == known:
                why = "it was started again and again" if start == AGAIN else "nothing new had been saved since it was started"
                raise Missing(f"{loss}, and {why}. Run again to go on from the last saved state, or set fit.processes: 1") from None
            job.say(f"{loss}; all {count} are started again from the last saved state")
    raise AssertionError("the last start either returns or raises")


class Group:
    """One start of all processes, until they have ended one way or the other."""

    def __init__(self, work: str, arguments: tuple, count: int, job: Job):
        self.work, self.arguments, self.count, self.job = work, arguments, count, job
        self.told: dict[int, tuple[str, Any]] = {}  # rank -> the last it said: ("made", Made), ("error", exception) or ("lost", text)
        self.asked = 0  # the signal that was passed on

    def followed(self) -> Made:
        kills = memory_kills()
        with tempfile.TemporaryDirectory(prefix="stillhouse-") as folder:
            try:
                self._start(Path(folder) / "meeting")
                self._follow()
            finally:
                codes = self._end()
        return self._result(codes, memory_kills() > kills)

    def _start(self, meeting: Path) -> None:
        context = get_context(START)
        self.processes, self.ears = [], {}
        for rank in range(self.count):
            ear, mouth = context.Pipe(duplex=False)
            place = {"rank": rank, "count": self.count, "meeting": str(meeting), "timeout": TIMEOUT, "parent": os.getpid()}
            lent = {"out": self.job.out, "state": self.job.state, "rehearsing": self.job.rehearsing}
            process = context.Process(target=work_as_one, args=(self.work, self.arguments, place, lent, mouth))
            process.start()
            mouth.close()
            self.processes.append(process)
            self.ears[ear] = rank

    def _follow(self) -> None:
        """Until all have ended; the others only have a while once one has."""
        done = failed = float("inf")  # when one ended
        while any(process.is_alive() for process in self.processes) and time.monotonic() < min(done + TIMEOUT, failed + LINGER):
            self._listen(LISTEN)
            self._pass_on_signals()
            codes = [process.exitcode for process in self.processes]
            done = min(done, time.monotonic()) if any(code == 0 for code in codes) else done
            failed = min(failed, time.monotonic()) if any(codes) else failed

    def _listen(self, seconds: float) -> None:
        for ear in connection.wait([*self.ears, *(p.sentinel for p in self.processes if p.is_alive())], seconds):
            if ear in self.ears:
                self._hear(ear)

    def _hear(self, ear: connection.Connection) -> None:
        rank = self.ears[ear]
        while True:
            try:
                if not ear.poll():
                    return
                what, *rest = ear.recv()
            except (EOFError, OSError):
                del self.ears[ear]
                ear.close()
                return
            if what == "say":
                self.job.say(*rest)
            elif what == "progress":
                self.job.progress(rest[0], rest[1], **rest[2])
            else:
                self.told[rank] = (what, *rest)

    def _pass_on_signals(self) -> None:
        number = self.job.stop_asked()
        if number and not self.asked:
            self.asked = number
            for process in self.processes:
                if process.is_alive():
                    os.kill(process.pid, number)

    def _end(self) -> list[int]:
        """Nobody is left behind, stopped ones included. Returns their exit codes, as they were before this."""
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
            process.join()
        for ear in list(self.ears):
            self._hear(ear)
        for ear in self.ears:
            ear.close()
        return codes

    def _result(self, codes: list[int | None], short_of_memory: bool) -> Made:
        if self.told.get(0, ("",))[0] == "made":
            return self.told[0][1]
        errors = [error for what, error in self.told.values() if what == "error"]
        for error in errors:
            if not isinstance(error, Stillhouse) or error.code != Stillhouse.code:
                raise error
        if short_of_memory and -signal.SIGKILL in codes:
            raise Missing("the system ended a process of this training for want of memory: lower fit.batch, fit.crop or fit.processes")
        if errors and len(self.told) == self.count:  # where one said nothing, the others' errors may all come from that
            raise errors[0]
        raise Lost("; ".join(self._fate(rank, code) for rank, code in enumerate(codes)))

    def _fate(self, rank: int, code: int | None) -> str:
        if rank in self.told:
            what, fate = self.told[rank]
            fate = "was done" if what == "made" else f"said: {_briefly(fate)}"
        elif code is None:
            fate = "fell silent"
        else:
            fate = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        return f"process {rank + 1} of {self.count} {fate}"


def work_as_one(work: str, arguments: tuple, place: dict[str, Any], lent: dict[str, Any], mouth: connection.Connection) -> None:
    """What each process of the group does."""
    job = GroupJob(**lent, rank=place["rank"], mouth=mouth)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, job.on_signal)
    die_with(place["parent"])
    try:
        _join(place)
        module, _, name = work.partition(":")
        mouth.send(("made", getattr(import_module(module), name)(*arguments, job)))
        code = 0
    except Exception as error:
        code = 1
        mouth.send(_told(error))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # at once: what the group's library cleans up at the end may wait for processes that are gone


def _join(place: dict[str, Any]) -> None:
    rank, count = str(place["rank"]), str(place["count"])
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else it asks for this machine's name, which need not lead anywhere
    import torch

    torch.set_num_threads(1)
    if on_device := torch.cuda.is_available():
        if (found := torch.cuda.device_count()) < place["count"]:
            raise Missing(f"fit.processes {count} needs {count} GPUs, and this machine has {found}: lower fit.processes")
        torch.cuda.set_device(place["rank"])
    meeting = {"init_method": f"file://{place['meeting']}", "rank": place["rank"], "world_size": place["count"]}
    torch.distributed.init_process_group("nccl" if on_device else "gloo", timeout=timedelta(seconds=place["timeout"]), **meeting)


def _told(error: Exception) -> tuple[str, Any]:
    import torch

    from stages.peers import LostContact

    if isinstance(error, Stillhouse):
        return "error", error
    if isinstance(error, OSError) and error.errno:
        return "error", OSError(error.errno, error.strerror, error.filename)
    traceback.print_exc()
    if isinstance(error, LostContact | torch.distributed.DistError):
        return "lost", str(error)
    return "error", Stillhouse(f"{type(error).__name__}: {error}")


def _briefly(error: Any) -> str:
    """The first sentence, without where in a library it happened."""
    return re.sub(r"\[[^\]]*\.cc:\d+\] ", "", str(error)).partition(". ")[0].splitlines()[0]


class GroupJob:
    """The Job of one process: the first one speaks, all of them stop when told."""

    def __init__(self, out: Path, state: Path, rehearsing: bool, rank: int, mouth: connection.Connection):
        self.out, self.state, self.rehearsing = out, state, rehearsing
        self._rank, self._mouth, self._signal, self._shown = rank, mouth, 0, 0.0

    def say(self, text: str) -> None:
        if self._rank == 0:
            self._mouth.send(("say", text))

    def progress(self, done: int, total: int, **figures: float) -> None:
        now = time.monotonic()
        if self._rank == 0 and (done >= total or now - self._shown >= PROGRESS_EVERY):
            self._shown = now
            self._mouth.send(("progress", done, total, figures))

    def stop_asked(self) -> int:
        return self._signal

    def on_signal(self, number: int, frame: Any) -> None:
        self._signal = number


def _saved(folder: Path) -> set[str]:
    """The names of the states there are."""
    return {path.name for path in folder.iterdir() if not path.name.startswith("tmp-")} if folder.is_dir() else set()
