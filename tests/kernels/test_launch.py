"""What holds for every launch, read from the source: no machine that runs these tests has a second GPU."""

import ast
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parents[2].glob("kernels/*/triton_.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_a_kernel_is_launched_on_the_device_of_its_tensors(file):
    """Triton launches on the current device: on another one's memory that is an illegal access, or the wrong stream."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    kernels = {function.name for function in functions if any("triton.jit" in ast.unparse(d) for d in function.decorator_list)}
    guarded = [node for node in ast.walk(tree) if isinstance(node, ast.With) and "cuda.device_of(" in ast.unparse(node.items[0])]
    safe = {id(call) for guard in guarded for call in launches(guard, kernels)}
    found = launches(tree, kernels)
    assert found and [ast.unparse(call.func) for call in found if id(call) not in safe] == []


def launches(tree: ast.AST, kernels: set[str]) -> list[ast.Call]:
    """kernel[grid](...)"""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript))
    return [call for call in calls if isinstance(call.func.value, ast.Name) and call.func.value.id in kernels]
