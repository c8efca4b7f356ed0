"""What of a training is saved, and how it comes back: after an interruption, or when training must go back to a milestone.

All processes read; only the first one writes, and the others hear from it whether that worked before they wait for anything else.
"""

from pipeline.errors import BadStore
from pipeline.keys import settings as settings_of
from pipeline.stage import Job
from stages import state as states
from stages.fit import Fit
from stages.peers import LostContact, Peers
from stages.pupil import Pupil
from stages.setbacks import Setbacks


class Savings:
    """`step` and `milestone` describe what was last saved or put back; step is -1 where nothing on disk is as new as this process."""

    def __init__(self, job: Job, settings: Fit, pupil: Pupil, scaler, setbacks: Setbacks, peers: Peers):
        self.job, self.settings, self.pupil, self.scaler, self.setbacks, self.peers = job, settings, pupil, scaler, setbacks, peers
        self.step, self.milestone = -1, False

    def save(self, step: int, seconds: float, milestone: bool = False) -> None:
        error = None
        if self.peers.first:
            try:
                states.save(self.job.state, self._state(step, seconds, milestone))
            except Exception as problem:  # whatever it is, the others must hear of it
                error = problem
        if self.peers.most(error is not None):
            raise error or LostContact("the first process could not save the training state")
        self.step, self.milestone = step, milestone

    def outdated(self) -> None:
        """Something came to be known without a step: a point of the validation curve."""
        self.step, self.milestone = -1, False

    def resume(self) -> states.State | None:
        """The newest state, put back; None if there is none yet."""
        return self._resumed(states.newest(self.job.state, self.job.say))

    def back_to(self, milestone: int) -> states.State | None:
        """Everything as it was at that milestone of this round, except what is known of setbacks; None if it is gone."""
        found = states.milestone(self.job.state, self.setbacks.round, milestone, self.job.say)
        if self.peers.most(found is None):
            return None
        self._put_back(found)
        return found

    def back_before(self, milestone: int) -> states.State:
        """As if training had been interrupted before that milestone, which is thus made anew."""
        found = self._resumed(states.newest(self.job.state, self.job.say, before=(self.setbacks.round, milestone)))
        if found is None:
            text = f"the milestone at step {milestone} in {self.job.state} cannot be read, and nothing before it is left"
            raise BadStore(f"{text}; delete that folder to start over")
        return found

    def _resumed(self, found: states.State | None) -> states.State | None:
        if not self.peers.same(found.step if found else -1):
            raise BadStore(f"the processes of this training read different states in {self.job.state}; run again")
        if found is None:
            return None
        if found.facts["fit"] != settings_of(self.settings):
            raise BadStore(f"the training state in {self.job.state} was saved under other settings; delete that folder to start over")
        self._put_back(found)
        self.setbacks.put_back(found.facts["setbacks"])
        self.job.say(f"resumed at step {found.step} of {self.settings.steps}")
        return found

    def _put_back(self, found: states.State) -> None:
        self.pupil.put_back(found)
        if self.scaler:
            self.scaler.load_state_dict(found.facts["scaler"])
        self.step, self.milestone = found.step, found.milestone

    def _state(self, step: int, seconds: float, milestone: bool) -> states.State:
        tensors, facts = self.pupil.captured()
        facts |= {"fit": settings_of(self.settings), "setbacks": self.setbacks.facts(), "seconds": seconds}
        facts["scaler"] = self.scaler.state_dict() if self.scaler else None
        validated = any(point["step"] == step for point in self.pupil.curves.val)
        return states.State(step, tensors, facts, self.setbacks.round, milestone, validated)
