"""Shows how training went: validation accuracy of all networks in one chart, and the loss with its terms for each."""

from .. import charts
from ..markup import Safe, el
from ..roles import low


def training(facts: dict) -> Safe | None:
    """None where nothing was trained in this run."""
    told = facts["curves"]
    cards = [_accuracy(told)] if any(c["val"] for c in told) else []
    cards += [_loss(c) for c in told if any(p["loss"] is not None for p in c["train"])]
    if not cards:
        return None
    say = "Accuracy on the validation split while training, and the loss that training minimised. The result is always the last step."
    return el("section", el("h2", "Training"), el("p", say, class_="say"), el("div", cards, class_="charts pairs"))


def _accuracy(told: list[dict]) -> Safe:
    shown = [c for c in told if c["val"]]
    series = [{"points": [(p["step"], p["miou"]) for p in c["val"]], "class": f"s-{c['role']}", "title": c["title"]} for c in shown]
    legend = [el("span", charts.dash(f"s-{c['role']}"), f"{c['title']} {c['val'][-1]['miou']:.1f}") for c in shown]
    return _card("Validation mIoU", legend, charts.lines(series, "step", "mIoU"))


def _loss(curve: dict) -> Safe:
    series = [_line(curve["train"], lambda p: p["loss"], "t-total", "total loss")]
    terms = list(dict.fromkeys(name for p in curve["train"] for name in p["terms"]))
    if len(terms) > 1:
        series += [_line(curve["train"], lambda p, t=t: p["terms"].get(t), f"t-{i % 6}", t) for i, t in enumerate(terms)]
    series = [s for s in series if s["points"]]
    legend = [el("span", charts.dash(s["class"]), s["title"]) for s in series]
    chart = charts.lines(series, "step", "loss", from_zero=True)
    return _card(f"Loss of the {low(curve['title'])}", legend, chart, _ratios(curve), _setbacks(curve["setbacks"]))


def _line(train: list[dict], value, class_: str, title: str) -> dict:
    return {"points": [(p["step"], value(p)) for p in train if value(p) is not None], "class": class_, "title": title}


def _ratios(curve: dict) -> Safe | None:
    """How strong each distillation term was beside the task loss at the end."""
    ratios = {k: v for k, v in curve["train"][-1]["ratios"].items() if v is not None}
    if not ratios:
        return None
    told = ", ".join(f"{k} {v:.2f}" for k, v in ratios.items())
    return el("span", f"At the end, relative to the task loss: {told}.", class_="sub")


def _setbacks(told: dict) -> Safe | None:
    """A curve that looks smooth may have gone back: that is said."""
    skipped, back = told["skipped"], told["back"]
    said = [f"{skipped} step{'s' * (skipped != 1)} left the weights alone: the loss or its gradients were not finite."] if skipped else []
    said += [f"After step {b['step']} training went back to step {b['to']}{_slower(b['lr_factor'])}." for b in back]
    return el("span", " ".join(said), class_="sub") if said else None


def _slower(factor: float | None) -> str:
    return "" if factor is None else f", with {factor:g} of the learning rate"


def _card(title: str, legend: list[Safe], chart: Safe, *below: Safe | None) -> Safe:
    return el("div", el("h3", title), el("p", legend, class_="legend"), chart, *below, class_="card")
