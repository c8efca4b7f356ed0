"""The calibration of gates keeps what was measured, goes on where it was stopped, and counts errors as errors."""

import importlib.util
import json
import math
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pipeline.artifact import Artifact

FILE = Path(__file__).resolve().parent.parent / "benchmarks" / "gate_calibration.py"
HEADER = {"machine": {"cpu": "a", "cores": 2, "onnxruntime": "o"}, "protocol": {"pairs": 3}}


@pytest.fixture(scope="module")
def calibration():
    spec = importlib.util.spec_from_file_location("gate_calibration", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def gate(number, wall, cpu, rounds=10, slower=0.0, clock=None):
    """A gate whose candidate takes e^wall and e^cpu times as long."""
    return [
        {"slower": slower, "clock": clock, "load": 0, "gate": number}
        | {name: {"baseline": [1.0] * 3, "candidate": [math.exp(value)] * 3} for name, value in (("wall", wall), ("cpu", cpu))}
        for _ in range(rounds)
    ]


def test_a_file_torn_by_a_kill_keeps_its_whole_rounds_and_another_machines_is_refused(calibration, tmp_path):
    file = tmp_path / "new" / "gates.jsonl"
    assert calibration.opened(file, HEADER) == []
    one = gate(0, 0.0, 0.0, rounds=1)[0]
    with file.open("a") as kept:
        kept.write(json.dumps(one) + "\n" + json.dumps(one)[:40])
    assert calibration.opened(file, HEADER) == [one] and file.read_text().endswith("}\n")
    with pytest.raises(SystemExit, match="another machine"):
        calibration.opened(file, HEADER | {"protocol": {"pairs": 4}})


def test_a_gate_is_measured_until_every_clock_it_is_for_has_a_verdict(calibration):
    assert calibration.undecided(gate(0, 0.0, 0.0, rounds=9))
    assert not calibration.undecided(gate(0, 0.0, 0.0))
    spread = gate(0, 0.0, 0.0)
    for k, one in enumerate(spread):
        one["wall"]["candidate"] = [1.5 if k % 2 else 0.7] * 3
    assert calibration.undecided(spread) and calibration.verdict(spread, "cpu").verdict == "pass"
    for one in spread:
        one["clock"] = "cpu"
    assert not calibration.undecided(spread)


def test_a_report_counts_false_alarms_and_misses_by_channel_and_leaves_unfinished_gates_out(calibration, tmp_path, capsys):
    file = tmp_path / "gates.jsonl"
    same = gate(0, 0.0, 0.0) + gate(1, 0.2, 0.0) + gate(2, 0.0, 0.0, rounds=3)
    slow = gate(0, 0.1, 0.0, slower=0.05, clock="wall") + gate(0, 0.1, 0.0, slower=0.05, clock="cpu")
    file.write_text("".join(json.dumps(line) + "\n" for line in (HEADER, *same, *slow)))
    calibration.report(file)
    table = [row.split(" | ") for row in capsys.readouterr().out.splitlines() if row.startswith("| ")][1:]
    figures = {(row[0], row[2]): row[3:8] for row in table}
    assert figures["| 0%", "wall"] == ["2", "1", "1", "0", "1 of 2 (below 97.47%)"]
    assert figures["| 0%", "cpu"] == ["2", "2", "0", "0", "0 of 2 (below 77.64%)"]
    assert figures["| 5%", "wall"] == ["1", "0", "1", "0", "0 of 1 (below 95.00%)"]
    assert figures["| 5%", "cpu"] == ["1", "1", "0", "0", "1 of 1 (below 100.00%)"]


def test_no_error_in_two_hundred_gates_bounds_the_rate_by_the_rule_of_three(calibration):
    assert calibration.most_likely(200, 0) == pytest.approx(1 - 0.05 ** (1 / 200), rel=1e-6)
    assert calibration.most_likely(200, 4) == pytest.approx(0.0453, abs=2e-4)


def test_a_wait_is_a_share_of_the_run_by_its_own_clock(calibration):
    def half_asleep(batch):
        began = time.process_time()
        while time.process_time() < began + 0.01:
            pass
        time.sleep(0.02)

    image = np.zeros((*calibration.SIZE, 3), np.uint8)
    calibration.timed(half_asleep, image)  # imports what brings images to their size

    def least(*wait):
        found = [calibration.timed(half_asleep, image, *wait) for _ in range(3)]
        return [min(one[clock] for one in found) for clock in ("wall", "cpu")]

    (wall, cpu), (wall_by_cpu, cpu_by_cpu), (wall_by_wall, _) = least(), least(0.5, time.process_time), least(0.5, time.perf_counter)
    assert wall >= 30 and 10 <= cpu < 12
    assert wall_by_cpu >= 35 and 15 <= cpu_by_cpu < 18
    assert wall_by_wall >= 45


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


def test_a_round_holds_both_clocks_of_two_fresh_processes_and_the_wait_shows(calibration, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "PAIRS", 9)
    images = [np.full((*calibration.SIZE, 3), value, np.uint8) for value in (1, 2)]
    processes, start = [], calibration.subprocess.Popen

    def remember(*given, **settings):
        processes.append(start(*given, **settings))
        return processes[-1]

    monkeypatch.setattr(calibration.subprocess, "Popen", remember)
    found = calibration.one_round(network(tmp_path), images, tmp_path, 1.0, "cpu")
    assert len(processes) == 2 and all(process.returncode is not None for process in processes)
    assert len(found["order"]) == 9 and set(found["order"]) <= {"0", "1"}
    assert all(len(found[clock][side]) == 9 and min(found[clock][side]) > 0 for clock in ("wall", "cpu") for side in calibration.SIDES)
    assert 1.5 < math.exp(calibration.ratios([found], "cpu")[0]) < 2.7
