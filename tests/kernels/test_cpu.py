"""The compiled CPU variants: the same bits again and for any number of threads, nothing written beside the outputs, errors in words.

All of it holds for every library that runs on this machine: on one with AVX-512 also for those made for AVX2 and for neither.
"""

import ctypes
import os
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import kernels.upsample_ce_kl.cpu as compiled
from kernels import native
from kernels.channel_kl import channel_kl
from kernels.upsample_ce_kl import upsample_ce_kl

OPERATIONS = ("upsample_ce_kl", "channel_kl")


@pytest.fixture
def using(monkeypatch):
    """using(path): both operations take that library."""

    def take(path):
        for operation in OPERATIONS:
            monkeypatch.setattr(f"kernels.{operation}.cpu.library", lambda: ctypes.CDLL(str(path)))

    return take


@pytest.fixture(params=native.built(), ids=lambda path: path.name.partition(".")[0])
def library(using, request):
    using(request.param)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def drawn(classes=7, grid=(9, 21), size=(36, 70)):
    made = torch.Generator().manual_seed(3)
    z, t = (3 * torch.randn(2, classes, *grid, generator=made) for _ in range(2))
    labels = torch.randint(0, classes, (2, *size), generator=made, dtype=torch.uint8)
    return z, t, labels, *(torch.randn(labels.shape, generator=made) for _ in range(2))


def made(z, t, labels, a, b, variant="cpu"):
    """Every output of both operations."""
    z = z.clone().requires_grad_()
    maps, rows = upsample_ce_kl(z, t, labels, temperature=4.0, using=variant), channel_kl(z, t, temperature=2.0, using=variant)
    ((a * maps.ce + b * maps.kl).sum() + rows.sum()).backward()
    return maps.ce, maps.kl, rows, z.grad


def test_the_library_was_compiled_and_is_as_new_as_its_sources():
    assert native.why_not() == ""


def test_it_was_compiled_for_all_vectors_that_this_machine_has():
    expected = (*native.FITTING.get(torch.backends.cpu.get_cpu_capability(), ()), "_cpu")
    assert [path.name.partition(".")[0] for path in native.built()] == list(expected)


def test_every_output_is_that_of_the_reference(library):
    drawing = drawn()
    exact = made(*(v.double() if v.is_floating_point() else v for v in drawing), variant="reference")
    for found, truth in zip(made(*drawing), exact, strict=True):
        assert (found - truth).norm() <= 1e-6 * truth.norm()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_wider_vectors_cost_no_more_time(operation, using, threads):
    """Vectors that the compiler takes apart, one number at a time, cost 2.7 to 6 times as much; a busy machine makes 1.5 of 1."""
    threads(1)
    z, t, labels, *_ = drawn(19, (64, 64), (256, 256))
    run = {
        "upsample_ce_kl": lambda: upsample_ce_kl(z, t, labels, temperature=4.0, using="cpu").kl.sum(),
        "channel_kl": lambda: channel_kl(z, t, temperature=4.0, using="cpu").sum(),
    }[operation]
    z.requires_grad_()
    spent = {path: [] for path in native.built()}
    for path in 20 * native.built():
        using(path)
        began = time.thread_time()
        run().backward()
        spent[path].append(time.thread_time() - began)
    for wide, narrow in pairwise(spent):
        assert min(spent[wide]) <= 2 * min(spent[narrow]), f"{wide.name} beside {narrow.name}"


def test_twenty_runs_with_one_two_and_five_threads_give_the_same_bits(library, threads):
    drawing = drawn(9, (80, 100), (160, 200))  # work enough that every thread is started
    first = made(*drawing)
    for run in range(20):
        threads((1, 2, 5)[run % 3])
        assert all(torch.equal(again, once) for again, once in zip(made(*drawing), first, strict=True)), f"run {run}"


