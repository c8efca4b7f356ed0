"""upsample_ce_kl's CUDA C++ backward against the reference in float64: on the GPU, or, where there is none, on the CPU lane by lane.

For the CPU the same kernel.cu is compiled by g++ with cuda_on_cpu.h, and takes the place of the driver: the arguments are packed and
the kernel is picked and launched as on a GPU. The maps of the forward, which is Triton's, are made in float64 here, but for one test.
"""

import ctypes
import math
import shutil
import subprocess
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import interpolate

pytest.importorskip("triton")

from kernels import driver
from kernels.upsample_ce_kl import cuda_, fused, upsample_ce_kl

HERE = Path(__file__).parent
SOURCE = cuda_.BUILT.with_name("kernel.cu")
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"

PLACES = ",\n".join(f"offsetof(Arguments, {name})" for name, _ in cuda_.Arguments._fields_)
HARNESS = f"""
#include "{HERE / "cuda_on_cpu.h"}"
struct Counted {{ float value; int writes; }};
extern "C" {{ const Counted *limits[4]; int strays; }}  // of student and teacher; how often anything else was read as one
inline float wide(const Counted& v) {{
    const bool inside = (limits[0] <= &v && &v < limits[1]) || (limits[2] <= &v && &v < limits[3]);
    return inside ? v.value : (strays++, 0.f);
}}
inline void put(Counted* at, float v) {{ at->value = v, at->writes++; }}
#define ONLY KERNELS(fp32, float) KERNELS(bf16, __nv_bfloat16) \\
    KERNEL(counted, Counted, SAME, 4, 2, 4) KERNEL(counted, Counted, OTHER, 0, 1, 2)
#include "{SOURCE}"
extern "C" int cuLaunchKernel(void* kernel, int blocks, int, int, int threads, int, int, int, void*, void** given, void**) {{
    return launch<Arguments>(kernel, blocks, threads, given);
}}
extern "C" const size_t places[] = {{
{PLACES},
sizeof(Arguments)}};
"""


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """The library that stands in for the driver."""
    if not shutil.which("g++"):
        pytest.skip("needs g++")
    source = tmp_path_factory.mktemp("cuda") / "kernel.cpp"
    source.write_text(HARNESS)
    built = source.with_suffix(".so")
    subprocess.run(["g++", "-std=c++17", "-O0", "-fPIC", "-shared", str(source), "-o", str(built), "-ldl"], check=True)
    return ctypes.CDLL(str(built))


@pytest.fixture
def on_cpu(emulated, monkeypatch):
    """Launches what is asked for on the CPU."""
    monkeypatch.setattr(driver, "library", lambda: emulated)
    monkeypatch.setattr(cuda_, "BUILT", Path(emulated._name))
    for kept in ("_context", "_function", "_module"):  # for a GPU
        monkeypatch.setattr(driver, kept, getattr(driver, kept).__wrapped__)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0))
    return emulated


@pytest.fixture(autouse=True)
def there(request):
    """A GPU with its compiled kernels, or what stands in for it."""
    if not GPU:
        request.getfixturevalue("on_cpu")
    elif why := driver.why_not():
        pytest.skip(why)


@pytest.fixture(autouse=True)
def guarded(there, guard):
    guard(cuda_)


def drawn(b, c, grid, teacher_grid, size, dtype=torch.float32, sigma=3.0, device=DEVICE):
    """Student, teacher, labels with a fifth ignored, and signed gradients of ce and kl from above."""
    draw = torch.Generator().manual_seed(0)
    z = (torch.randn(b, c, *grid, generator=draw) * sigma).to(device, dtype)
    t = None if teacher_grid is None else (torch.randn(b, c, *teacher_grid, generator=draw) * sigma).to(device, dtype)
    labels = torch.randint(c, (b, *size), generator=draw)
    labels[torch.rand(labels.shape, generator=draw) < 0.2] = 255
    above = [torch.randn(labels.shape, generator=draw).to(device) for _ in range(2)]
    return z, t, labels.to(device, torch.uint8), *above


