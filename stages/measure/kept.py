"""Decides whether an INT8 engine is worth having: only if it is faster than its sibling in more bits, and loses no more than INT8 may.

A sibling runs the same network on the same runtime and device; the one in fp16 or bf16 is asked, without one that in f32.
"""

from collections.abc import Collection
from typing import Any

from stages.measure.allowed import BY_PRECISION
from stages.measure.waterfall import points

SIBLINGS = (("fp16", "bf16"), ("f32",))  # the first group that was measured


def kept(models: dict[str, dict[str, Any]], disturbed: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """{"kept": True, False or None (cannot be told), "why": a sentence} for every INT8 engine of measurement.json's models.

    `disturbed`: models whose times by the clock cannot be believed; on a busy machine speed is not told.
    """
    int8 = [name for name, one in models.items() if one["artifact"] == "Engine" and one["precision"] == "int8"]
    return {name: judged(name, models, disturbed) for name in int8}


def judged(name: str, models: dict[str, dict[str, Any]], disturbed: Collection[str]) -> dict[str, Any]:
    one, sibling = models[name], sibling_of(name, models)
    first, limit = models.get(one["first"]), BY_PRECISION["int8"].drop
    loss = None if first is None else first["miou"] - one["miou"]
    lost = "" if loss is None else f"{abs(loss):.2f} points of mIoU {'below' if loss > 0 else 'above'} {one['first']}"
    if loss is not None and loss > limit:
        return {"kept": False, "why": f"not kept: {lost}, and INT8 may lose {points(limit)}"}
    if loss is None:
        return {"kept": None, "why": "cannot be told: the network it was made from was not measured beside it"}
    if sibling is None:
        return {"kept": None, "why": f"cannot be told: no engine of {one['first']} in more bits was timed on {one['runtime']} beside it"}
    other = models[sibling]
    times = [model["latency"]["image_ms"]["p50"] for model in (one, other)]
    figures = f"{times[0]:.3g} ms against {times[1]:.3g} ms of {sibling} ({other['precision']}), {lost}"
    if {name, sibling} & set(disturbed):
        return {"kept": None, "why": f"cannot be told, the machine was not quiet: {figures}"}
    if times[0] >= times[1]:
        return {"kept": False, "why": f"not kept, it is no faster: {figures}"}
    return {"kept": True, "why": f"kept, {times[1] / times[0]:.2f} times as fast: {figures}"}


def sibling_of(name: str, models: dict[str, dict[str, Any]]) -> str | None:
    """The fastest timed engine of the same network, runtime and threads in fp16 or bf16, else in f32; None if there is none."""
    one = models[name]
    if one["latency"] is None:
        return None
    same = {
        other: model
        for other, model in models.items()
        if model["artifact"] in ("Engine", "OnnxModel")
        and (model["first"], model["runtime"]) == (one["first"], one["runtime"])
        and model["latency"] is not None
        and model["latency"]["threads"] == one["latency"]["threads"]
    }
    for group in SIBLINGS:
        fit = [other for other, model in same.items() if model["precision"] in group]
        if fit:
            return min(fit, key=lambda other: same[other]["latency"]["image_ms"]["p50"])
    return None
