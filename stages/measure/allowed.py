"""What lower precision may cost: the one table of tolerances, for whoever judges an export, a hop or an engine.

Initial values, to be measured again on networks of the size that people deploy. Gates hold what their recipe says, e.g. MLPerf's 99 % of
the accuracy for INT8 and 99.9 % for float16: {metric: miou, of: engine, against: student, at_least_ratio: 0.99}.
"""

from typing import NamedTuple


class Allowed(NamedTuple):
    drop: float  # points of mIoU
    agreement: float  # least share of pixels that keep their class


EXACT = Allowed(0.05, 0.9999)  # the same arithmetic in other words: an export, a rewritten network
BY_PRECISION = {  # of engines and quantised files, by the coarsest arithmetic inside
    "f32": Allowed(0.05, 0.999),
    "bf16": Allowed(0.3, 0.98),
    "fp16": Allowed(0.2, 0.995),
    "int8": Allowed(1.0, 0.97),
}
