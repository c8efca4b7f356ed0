"""What is done about steps whose numbers are not finite: they are skipped; when too many come in a row, training goes back to a milestone
and on with half the learning rate; when that has not helped twice, it ends.

All of it follows from the numbers of the steps alone, never from when somebody looked, saved or interrupted: the result stays the same.
"""

from typing import Any

SKIPS = 3  # steps in a row that are only skipped
ROUNDS = 2  # times that training goes back
MILESTONE_STEPS = 50  # the least distance of two milestones
NAMED = 100  # skipped steps whose samples are listed in the artifact; more than that is a list nobody reads


class Setback(Exception):
    """Training cannot go on. `step` is the first that went wrong, counted from 0; `at` is how many were done when that was sure."""

    def __init__(self, step: int, at: int, what: str):
        super().__init__(what)
        self.step, self.at, self.what = step, at, what


class Setbacks:
    """`round`: how often training went back; `begun`: the step at which this round began; `streak`: skipped steps in a row just now."""

    def __init__(self, steps: int):
        self.every = max(MILESTONE_STEPS, steps // 20)
        self.round = self.begun = self.streak = 0
        self.events: list[dict[str, Any]] = []

    @property
    def factor(self) -> float:
        """On the learning rate."""
        return 0.5**self.round

    def fine(self) -> None:
        self.streak = 0

    def skipped(self, step: int, samples: list[str]) -> None:
        """Raises Setback when it is one too many."""
        self.streak += 1
        listed = sum(event["event"] == "skipped" for event in self.events) < NAMED
        self.events.append({"step": step + 1, "event": "skipped"} | ({"samples": samples} if listed else {}))
        if self.streak > SKIPS:
            raise Setback(step - SKIPS, step + 1, f"the loss or the gradients of steps {step - SKIPS + 1} to {step + 1} are not finite")

    def milestone(self, done: int) -> bool:
        return done == self.begun or done % self.every == 0

    def target(self, step: int) -> int:
        """The newest milestone of this round at or before a step."""
        return max(self.begun, step - step % self.every)

    def went_back(self, at: int, to: int) -> None:
        self.round, self.begun, self.streak = self.round + 1, to, 0
        self.events.append({"step": at, "event": "went back", "to": to, "lr_factor": self.factor})

    KEPT = ("round", "begun", "streak", "events")

    def facts(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in self.KEPT}

    def put_back(self, facts: dict[str, Any]) -> None:
        for key in self.KEPT:
            setattr(self, key, facts[key])