def gradient(z, t, labels, a, b, temperature=2.0, align_corners=False, ignore=255):
    def log2sum(logits, divisor):
        wide = interpolate(logits.double(), labels.shape[1:], mode="bilinear", align_corners=align_corners)
        return ((wide / divisor).logsumexp(1) / math.log(2)).float()

    none = torch.empty(0, device=z.device)
    kept = (log2sum(z, 1), none, none) if t is None else (log2sum(z, 1), log2sum(z, temperature), log2sum(t, temperature))
    return cuda_.backward(z, t, labels, *kept, a, none if t is None else b, temperature, align_corners, ignore)


def truth(z, t, labels, a, b, **settings):
    z = z.double().requires_grad_()
    ce, kl = upsample_ce_kl(z, None if t is None else t.double(), labels, using="reference", **{"temperature": 2.0, **settings})
    ((a * ce).sum() if kl is None else (a * ce + b * kl).sum()).backward()
    return z.grad


def assert_near(found, wanted, tolerance, floor=0.0):
    """In the norm, and ten times as far at the worst place; what is smaller than `floor` is held to what the floor is held to."""
    assert found.isfinite().all()
    off, size = found.double() - wanted, wanted.abs().clamp(min=floor)
    assert off.norm() <= tolerance * size.norm() and off.abs().max() <= 10 * tolerance * size.max(), off.norm() / size.norm()


CASES = {
    "stride 4, two pixels at once": ((2, 5, (3, 5), (3, 5), (12, 20)), 4.0, False),
    "stride 8": ((1, 19, (2, 3), (2, 3), (16, 24)), 2.0, False),
    "more columns than a warp": ((1, 4, (2, 67), (2, 67), (4, 134)), 4.0, False),
    "more rows than a segment": ((1, 2, (35, 2), (35, 2), (70, 3)), 1.0, False),
    "corners aligned, quads of five": ((1, 6, (3, 3), (3, 3), (10, 9)), 2.0, True),
    "fractional scales": ((2, 3, (5, 3), (5, 3), (13, 10)), 0.5, False),
    "a teacher at half the resolution": ((1, 3, (4, 4), (2, 2), (8, 16)), 4.0, False),
    "a teacher on an odd grid, corners aligned": ((2, 7, (2, 3), (3, 4), (6, 8)), 1.0, True),
    "a finer teacher, any temperature": ((1, 9, (2, 3), (5, 7), (9, 11)), 3.0, False),
    "no upsampling": ((2, 3, (4, 5), (4, 5), (4, 5)), 2.0, False),
    "downwards": ((1, 5, (7, 9), (4, 4), (4, 5)), 1.0, False),
    "a single value": ((1, 4, (1, 1), (1, 1), (3, 5)), 2.0, False),
    "a single label": ((3, 6, (3, 2), (3, 2), (1, 1)), 1.0, True),
    "one class": ((1, 1, (2, 2), (2, 2), (4, 4)), 2.0, False),
    "no teacher": ((2, 7, (2, 3), None, (8, 9)), 4.0, False),
    "no teacher, corners aligned": ((1, 2, (3, 3), None, (9, 10)), 1.0, True),
}


@pytest.mark.parametrize(("shapes", "temperature", "align"), CASES.values(), ids=CASES)
def test_the_gradient_equals_the_reference_in_float64_and_comes_again_to_the_bit(shapes, temperature, align):
    given, settings = drawn(*shapes), {"temperature": temperature, "align_corners": align}
    found = gradient(*given, **settings)
    assert_near(found, truth(*given, **settings), 2e-6, floor=1.0 if shapes[1] == 1 else 0.0)  # one class: all is 0
    assert torch.equal(found, gradient(*given, **settings))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2.5e-3), (torch.float16, 5e-4)][: 1 + GPU])
def test_half_precision_is_rounded_once_when_the_gradient_is_written(dtype, tolerance):
    z, t, *rest = drawn(1, 5, (3, 4), (3, 4), (6, 8), dtype)
    found, wanted = gradient(z, t, *rest), truth(z, t, *rest)
    assert found.dtype == dtype
    assert_near(found, wanted, tolerance)
    only_the_teacher = gradient(z.float(), t, *rest)
    assert only_the_teacher.dtype == torch.float32
    assert_near(only_the_teacher, wanted, 2e-6)


