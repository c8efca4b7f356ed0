"""The calibration of gates keeps what was measured, goes on where it was stopped, and counts errors as errors."""

import json
import math
import time
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks import gate_calibration as calibration
from benchmarks import gate_plot
from pipeline.artifact import Artifact
from stages.measure import pairs

HEADER = {"machine": {"cpu": "a", "cores": 2, "onnxruntime": "o"}, "protocol": {"runs": 3}}
QUIET = {"on_gpu": False, "reasons": [], "seen": {"seconds": 0.5}}


def gate(number, wall, cpu, rounds=10, slower=0.0, load=0, reasons=()):
    """A gate whose candidate takes e^wall and e^cpu times as long."""
    times = {"image_ms": wall, "image_cpu_ms": cpu}
    one = {key: {"baseline": [1.0] * 3, "candidate": [math.exp(value)] * 3} for key, value in times.items()}
    return [
        {"slower": slower, "load": load, "gate": number, "order": "010", **QUIET, "reasons": list(reasons), **one} for _ in range(rounds)
    ]


def written(file, *rounds):
    file.write_text("".join(json.dumps(line) + "\n" for line in (HEADER, *rounds)))
    return file


def test_a_file_torn_by_a_kill_keeps_its_whole_rounds_and_another_machines_is_refused(tmp_path):
    file = tmp_path / "new" / "gates.jsonl"
    assert calibration.opened(file, HEADER) == {}
    one = gate(0, 0.0, 0.0, rounds=1)[0]
    with file.open("a") as kept:
        kept.write(json.dumps(one) + "\n" + json.dumps(one)[:40])
    assert calibration.opened(file, HEADER) == {calibration.Kind(0.0, 0): {0: [one]}} and file.read_text().endswith("}\n")
    with pytest.raises(SystemExit, match="another machine"):
        calibration.opened(file, HEADER | {"protocol": {"runs": 4}})


def test_what_was_packed_is_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "PART", 1)  # eleven parts: their order is that of numbers
    file = written(tmp_path / "gates.jsonl", *gate(0, 0.0, 0.0))
    packed = file.read_bytes()
    calibration.pack(file)
    file.unlink()
    assert len(calibration.opened(file, HEADER)[calibration.Kind(0.0, 0)][0]) == 10 and file.read_bytes() == packed


def test_a_gate_is_measured_until_both_clocks_have_a_verdict_and_on_a_busy_machine_the_processors_alone():
    assert not calibration.ended([]) and not calibration.ended(gate(0, 0.0, 0.0, rounds=9)) and calibration.ended(gate(0, 0.0, 0.0))
    spread = gate(0, 0.0, 0.0)
    for k, one in enumerate(spread):
        one["image_ms"] = {"baseline": [1.0] * 3, "candidate": [1.5 if k % 2 else 0.7] * 3}
    assert not calibration.ended(spread) and calibration.verdicts(spread)["CPU"] == "pass"
    busy = [one | {"reasons": ["others ran"]} for one in spread]
    assert calibration.ended(busy) and calibration.verdicts(busy) == {"wall": "inconclusive", "CPU": "pass"}


def test_a_report_counts_false_alarms_and_misses_by_channel_and_leaves_unfinished_gates_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(calibration, "DOCS", tmp_path / "gates.md")
    monkeypatch.setattr(calibration, "DRAWS", 3)
    calibration.DOCS.write_text(f"words\n\n{calibration.MARKS[0]}\nold\n{calibration.MARKS[1]}\n\nmore words\n")
    same = gate(0, 0.0, 0.0) + gate(1, 0.2, 0.0, rounds=20) + gate(2, 0.0, 0.0, rounds=3)
    slow = gate(0, 0.1, 0.0, 20, slower=0.05) + gate(0, 0.1, 0.1, 20, slower=0.05, load=1, reasons=["others ran"])
    calibration.report(written(tmp_path / "here.jsonl", *same, *slow))
    rows = [row.split(" | ") for row in capsys.readouterr().out.splitlines() if row.startswith("| ")][1:]
    figures = {(row[0], row[1], row[2]): row[4:9] for row in rows}
    assert [row[3] for row in rows][:2] == ["+14.3%", "+0.0%"], "of twenty rounds e ** 0.2, of ten none"
    assert figures["| 0%", "0", "wall"] == ["2", "1", "1", "0", "1 of 2 (below 97.47%)"]
    assert figures["| 0%", "0", "CPU"] == ["2", "2", "0", "0", "0 of 2 (below 77.64%)"]
    assert figures["| 5%", "0", "wall"] == ["1", "0", "1", "0", "0 of 1 (below 95.00%)"]
    assert figures["| 5%", "0", "CPU"] == ["1", "1", "0", "0", "1 of 1 (below 100.00%)"]
    assert figures["| 5%", "1", "wall"] == ["1", "0", "0", "1", "-"] and figures["| 5%", "1", "CPU"][2] == "1"
    text = calibration.DOCS.read_text()
    assert text.startswith("words\n\n") and "old" not in text and text.endswith("\n\nmore words\n") and "](gates-here.svg)" in text
    ElementTree.parse(tmp_path / "gates-here.svg")