def test_every_output_is_written_and_nothing_beside_it(library, monkeypatch):
    """Outputs start as NaN between canaries: what is left of one, or changed of the other, was missed or overrun."""
    kept = []

    def poisoned(*shape, **how):
        shape = torch.Size(shape[0] if isinstance(shape[0], (tuple, list)) else shape)
        whole = torch.full((shape.numel() + 32,), float("nan"))
        whole[:16], whole[-16:] = 12345.0, 12345.0
        kept.append(whole)
        return whole[16:-16].view(shape)

    drawing = drawn()
    clean = made(*drawing)
    monkeypatch.setattr(compiled.torch, "empty", poisoned)
    monkeypatch.setattr(compiled.torch, "empty_like", lambda like: poisoned(like.shape))
    found = made(*drawing)
    assert all(torch.equal(x, y) for x, y in zip(found, clean, strict=True))
    assert len(kept) > 8 and all((whole[:16] == 12345).all() and (whole[-16:] == 12345).all() for whole in kept)


def test_another_default_type_of_torch_changes_no_bit(library):
    """The library writes float32: into memory made for bfloat16 beyond its end, into that for float64 numbers that are none."""
    drawing = drawn()
    plain = made(*drawing)
    torch.set_default_dtype(torch.float64)
    try:
        found = made(*drawing)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(x.dtype == torch.float32 and torch.equal(x, y) for x, y in zip(found, plain, strict=True))


@pytest.mark.parametrize(("dtype", "wrong"), [(torch.uint8, 7), (torch.int32, 300), (torch.int64, -1)])
def test_a_label_that_is_no_class_is_an_error_and_never_an_index(library, dtype, wrong):
    z, t, labels, *_ = drawn()
    labels = labels.to(dtype)
    labels[1, 5, 60] = wrong
    with pytest.raises(IndexError, match="neither one of 7 classes nor the ignored 255"):
        upsample_ce_kl(z, t, labels, using="cpu")


def test_what_is_not_a_number_stays_so(library):
    """The guard of the training loop must see it."""
    z, t, labels, a, b = drawn()
    z[0, 3, 4, 4] = float("nan")
    ce, kl, rows, grad = made(z, t, labels, a, b)
    assert ce.isnan().any() and kl.isnan().any() and rows[0, 3].isnan() and grad[0].isnan().any()
    assert not ce[1].isnan().any() and not rows[1].isnan().any(), "the other image is whole"


@pytest.mark.parametrize("classes", [2, 19, 150])
def test_logits_far_apart_keep_their_digits(library, classes):
    z, t, labels, a, b = drawn(classes)
    found, truth = (20 * z).requires_grad_(), (20 * z).double().requires_grad_()
    for logits, teacher, using in ((found, 20 * t, "cpu"), (truth, 20 * t.double(), "reference")):
        maps = upsample_ce_kl(logits, teacher, labels, temperature=4.0, using=using)
        (a * maps.ce + b * maps.kl).sum().backward()
    assert (found.grad.double() - truth.grad).norm() <= 1e-5 * truth.grad.norm()


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc")
def test_no_tensor_of_the_size_of_the_full_resolution_logits_is_made():
    z, t, labels, *_ = drawn(classes=64, grid=(64, 64), size=(512, 512))
    z.requires_grad_()
    upsample_ce_kl(z, t, labels, temperature=4.0, using="cpu")  # what is kept for good is there
    before = _most(reset=True)
    maps = upsample_ce_kl(z, t, labels, temperature=4.0, using="cpu")
    loss = maps.ce.sum() + maps.kl.sum()
    del maps
    loss.backward()
    extra = _most() - before  # four maps of 2 MiB, the gradient of 2 MiB, and what two threads work with
    assert extra < 12 << 20, f"{extra / 2**20:.0f} MiB; the logits at label size are {2 * 64 * 512 * 512 * 4 / 2**20:.0f} MiB"


def _most(reset=False):
    """The most memory this process held since the last reset, in bytes."""
    if reset:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before is no longer held
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
