"""Compiles an operation's Triton kernels for GPUs that are not here, and reads back what the machine code costs.

    python tests/kernels/ahead.py kernels.upsample_ce_kl 4 80 90 120

prints one JSON line for each of its first 4 kernels and each compute capability. TRITON_INTERPRET must not be set, for it leaves
nothing to compile: so the tests start this as a process. What to compile is said by `ahead()` in the variant's triton_.py, a list of
(name, jit function, signature {argument: type}, constants {argument: value}, number of warps), the most used kernels first.
"""

import importlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOL = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
EXP2 = r"MUFU\.EX2"
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/ +(?:@!?U?P\w+ +)?([A-Z][\w.]*)([^;]*);")


def main(operation: str, first: int, capabilities: list[int]) -> None:
    for name, function, signature, constants, warps in importlib.import_module(f"{operation}.triton_").ahead()[:first]:
        for capability in capabilities:
            found = cost(compiled(function, signature, constants, warps, capability))
            print(json.dumps({"kernel": name, "capability": capability, **found}), flush=True)


def compiled(function, signature: dict, constants: dict, warps: int, capability: int):
    arguments = {name: "constexpr" if name in constants else signature[name] for name in function.arg_names}
    places = {name: (i,) for i, name in enumerate(function.arg_names)}
    aligned = {places[name]: [["tt.divisibility", 16]] for name, kind in arguments.items() if kind.startswith("*")}  # as torch's memory is
    source = ASTSource(function, arguments, {places[name]: value for name, value in constants.items()}, aligned)
    options = {"num_warps": warps, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def cost(kernel) -> dict:
    """Registers and local bytes per thread, shared bytes, and counts of instructions."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage, code = (_read(option, file.name) for option in ("--dump-resource-usage", "--dump-sass"))
    registers, stack, _, local = map(int, re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage).groups())
    program = [(int(at, 16), name, rest) for at, name, rest in INSTRUCTION.findall(code)]
    loops = pixel_loops(program)
    return {
        "registers": registers,
        "local": stack + local,
        "shared": kernel.metadata.shared,
        "spills": count(program, r"LDL|STL"),
        "barriers": count(program, r"BAR"),
        "instructions": len(program),
        "pixel_loops": [{"instructions": len(loop), "exp2": count(loop, EXP2), "barriers": count(loop, "BAR")} for loop in loops],
    }


def pixel_loops(program: list[tuple]) -> list[list[tuple]]:
    """The instructions of each loop that takes exponentials, but not of an outermost one around others, which turns once per row.

    A loop is what lies between a branch backwards and its target. The branch to itself that ends every kernel is none.
    """
    loops = set()
    for at, name, rest in program:
        target = re.search(r"0x([0-9a-f]+)", rest) if name.startswith("BRA") else None
        if target and int(target[1], 16) < at:
            loops.add((int(target[1], 16), at))
    around = [(a, b) for a in loops for b in loops if a != b and a[0] <= b[0] and b[1] <= a[1]]
    outermost = {a for a, _ in around} - {b for _, b in around}
    bodies = [[line for line in program if start <= line[0] <= end] for start, end in sorted(loops - outermost)]
    return [body for body in bodies if count(body, EXP2)]


def count(program: list[tuple], opcode: str) -> int:
    return sum(bool(re.match(rf"(?:{opcode})\b", name)) for _, name, _ in program)


def _read(option: str, file: str) -> str:
    return subprocess.run([TOOL, option, file], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), [int(capability) for capability in sys.argv[3:]])
