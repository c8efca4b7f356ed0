"""The benchmark's other ways to the same loss are the same loss, and one that cannot run here is told in words, once."""

import sys
from argparse import Namespace
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from kernels import bench
from kernels.upsample_ce_kl import sizes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("name", sizes.OTHERS)
def test_every_other_way_gives_the_same_loss_and_gradient(name, align, monkeypatch):
    if name in sizes.absent(DEVICE):  # then with PyTorch's losses, which are called alike: what is around them is ours
        named = {"LigerCrossEntropyLoss": torch.nn.CrossEntropyLoss, "LigerKLDIVLoss": torch.nn.KLDivLoss}
        for module in ("liger_kernel", "liger_kernel.transformers"):
            monkeypatch.setitem(sys.modules, module, SimpleNamespace(**named))
    given = sizes.inputs(2, 5, (3, 4), (6, 7), DEVICE, torch.float32, 0, align)
    exact = bench.exact(given)
    found, true = sizes.OTHERS[name](*given), sizes.loss(*exact, using="reference")
    found.backward()
    true.backward()
    assert abs(found.item() / true.item() - 1) < 1e-6
    assert (given[0].grad - exact[0].grad).norm() < 2e-6 * exact[0].grad.norm()


def test_a_contender_that_cannot_run_is_told_in_words_below_the_first_table():
    why = sizes.absent("cpu")["liger"]
    assert why == "needs a GPU" if find_spec("liger_kernel") else why == "not installed (pip install liger-kernel)"
    one = {"forward_ms": 1.0, "backward_ms": 2.0, "ms": 3.0, "extra_mib": 0.0, "gradient_error": 1e-7, "repeats": True, "failed": None}
    result = {"operation": "upsample_ce_kl", "size": "VOC", "dtype": "bf16", "shapes": {}, "contenders": {"eager": one}}
    assert bench.table(result | {"absent": {"liger": why}})[-1] == f"  liger: {why}"
    assert "liger" not in "\n".join(bench.table(result | {"absent": {}}))


def test_a_contender_that_fails_has_its_reason_for_a_result():
    def fails(*_, **__):
        raise AssertionError

    said = bench._prepared(bench.Contender("other", fails), sizes, {"batch": 1}, [torch.zeros(1)], "cpu", torch.float32)
    assert said == {"failed": "AssertionError: "}


def test_sizes_are_measured_until_the_time_is_up(capsys):
    asked = Namespace(tiny=True, device="cpu", size=None, dtypes=None)
    assert list(bench.measured("channel_kl", asked, ends=0.0)) == []
    assert "left out, the time is used up" in capsys.readouterr().out