@pytest.mark.parametrize(("sigma", "tolerance"), [(60, 1e-5), (3000, 2e-4)])  # float32 holds a logit of 3000 to 1e-4
@pytest.mark.parametrize("temperature", [2.0, 3.0])
def test_large_logits_lose_no_more_than_their_own_rounding(sigma, tolerance, temperature):
    given = drawn(1, 4, (2, 2), (2, 2), (8, 7), sigma=sigma)
    assert_near(gradient(*given, temperature=temperature), truth(*given, temperature=temperature), tolerance)


def test_no_cut_into_blocks_and_segments_changes_a_bit(monkeypatch):
    given = drawn(2, 5, (7, 9), (7, 9), (14, 36))
    whole = gradient(*given)
    for rows in (1, 2, 3):
        monkeypatch.setattr(cuda_, "marches", lambda B, h, w, chunks, rows=rows: (-(-h // rows), rows))
        assert torch.equal(gradient(*given), whole)


@pytest.mark.parametrize(
    ("kernel", "shapes", "temperature"),
    [
        ("SAME_T4_V2_C4", (2, 6, (5, 40), (5, 40), (10, 160)), 4.0),
        ("SAME_T4_V2_C4", (1, 3, (1, 1), (1, 1), (4, 4)), 4.0),
        ("OTHER_T0_V1_C2", (1, 2, (5, 7), (3, 4), (9, 11)), 3.0),
        ("OTHER_T0_V1_C2", (2, 1, (2, 3), (5, 7), (9, 11)), 3.0),
    ],
)
def test_every_value_is_written_exactly_once_and_none_beside_the_logits_is_read(kernel, shapes, temperature, on_cpu, monkeypatch):
    launched = driver.launch

    def counted(built, name, blocks, threads, arguments, device):
        assert name == f"backward_fp32_{kernel}"
        z, t = (torch.stack([logits, torch.zeros_like(logits)], -1).contiguous() for logits in given[:2])
        grad = torch.zeros_like(z)
        arguments.student, arguments.teacher, arguments.grad = z.data_ptr(), t.data_ptr(), grad.data_ptr()
        limits = (ctypes.c_void_p * 4).in_dll(on_cpu, "limits")
        limits[:] = [end for logits in (z, t) for end in (logits.data_ptr(), logits.data_ptr() + logits.nbytes)]
        strays = ctypes.c_int.in_dll(on_cpu, "strays")
        strays.value = 0
        launched(built, name.replace("fp32", "counted"), blocks, threads, arguments, device)
        assert (grad[..., 1].contiguous().view(torch.int32) == 1).all() and strays.value == 0

    given = drawn(*shapes, device="cpu")
    monkeypatch.setattr(driver, "launch", counted)
    monkeypatch.setattr(cuda_, "marches", lambda B, h, w, chunks: (-(-h // 2), 2))
    gradient(*given, temperature=temperature)


def test_labels_of_any_kind_give_the_same_bits_and_only_a_class_has_a_gradient():
    z, t, labels, a, b = drawn(1, 5, (2, 3), (2, 3), (8, 12))
    plain = gradient(z, t, labels, a, b)
    for kind in (torch.int32, torch.int64):
        assert torch.equal(gradient(z, t, labels.to(kind), a, b), plain)
        other = torch.where(labels == 255, -100, labels.to(kind))
        assert torch.equal(gradient(z, t, other, a, b, ignore=-100), plain)
    known = labels != 255
    assert torch.equal(gradient(z, t, labels, a * known, b), plain), "an ignored label has no weight"
    ignored = torch.full_like(labels, 255)
    assert not gradient(z, None, ignored, a, b).any()
    assert torch.equal(gradient(z, t, ignored, a, b), gradient(z, t, labels, 0 * a, b))


def test_an_ignored_label_that_is_a_class_has_no_gradient_either():
    z, t, labels, a, b = drawn(1, 3, (2, 3), (2, 3), (8, 12))
    assert_near(gradient(z, t, labels % 3, a, b, ignore=1), truth(z, t, labels % 3, a, b, ignore=1), 2e-6)


def test_gradients_from_above_may_be_one_number_or_lie_anywhere():
    z, t, labels, a, b = drawn(1, 3, (2, 3), (2, 3), (8, 12))
    plain = gradient(z, t, labels, a, b)
    one = torch.full((), 0.7, device=DEVICE).expand(labels.shape)
    assert torch.equal(gradient(z, t, labels, one, one), gradient(z, t, labels, one.contiguous(), one.contiguous()))
    assert torch.equal(gradient(z, t, labels, a.mT.contiguous().mT, b.mT.contiguous().mT), plain)
    odd = torch.cat([a.flatten()[:1], a.flatten()])[1:].view_as(a)  # where no two values can be read in one load
    assert cuda_._paired(3, 12, False, (a, b)) and not cuda_._paired(3, 12, False, (odd, b))
    assert_near(gradient(z, t, labels, odd, b), plain.double(), 1e-6)
    assert_near(gradient(z, t, labels, -2 * a, -2 * b), -2 * plain.double(), 1e-6)
    assert not gradient(z, t, labels, 0 * a, 0 * b).any()


def test_nothing_is_to_be_learnt_from_an_equal_teacher_and_classes_share_a_gradient_of_zero():
    z, t, labels, a, b = drawn(1, 5, (3, 2), (3, 2), (7, 6))
    assert not gradient(z, z.clone(), labels, 0 * a, b, temperature=3.0).any()
    found = gradient(z, t, labels, a, b, temperature=4.0)
    assert found.sum(1).norm() < 2e-6 * found.norm()


def test_what_is_not_a_number_stays_so():
    z, t, labels, a, b = drawn(2, 3, (3, 3), (3, 3), (6, 6))
    z[0, 1, 1, 1] = float("nan")
    found = gradient(z, t, labels, a, b)
    assert found[0].isnan().any() and not found[1].isnan().any()


def test_it_follows_the_forward_of_triton_as_one_differentiable_operation():
    z, t, labels, a, b = drawn(1, 3, (2, 2), (2, 2), (4, 6))
    leaf = z.clone().requires_grad_()
    ce, kl = fused.upsample_ce_kl(leaf, t, labels, 4.0, False, 255, "cuda")
    (a * ce + b * kl).sum().backward()
    assert_near(leaf.grad, truth(z, t, labels, a, b, temperature=4.0), 2e-6)


def test_more_than_32_bits_can_count_is_refused_before_anything_runs():
    z, one = torch.empty(1, device=DEVICE).expand(2, 2**10, 2**10, 2**10), torch.empty(2, 4, 4, device=DEVICE)
    with pytest.raises(ValueError, match=r"takes up to 2147483647 logits or pixels, found \(2, 1024, 1024, 1024\) at \(2, 4, 4\)"):
        cuda_.backward(z, None, one, one, one, one, one, one, 1.0, False, 255)


def test_arguments_lie_where_the_kernel_looks_for_them(emulated):
    fields = [getattr(cuda_.Arguments, name) for name, _ in cuda_.Arguments._fields_]
    places = (ctypes.c_size_t * (len(fields) + 1)).in_dll(emulated, "places")
    assert list(places) == [*(field.offset for field in fields), ctypes.sizeof(cuda_.Arguments)]


def test_there_is_a_kernel_for_whatever_is_asked(emulated):
    z = torch.empty(1, 3, 2, 2)
    for dtype, teacher, temperature, paired, classes in product(
        (torch.float32, torch.bfloat16), (None, (2, 2), (3, 3)), (0.5, 1.0, 2.0, 3.0, 4.0), (False, True), (2, 4)
    ):
        other = None if teacher is None else torch.empty(1, 3, *teacher)
        temperature = 1.0 if teacher is None else temperature
        assert getattr(emulated, cuda_._kernel(z.to(dtype), other, temperature, paired, classes))


def test_what_the_driver_refuses_is_told(on_cpu):
    with pytest.raises(RuntimeError, match=r"cuModuleGetFunction: no such kernel \(2\)"):
        driver.launch(cuda_.BUILT, "forward", 1, 128, cuda_.Arguments(), torch.device("cpu"))
