"""Pixels on which two models differ, split by how sure the reference was: a tie that fell the other way is harmless, the rest is damage."""

from typing import NamedTuple

import numpy as np

from stages.measure.miou import IGNORE

MISMATCH_LIMITS = {"f32": 1e-4, "fp16": 0.005, "int8": 0.03}  # share of pixels that may differ, by precision of the candidate


class Mismatch(NamedTuple):
    share: float  # of pixels not ignored that differ
    decided: float  # of pixels not ignored that differ although the reference was sure
    text: str
    passed: bool


def mismatches(reference: np.ndarray, candidate: np.ndarray, label: np.ndarray, gap: np.ndarray, sure: float) -> np.ndarray:
    """Class maps and label of one image, all (H, W), and the gap between the reference's two best logits there
    -> int64 (3,): pixels not ignored, those that differ, and those that differ where the gap is above `sure`. Sum them over images.
    """
    valid = label != IGNORE
    differs = valid & (reference != candidate)
    return np.array([np.count_nonzero(valid), np.count_nonzero(differs), np.count_nonzero(differs & (gap > sure))], np.int64)


def top_two_gap(logits: np.ndarray) -> np.ndarray:
    """(C, H, W) -> (H, W): the best logit less the second best."""
    second, best = np.partition(logits, len(logits) - 2, axis=0)[-2:]
    return best - second


def judge_mismatch(summed: np.ndarray, limit: float, decided_limit: float = 0.0) -> Mismatch:
    """Passed if at most `limit` of the pixels differ, and at most `decided_limit` of them where the reference was sure."""
    valid, differs, decided = (int(value) for value in summed)
    share, sure = differs / max(1, valid), decided / max(1, valid)
    text = f"{differs} of {valid} pixels differ ({share:.2g}; {limit:g} was allowed), {decided} of them where the reference was sure"
    text += f" ({sure:.2g}; {decided_limit:g} was allowed)"
    return Mismatch(share, sure, text, share <= limit and sure <= decided_limit)