def test_a_curve_ends_where_a_loss_is_seen_and_points_have_their_bounds(monkeypatch):
    monkeypatch.setattr(calibration, "DRAWS", 20)
    done = {calibration.Kind(0.0, 0): [gate(0, 0.001, 0.001), gate(1, -0.001, -0.001)]}
    passing, failing = (one for one in calibration.curves(done) if one.channel == "CPU")
    assert (passing.verdict, failing.verdict) == ("pass", "fail") and (passing.share[0], failing.share[0]) == (1.0, 0.0)
    assert (passing.share[-1], failing.share[-1]) == (0.0, 1.0) and passing.slower[-1] == 0.1
    [point] = [one for one in calibration.points(done) if (one.channel, one.verdict) == ("wall", "pass")]
    assert (point.share, point.high) == (1.0, 1.0) and point.low == pytest.approx(0.025**0.5, abs=1e-3)
    assert gate_plot.svg([passing], [point]).count("<polyline") == 1


def test_no_error_in_two_hundred_gates_bounds_the_rate_by_the_rule_of_three():
    assert calibration.most_likely(200, 0) == pytest.approx(1 - 0.05 ** (1 / 200), rel=1e-6)
    assert calibration.most_likely(200, 4) == pytest.approx(0.0453, abs=2e-4)


def test_the_added_work_is_a_share_of_the_processor_time_of_a_run():
    def half_asleep():
        began = time.process_time()
        while time.process_time() < began + 0.01:
            pass
        time.sleep(0.02)

    slowed = calibration.working_on(half_asleep, 0.5)
    for _ in range(calibration.FIRST):
        slowed()
    assert 0.0135 <= min(calibration.used(slowed) for _ in range(5)) < 0.018


def network(folder):
    """A few ms of work from image to classmap: what an OnnxModel needs to be opened, and nothing of a network's."""
    nodes = [helper.make_node("Cast", ["image"], ["x0"], to=TensorProto.FLOAT)]
    nodes += [helper.make_node("Erf", [f"x{k}"], [f"x{k + 1}"]) for k in range(40)]
    nodes += [helper.make_node("ArgMax", ["x40"], ["best"], axis=3, keepdims=0)]
    nodes += [helper.make_node("Cast", ["best"], ["classmap"], to=TensorProto.UINT8)]
    ends = [("image", ["b", "h", "w", 3]), ("classmap", ["b", "h", "w"])]
    given, found = ([helper.make_tensor_value_info(name, TensorProto.UINT8, shape)] for name, shape in ends)
    graph = helper.make_graph(nodes, "work", given, found)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / "model.onnx")
    return Artifact("onnx", "OnnxModel", "id", folder, {})


def test_a_round_is_the_products_own_between_fresh_processes_and_the_wait_shows(tmp_path):
    model = network(tmp_path)
    np.save(tmp_path / "image.npy", np.full((*calibration.SIZE, 3), 1, np.uint8))
    models = tuple(Artifact(name, model.kind, model.id, model.folder, {}) for name in pairs.SIDES)
    common = {"images": [str(tmp_path / "image.npy")], "size": list(calibration.SIZE), "warmup_ms": 0, "threads": 1, "slower": 1.0}
    children = []

    def remember(*given):
        children.append(calibration.started(*given))
        return children[-1]

    found = calibration.short(pairs.one_round(models, common, tmp_path, 5, start=remember))
    assert [type(child).__name__ for child in sorted(children, key=lambda child: child.name)] == ["Child", "Slowed"]
    assert all(child.process.returncode is not None for child in children) and len(found["order"]) == 5
    assert all(len(found[key][side]) == 5 for key in calibration.CHANNELS.values() for side in pairs.SIDES)
    assert 1.5 < math.exp(pairs.ratios([found], "image_cpu_ms")[0]) < 2.7


def test_rounds_beside_another_program_are_not_kept_as_quiet_ones(monkeypatch):
    monkeypatch.setattr("sys.argv", ["gate_calibration.py", "run", "--load-runs"])
    with pytest.raises(SystemExit, match="--load N"):
        calibration.main()
