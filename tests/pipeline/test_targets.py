"""targets.yaml: whom a run may log in to. Nothing in it becomes an option of ssh; recipes name targets and never hosts."""

import json
import subprocess
import sys
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from pydantic import ValidationError

from pipeline import cli, plan, targets
from pipeline.errors import BadRecipe
from pipeline.stage import Stage
from pipeline.store import Store
from stages.optimize import Optimize

ROOT = Path(__file__).resolve().parents[2]
GOOD = {"host": "192.168.1.7", "user": "build", "workdir": "stillhouse"}
FACTS = {"cpu": "A CPU", "instructions": ["avx"], "gpus": [], "driver": None, "packages": {"onnxruntime": "onnxruntime 1.31.1"}}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(
            ("host", host)
            for host in ("-oProxyCommand=x", "a b", "a;b", "$(x)", "a\nb", "", "a/b", "u@h", "a" * 300, "-", "h%a", "a'", "[::1]")
        ),
        *(("user", user) for user in ("-l", "root;x", "a b", "", "a@b", "a$b", "a" * 40)),
        *(("port", port) for port in (0, 65536, "22", -1, 22.0, True)),
        *(
            ("workdir", folder)
            for folder in ("-x", "a b", "../up", "a/../b", "a//b", "~other/x", "a;b", "$HOME", "/", "", "a'b", "a/.hidden")
        ),
        *(("python", program) for program in ("-c", "python3 -c x", "./python3", "~/python", "a;b", "", "/bin/../x y", "/-x")),
        *(("identity_file", file) for file in ("-i", "a b", "%h", '"x"', "a\nb", "", "a,$b")),
        *(("known_hosts", file) for file in ("-i", "a b", "%h", "none none")),
        ("options", "x"),
    ],
)
def test_hostile_entries_are_refused(field, value):
    with pytest.raises(ValidationError):
        targets.Target.model_validate(GOOD | {field: value})


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"host": "jetson.local"},
        {"host": "fe80::1"},
        {"host": "a"},
        {"workdir": "/srv/stillhouse.d/x-1"},
        {"workdir": "~/work"},
        {"python": "/home/build/.venv/bin/python3.11"},
        {"identity_file": "~/.ssh/id_ed25519", "known_hosts": "keys/known_hosts", "port": 2222},
    ],
)
def test_ordinary_entries_are_taken(fields):
    assert targets.Target.model_validate(GOOD | fields).user == "build"


def test_a_file_is_read_whole_and_its_paths_lie_beside_it_or_at_home(tmp_path):
    (tmp_path / "targets.yaml").write_text(
        "one: {host: h, user: u, workdir: w, identity_file: keys/one, known_hosts: ~/known}\ntwo: {host: h, user: u, workdir: w}\n"
    )
    found = targets.read(tmp_path / "targets.yaml")
    assert found["one"].identity_file == str(tmp_path / "keys/one") and found["one"].known_hosts == str(Path.home() / "known")
    assert found["two"].identity_file is None and found["two"].port == 22 and found["two"].python == "python3"


def test_all_that_is_wrong_in_a_file_is_said_with_its_place(tmp_path):
    file = tmp_path / "targets.yaml"
    file.write_text("One: {host: h}\ntwo: {host: -oProxyCommand=x, user: u, workdir: w}\nthree: 3\nfour: {hots: h, user: u, workdir: w}\n")
    with pytest.raises(BadRecipe) as caught:
        targets.read(file)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    for line, (number, word) in zip(lines, ((1, "One"), (2, "two.host"), (3, "three"), (4, "did you mean host")), strict=True):
        assert f"targets.yaml:{number}:" in line and word in line
    with pytest.raises(BadRecipe, match="--targets"):
        targets.read(tmp_path / "none.yaml")


def checked(tmp_path, *arguments, cwd=None):
    command = [sys.executable, "-m", "pipeline", *arguments, "--store", str(tmp_path / "store")]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd or ROOT)


