"""The fused head against plain log-softmax, in float64: values and gradients."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from grpo_core.policy.head import HeadTransform, token_logprobs
from grpo_core.policy.head.tiles import PLAIN, TileFunctions, compiled

N, H, V = 7, 5, 11
"""Neither is a multiple of the tiles tested, and the targets lie in all of them."""

TRANSFORMS = [
    HeadTransform(),
    HeadTransform(temperature=0.7),
    HeadTransform(scale=0.25, softcap=3.0, temperature=1.3),
]


def inputs(*, bias: bool) -> tuple[torch.Tensor, torch.Tensor, Any, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, H, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(V, H, generator=generator, dtype=torch.float64, requires_grad=True)
    offset = torch.randn(V, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 2, 3, 5, 7, 10, 10])
    return hidden, weight, offset if bias else None, target


def reference(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    transform: HeadTransform,
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.nn.functional.linear(hidden, weight, bias) * transform.scale
    if transform.softcap:
        logits = transform.softcap * torch.tanh(logits / transform.softcap)
    distribution = torch.distributions.Categorical(logits=logits / transform.temperature)
    return distribution.log_prob(target), distribution.entropy()


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tile", [1, 3, 6, 100])
@pytest.mark.parametrize("trained", [(0, 1, 2), (0,), (1,), (0, 2), (2,)])
@pytest.mark.parametrize("entropy_gradient", [False, True])
def test_values_and_gradients_equal_log_softmax(
    transform: HeadTransform,
    bias: bool,
    tile: int,
    trained: tuple[int, ...],
    entropy_gradient: bool,
) -> None:
    hidden, weight, offset, target = inputs(bias=bias)
    leaves = [x for i, x in enumerate((hidden, weight, offset)) if x is not None and i in trained]
    for i, x in enumerate((hidden, weight, offset)):
        if x is not None:
            x.requires_grad_(i in trained)
    if not leaves:
        pytest.skip("a bias that is not there cannot be trained")
    found = token_logprobs(
        hidden,
        weight,
        offset,
        target,
        transform,
        entropy_gradient=entropy_gradient,
        tile=tile,
    )
    expected = reference(hidden, weight, offset, target, transform)
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-12, atol=1e-12)
    weights = torch.linspace(-1, 2, N, dtype=torch.float64)

    def gradients(pair: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        entropy = 0.3 * pair[1] * weights**2 if entropy_gradient else 0
        return torch.autograd.grad((pair[0] * weights + entropy).sum(), leaves)

    for f, e in zip(gradients(found), gradients(expected), strict=True):
        torch.testing.assert_close(f, e, rtol=1e-11, atol=1e-12)


def test_gradcheck() -> None:
    hidden, weight, offset, target = inputs(bias=True)

    def function(
        hidden: torch.Tensor, weight: torch.Tensor, offset: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return token_logprobs(hidden, weight, offset, target, TRANSFORMS[2], tile=2)

    assert torch.autograd.gradcheck(function, (hidden, weight, offset))


def test_no_tokens() -> None:
    hidden, weight, _, _ = inputs(bias=False)
    none = torch.zeros(0, dtype=torch.long)
    logprobs, entropy = token_logprobs(hidden[:0], weight, None, none, HeadTransform())
    (logprobs.sum() + entropy.sum()).backward()
    assert logprobs.shape == entropy.shape == (0,)
    assert weight.grad is not None
    assert weight.grad.abs().max() == 0


def test_a_token_that_is_ruled_out_leaves_the_entropy_finite() -> None:
    hidden = torch.ones(1, 1, requires_grad=True)
    weight = torch.tensor([[0.0], [-torch.inf], [1.0]])
    logprobs, entropy = token_logprobs(hidden, weight, None, torch.tensor([2]), HeadTransform())
    expected = torch.distributions.Categorical(logits=torch.tensor([0.0, 1.0])).entropy()
    torch.testing.assert_close(entropy[0], expected)
    assert logprobs.isfinite().all()


def test_sums_are_in_float32_when_products_are_in_bfloat16() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(4, 16, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(5000, 16, generator=generator).bfloat16().requires_grad_()
    target = torch.tensor([0, 1, 2, 3])
    logprobs, entropy = token_logprobs(hidden, weight, None, target, HeadTransform())
    assert logprobs.dtype == entropy.dtype == torch.float32
    expected = (hidden.detach() @ weight.detach().T).float().log_softmax(-1)
    torch.testing.assert_close(logprobs.detach(), expected[torch.arange(4), target])
    logprobs.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16


def test_tiles_do_not_change_the_result() -> None:
    hidden, weight, offset, target = inputs(bias=True)

    def gradients(tile: int) -> tuple[torch.Tensor, ...]:
        pair = token_logprobs(hidden, weight, offset, target, TRANSFORMS[2], tile=tile)
        total = torch.stack(pair).sum()
        return *pair, *torch.autograd.grad(total, (hidden, weight, offset))

    whole = gradients(max(N, V))
    for tile in range(1, max(N, V)):
        for found, expected in zip(gradients(tile), whole, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("trained", ["everything", "hidden"])
def test_huge_logits(trained: str) -> None:
    """The greatest logit grows from tile to tile by more than an exponential can hold."""
    weight = torch.tensor([[-4e4], [-1e3], [-1e30], [2e3], [4e4], [4e4 + 1]], dtype=torch.float64)
    weight.requires_grad_(trained == "everything")
    hidden = torch.ones(3, 1, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([5, 3, 4])
    found = token_logprobs(
        hidden, weight, None, target, HeadTransform(), entropy_gradient=False, tile=2
    )
    expected = reference(hidden, weight, None, target, HeadTransform())
    for f, e in zip(found, expected, strict=True):
        # 4e4 has a rounding error of 7e-12, which the reference takes over,
        # and which the gradient multiplies by the weight.
        torch.testing.assert_close(f, e, rtol=0, atol=2e-11)
    leaves = [x for x in (hidden, weight) if x.requires_grad]
    for f, e in zip(
        torch.autograd.grad(found[0].sum(), leaves),
        torch.autograd.grad(expected[0].sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(f, e, rtol=1e-11, atol=1e-6)


@pytest.mark.parametrize("entropy_gradient", [False, True])
def test_whole_tiles_that_are_ruled_out(entropy_gradient: bool) -> None:
    hidden, weight, _, _ = inputs(bias=False)
    out = torch.tensor([0, 1, 2, 6])
    bias = torch.zeros(V, dtype=torch.float64).index_fill(0, out, -torch.inf)
    target = torch.full((N,), 7)
    pair = token_logprobs(
        hidden, weight, bias, target, HeadTransform(), entropy_gradient=entropy_gradient, tile=3
    )
    stay = torch.tensor([i for i in range(V) if i not in out.tolist()])
    expected = reference(hidden, weight[stay], None, torch.full((N,), 3), HeadTransform())
    for f, e in zip(pair, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-12, atol=1e-12)
    used = pair if entropy_gradient else pair[:1]
    for f, e in zip(
        torch.autograd.grad(torch.stack(used).sum(), (hidden, weight)),
        torch.autograd.grad(torch.stack(expected[: len(used)]).sum(), (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(f, e, rtol=1e-11, atol=1e-12)


class Watch(TorchDispatchMode):
    """Counts matrix products over the vocabulary, and the largest tensor besides those of the
    sizes that a gradient must have."""

    def __init__(self, *expected: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.expected = expected
        self.largest = 0
        self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_)
        for x in found if isinstance(found, tuple | list) else (found,):
            if isinstance(x, torch.Tensor) and x.untyped_storage().nbytes() not in self.expected:
                self.largest = max(self.largest, x.untyped_storage().nbytes())
        return found


@pytest.mark.parametrize(
    ("trained", "products"), [("everything", 4), ("adapter", 2), ("head", 3), ("nothing", 1)]
)
def test_memory_is_two_tiles_and_nothing_is_computed_for_what_is_frozen(
    trained: str, products: int
) -> None:
    tokens, width, words, tile = 64, 4, 1024, 16
    hidden = torch.randn(tokens, width, requires_grad=trained in ("everything", "adapter"))
    weight = torch.randn(words, width, requires_grad=trained in ("everything", "head"))
    target = torch.arange(tokens)
    with Watch(words * width * 4) as watch:
        logprobs, _ = token_logprobs(
            hidden, weight, None, target, HeadTransform(), entropy_gradient=False, tile=tile
        )
        if trained != "nothing":
            logprobs.sum().backward()
    assert watch.largest == 2 * tile * tile * 4
    assert watch.products == products * (tokens // tile) * (words // tile)


def test_without_gradient_nothing_is_prepared_for_one() -> None:
    hidden, weight, _, target = inputs(bias=False)
    weight.requires_grad_(False)
    with torch.no_grad(), Watch() as watch:
        token_logprobs(hidden, weight, None, target, HeadTransform(), entropy_gradient=False)
    assert watch.products == 1


@pytest.mark.parametrize(
    "device",
    [
        pytest.param("cpu", marks=pytest.mark.slow),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ],
)
def test_compiled_tiles_equal_plain_ones(device: str) -> None:
    if device == "cpu" and not (shutil.which("c++") or shutil.which("g++")):
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    functions = compiled(device)
    assert functions is not PLAIN, "compiling failed; the log says why"
    for transform, entropy_gradient in [(TRANSFORMS[0], False), (TRANSFORMS[2], True)]:
        found, expected = (
            on_device(device, transform, entropy_gradient, f) for f in (functions, PLAIN)
        )
        for f, e in zip(found, expected, strict=True):
            torch.testing.assert_close(f, e, rtol=1e-11, atol=1e-12)


def on_device(
    device: str, transform: HeadTransform, entropy_gradient: bool, functions: TileFunctions
) -> list[torch.Tensor]:
    """Values and gradients, in tiles that do not divide the sizes."""
    hidden, weight, offset = (x.detach().to(device).requires_grad_() for x in inputs(bias=True)[:3])
    pair = token_logprobs(
        hidden,
        weight,
        offset,
        inputs(bias=True)[3].to(device),
        transform,
        entropy_gradient=entropy_gradient,
        tile=3,
        functions=functions,
    )
    used = torch.stack(pair if entropy_gradient else pair[:1])
    return [*pair, *torch.autograd.grad(used.sum(), (hidden, weight, offset))]


def test_a_compiler_that_fails_is_reported_and_done_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        def fails(*_: Any) -> Any:
            raise RuntimeError("no compiler here")

        return fails

    monkeypatch.setattr(torch, "compile", broken)
    assert compiled("cpu") is PLAIN
    assert "no compiler here" in caplog.text


@pytest.mark.parametrize("target", [-1, 7])
def test_a_target_outside_the_vocabulary_is_refused(target: int) -> None:
    with pytest.raises(IndexError, match=rf"from {min(target, 0)} to {max(target, 0)}, .* 7 words"):
        token_logprobs(
            torch.zeros(2, 3), torch.zeros(7, 3), None, torch.tensor([0, target]), HeadTransform()
        )
