"""Finds the layers that a network cannot afford to round, when all of them together cost more mIoU than the budget allows.

First every layer is quantised alone, and the noise it puts on the logits of a few images puts the layers in order. Then they go back
to float one after the other, the loudest first, until the loss on held-out training images is within the budget. Those images are
neither calibrated on nor reported on.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.errors import Stillhouse, Stopped
from pipeline.stage import Job
from stages import qdq
from stages.answers import answers, sqnr

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto

GROUPS = 64  # at most so many steps: layers of larger networks go together with their neighbours


class Graphs(NamedTuple):
    original: "ModelProto"
    quantised: "ModelProto"
    rounding: tuple[str, ...]  # operators whose quantised layers round their results too

    def without(self, names: list[str]) -> "ModelProto":
        return qdq.loosened(self.quantised, self.original, names, self.rounding) if names else self.quantised


def search(
    graphs: Graphs, budget: float, loss_of: "Callable[[ModelProto], float]", images: "list[np.ndarray]", job: Job
) -> "tuple[ModelProto, dict[str, Any]]":
    """The graph whose loss is within the budget, and what was tried. `loss_of`: mIoU points that a graph loses; images for the order."""
    loss = loss_of(graphs.quantised)
    steps, order, names, excluded = [{"excluded": [], "loss": loss}], [], [], []
    proto = graphs.quantised
    if loss > budget:
        job.say(f"all layers in int8 lose {loss:.2f} mIoU points of {budget:g} allowed: which of them do it?")
        order = ranked(graphs, images, job)
    for k, group in enumerate(order):
        if loss <= budget:
            break
        heed(job)
        names += group["layers"]
        excluded += [{"node": name, "why": f"rounded alone, it leaves the logits {group['alone_db']} dB"} for name in group["layers"]]
        if k == len(order) - 1:
            raise Stillhouse(
                f"no layer can be int8 within a budget of {budget:g} mIoU points: even with {', '.join(group['layers'])} alone the loss is "
                f"{loss:.2f}. Raise budget, write to: fp16, or give calibration more images"
            )
        proto = graphs.without(names)
        loss = loss_of(proto)
        steps.append({"excluded": group["layers"], "loss": loss})
        job.say(f"with {', '.join(group['layers'])} in float the loss is {loss:.2f}")
    return proto, {"budget": budget, "order": order, "steps": steps, "excluded": excluded, "loss": loss}


def ranked(graphs: Graphs, images: "list[np.ndarray]", job: Job) -> list[dict[str, Any]]:
    """Groups of layers and the signal-to-noise ratio of the logits (dB) when one group alone is quantised, the noisiest first."""
    names = qdq.layers(graphs.quantised)
    size = -(-len(names) // GROUPS)
    groups = [names[i : i + size] for i in range(0, len(names), size)]
    _, signal = answers(graphs.original, images)
    found = []
    for k, group in enumerate(groups):
        heed(job)
        alone = graphs.without([name for name in names if name not in group])
        found.append({"layers": group, "alone_db": sqnr(signal, answers(alone, images)[1])})
        job.progress(k + 1, len(groups))
    return sorted(found, key=lambda entry: entry["alone_db"])


def heed(job: Job) -> None:
    if signal := job.stop_asked():
        raise Stopped("stopped while looking for the layers that int8 hurts most; the search starts again next time", signal)