def test_check_refuses_hostile_targets_and_unknown_ones_and_needs_no_file_for_the_rest(tmp_path):
    file = tmp_path / "targets.yaml"
    assert checked(tmp_path, "check", "recipes/edge.yaml").returncode == 0
    file.write_text("devise: {host: h, user: u, workdir: w}\n")
    done = checked(tmp_path, "check", "recipes/edge.yaml", "--targets", str(file))
    assert done.returncode == 2 and "did you mean 'devise'" in done.stderr
    file.write_text("device: {host: -oProxyCommand=touch owned, user: u, workdir: w}\n")
    done = checked(tmp_path, "check", "recipes/edge.yaml", "--targets", str(file))
    assert done.returncode == 2 and "device.host" in done.stderr
    assert checked(tmp_path, "check", "recipes/edge.yaml", "--set", "stages.engine.target=-oProxyCommand=x").returncode == 2
    file.write_text("device: {host: h, user: u, workdir: w}\n")
    assert checked(tmp_path, "check", "recipes/edge.yaml", "--targets", str(file)).returncode == 0


def test_a_run_without_the_file_says_where_hosts_belong(tmp_path):
    done = checked(tmp_path, "run", "recipes/edge.yaml", "--targets", str(tmp_path / "targets.yaml"))
    assert done.returncode == 2 and "names the hosts of targets" in done.stderr and "Traceback" not in done.stderr


class Network(Stage):
    kind: Literal["network"]
    makes: ClassVar[str] = "OnnxModel"
    target: str | None = None


def optimize(**fields):
    return Optimize.model_validate({"kind": "optimize", "onnx": "onnx", "engine": {"kind": "onnxruntime"}} | fields)


def asked(**facts):
    return targets.Asked(name="device", target=targets.Target.model_validate(GOOD), facts=FACTS | facts)


def test_a_plan_asks_nobody_and_says_so(tmp_path):
    store = Store(tmp_path / "store").prepare()
    stages = {"onnx": Network(kind="network", target="device"), "engine": optimize(target="device")}
    onnx, engine = plan.make(stages, store)
    assert onnx.key is None and onnx.why == ("target device is asked for its facts when it runs",)
    assert engine.why == ("target device is asked for its facts when it runs", "waits for onnx")
    assert plan.make({"onnx": stages["onnx"].at(asked())}, store)[0].key is not None


def test_what_a_target_is_belongs_to_the_key_and_where_it_is_does_not(tmp_path):
    from pipeline.keys import digest, pre_image

    def key(stage):
        return digest(pre_image(stage, {"onnx": "x"}))

    stage = optimize(target="device")
    one = key(stage.at(asked()))
    assert one == key(stage.at(asked()))
    assert one != key(stage.at(asked(cpu="Another")))
    assert one != key(stage.at(asked(packages={"onnxruntime": "onnxruntime 1.31.2"})))
    moved = targets.Asked(name="device", target=targets.Target.model_validate(GOOD | {"host": "10.0.0.9", "port": 23}), facts=FACTS)
    assert one == key(stage.at(moved))
    assert optimize().environment() != stage.at(asked()).environment() and stage.environment() == {}
    assert "10.0.0.9" not in json.dumps(pre_image(stage.at(moved), {"onnx": "x"}))


def test_each_target_is_asked_once_and_only_where_a_stage_names_it(tmp_path):
    file, heard = tmp_path / "targets.yaml", []
    file.write_text("device: {host: h, user: u, workdir: w}\nother: {host: h, user: u, workdir: w}\n")

    def ask(name, target):
        heard.append((name, target.host))
        return FACTS

    stages = {"a": optimize(target="device"), "b": optimize(target="device"), "c": optimize()}
    found = targets.reached(stages, file, ask)
    assert heard == [("device", "h")] and found["a"].there is found["b"].there and found["c"].there is None
    assert found["a"].rehearsed().there.facts == FACTS and stages["a"].there is None
    assert targets.reached({"c": optimize()}, tmp_path / "none.yaml", ask) == {"c": optimize()}


def test_the_command_line_offers_targets_where_stages_run():
    for command in ("run", "sweep", "check"):
        assert cli.parser().parse_args([command, "x.yaml", "--targets", "t.yaml"]).targets == Path("t.yaml")
