"""engine.json says all that decides where an engine runs; `doctor ENGINE` compares it with this machine, and opens nothing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import doctor
from pipeline.errors import BadData, Refused
from pipeline.store import Store
from stages import machine, sidecar
from tests.stages import small_line

ROOT = Path(__file__).resolve().parents[2]
GPU = {"name": "GPU A", "capability": "8.9", "memory_gb": 24.0}
STATES = {"good": 0, "differs": 0, "lacks": 2, "damaged": 7}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("line")
    dataset = small_line.data(folder, val=1)
    onnx = small_line.exported(folder, dataset, small_line.checkpoint(folder, dataset))
    return onnx, small_line.engine(folder, onnx, kind="onnxruntime")


@pytest.fixture
def folder(built, tmp_path):
    return Path(shutil.copytree(built[1].folder, tmp_path / "engine"))


def changed(folder, **fields):
    content = json.loads((folder / "engine.json").read_text())
    (folder / "engine.json").write_text(json.dumps(content | fields))
    return folder


def states(folder):
    return {part: state for part, state, _ in sidecar.examine(folder) if state != "good"}


def told(folder, part):
    return next(text for name, _, text in sidecar.examine(folder) if name == part)


def test_an_engine_says_what_it_is_of_what_and_for_which_device(built):
    onnx, engine = built
    found = engine.json("engine.json")
    assert found["runtime"] == machine.version("onnxruntime", "onnxruntime-gpu") and found["engine"] == engine.facts["engine"]
    assert found["device"]["cpu"] == machine.cpu_name() and found["device"]["instructions"] == machine.instructions()
    assert found["precision"] == {"graph": "f32", "arithmetic": "as exported"} and found["target"] is None
    model, own = (sidecar.stored(file).model_dump() for file in (onnx.file("model.onnx"), engine.file("engine.onnx")))
    assert found["files"] == {"engine.onnx": own} and found["source"] == {"kind": "OnnxModel"} | model
    assert own != model, "it ends as its runtime computes fastest"
    assert states(engine.folder) == {}


def test_the_same_engine_is_described_by_the_same_bytes(built, tmp_path):
    onnx, engine = built
    again = small_line.engine(tmp_path, onnx, kind="onnxruntime")
    assert again.file("engine.json").read_bytes() == engine.file("engine.json").read_bytes()


def test_a_flipped_byte_a_missing_file_and_a_stranger_are_damage(folder):
    whole = (folder / "engine.onnx").read_bytes()
    (folder / "engine.onnx").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert states(folder) == {"files": "damaged"}
    (folder / "engine.onnx").unlink()
    assert states(folder) == {"files": "damaged"}
    (folder / "elsewhere").write_bytes(whole)
    (folder / "engine.onnx").symlink_to("elsewhere")
    assert states(folder) == {"files": "damaged"}
    (folder / "engine.onnx").unlink()
    (folder / "engine.onnx").write_bytes(whole)
    assert states(folder) == {}
    (folder / "engine.so").write_bytes(b"x")
    assert states(folder) == {"files": "damaged"} and "engine.so" in told(folder, "files")


def test_another_version_runs_unless_the_engine_needs_the_same(folder):
    changed(folder, runtime="onnxruntime 1.0.0")
    assert states(folder) == {"runtime": "differs"}
    changed(folder, needs={"runtime": "same", "capability": "any", "instructions": []})
    assert states(folder) == {"runtime": "lacks"} and "pip install onnxruntime==1.0.0" in told(folder, "runtime")


def test_a_runtime_that_is_not_installed_is_named_with_what_to_install(folder, monkeypatch):
    monkeypatch.setattr(machine, "version", lambda *names: "missing")
    assert states(folder) == {"runtime": "lacks"} and "pip install onnxruntime==" in told(folder, "runtime")


def test_instructions_that_are_needed_and_those_that_only_help(folder):
    content = json.loads((folder / "engine.json").read_text())
    more = content["device"] | {"instructions": [*content["device"]["instructions"], "sve2_of_a_later_cpu"]}
    changed(folder, device=more)
    assert states(folder) == {"instructions": "differs"} and "sve2_of_a_later_cpu" in told(folder, "instructions")
    changed(folder, device=content["device"], needs={"runtime": "any", "capability": "any", "instructions": ["one", "two"]})
    assert states(folder) == {"instructions": "lacks"} and "one or two" in told(folder, "instructions")
    changed(folder, device=content["device"] | {"cpu": "Another CPU"}, needs=content["needs"])
    assert states(folder) == {"cpu": "differs"}


@pytest.mark.parametrize(
    ("rule", "here", "expected"),
    [
        ("same", {}, {}),
        ("same", {"capability": "9.0"}, {"capability": "lacks"}),
        ("later", {"capability": "9.0"}, {"capability": "differs"}),
        ("later", {"capability": "8.6"}, {"capability": "lacks"}),
        ("later", {"capability": "10.0"}, {"capability": "differs"}),  # as numbers, not as text
        ("any", {"capability": "7.5"}, {"capability": "differs"}),
        ("same", {"name": "GPU B"}, {"gpu": "differs"}),
        ("same", {"driver": "12.8"}, {"driver": "lacks"}),
        ("same", {"driver": "13.0"}, {"driver": "differs"}),
        ("same", {"driver": "13.2"}, {}),
        ("same", None, {"gpu": "lacks"}),
    ],
)
def test_a_gpu_s_engine_asks_for_capability_and_driver(folder, monkeypatch, rule, here, expected):
    device = {"gpu": "GPU A", "capability": "8.9", "driver": "13.1"}
    changed(folder, device=device, needs={"runtime": "any", "capability": rule, "instructions": []})
    gpus = [] if here is None else [GPU | {key: value for key, value in here.items() if key != "driver"}]
    driver = (here or {}).get("driver", "13.1")
    monkeypatch.setattr(machine, "facts", lambda: {"cpu": "x", "instructions": [], "gpus": gpus, "driver": driver})
    assert states(folder) == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "object"),
        ('{"schema": 2}', "schema"),
        ("[" * 60_000, "JSON"),
        (" " * 70_000, "65536"),
    ],
)
def test_what_is_no_engine_json_is_refused(folder, content, said):
    (folder / "engine.json").write_text(content)
    with pytest.raises(Refused, match=said):
        sidecar.read(folder)


def test_texts_that_would_draw_lines_of_their_own_and_files_outside_are_refused(folder):
    good = json.loads((folder / "engine.json").read_text())
    for fields in ({"runtime": "x\nit will run here"}, {"files": {"engine.a/../../x": good["files"]["engine.onnx"]}}, {"files": {}}):
        changed(folder, **good | fields)
        with pytest.raises(Refused, match="build it again"):
            sidecar.read(folder)
    (folder / "engine.json").unlink()
    with pytest.raises(BadData, match="Build it again"):
        sidecar.read(folder)


def test_doctor_says_it_in_words_and_in_its_exit_code_and_imports_no_runtime(folder, tmp_path):
    code = "import sys; from pipeline.__main__ import main; sys.argv[0] = 'pipeline'; code = main(); "
    code += "assert not {'torch', 'numpy', 'onnx', 'onnxruntime', 'openvino'} & set(sys.modules); sys.exit(code)"

    def asked(what):
        command = [sys.executable, "-c", code, "doctor", str(what), "--store", str(tmp_path / "store")]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    done = asked(folder)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "it will run here", done.stderr
    changed(folder, needs={"runtime": "any", "capability": "any", "instructions": ["none_has_this"]})
    done = asked(folder / "engine.json")
    assert done.returncode == 2 and "LACKS" in done.stdout and "it will not run here" in done.stdout
    (folder / "engine.onnx").write_bytes(b"")
    done = asked(folder)
    assert done.returncode == 7 and "not whole" in done.stdout
    assert asked("no_such/engine").returncode == 2


def test_doctor_finds_the_engine_of_an_artifact_and_says_what_has_none(built, tmp_path, capsys):
    parts, store = SimpleNamespace(engine=sidecar.examine), Store(tmp_path / "store").prepare()
    ids = {}
    for kind in ("Engine", "OnnxModel"):
        with store.workplace(kind) as place:
            for file in built[1].folder.iterdir():
                shutil.copyfile(file, place / file.name)
            ids[kind] = store.publish(kind * 8, {}, place, kind, built[1].facts, {})
    assert doctor.engine(ids["Engine"][:12], store, parts) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "it will run here"
    with pytest.raises(BadData, match="holds an OnnxModel"):
        doctor.engine(ids["OnnxModel"], store, parts)
