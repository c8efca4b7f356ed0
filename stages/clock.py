"""Where the time of a training goes: steps, waiting for data, and what is neither (validation, saving)."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median


class Clock:
    """`before`: seconds that earlier sessions of the same training took."""

    def __init__(self, before: float = 0.0):
        self.before, self.started = before, time.perf_counter()
        self.waited = self.paused = 0.0
        self.busy = time.process_time()  # of the processor, for this process, less that of pauses
        self.step_ms: list[float] = []  # the mean of each stretch between two looks
        self._last_look, self._last_save = self.started, self.started
        self._steps = self._looked_at = 0

    def total(self) -> float:
        return self.before + time.perf_counter() - self.started

    @contextmanager
    def waiting(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time inside belongs to no step."""
        start, busy = time.perf_counter(), time.process_time()
        yield
        spent = time.perf_counter() - start
        self.busy += time.process_time() - busy
        self.paused += spent
        self._last_look += spent

    def since_look(self) -> float:
        return time.perf_counter() - self._last_look

    def stepped(self) -> None:
        self._steps += 1

    def look(self) -> float:
        """Ends a stretch of steps: milliseconds per step in it."""
        now = time.perf_counter()
        if self._steps > self._looked_at:
            self.step_ms.append(1000 * (now - self._last_look) / (self._steps - self._looked_at))
        self._last_look, self._looked_at = now, self._steps
        return self.step_ms[-1]

    def save_due(self, every: float) -> bool:
        return time.perf_counter() - self._last_save >= every

    def saved(self) -> None:
        self._last_save = time.perf_counter()

    def facts(self) -> dict[str, float]:
        """data_wait: the share of the steps' time that was spent waiting for data. cpu_ms: of the processor, per step of this session;
        on a machine without a GPU it hardly sees what else runs there."""
        stepping = time.perf_counter() - self.started - self.paused
        return {
            "seconds": round(self.total(), 3),
            "step_ms": round(median(self.step_ms), 3) if self.step_ms else 0.0,
            "cpu_ms": round(1000 * (time.process_time() - self.busy) / self._steps, 3) if self._steps else 0.0,
            "data_wait": round(self.waited / stepping, 4) if stepping else 0.0,
        }
