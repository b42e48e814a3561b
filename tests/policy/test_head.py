"""The fused head against plain log-softmax, in float64: values and gradients."""

from __future__ import annotations

import pytest
import torch

from grpo_core.policy.head import HeadTransform, token_logprobs

N, H, V = 7, 5, 11

TRANSFORMS = [
    HeadTransform(),
    HeadTransform(temperature=0.7),
    HeadTransform(scale=0.25, softcap=3.0, temperature=1.3),
]


def inputs(*, bias: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, H, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(V, H, generator=generator, dtype=torch.float64, requires_grad=True)
    offset = torch.randn(V, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randint(V, (N,), generator=generator)
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
@pytest.mark.parametrize("tile_elements", [1, 3 * V, 1000])
@pytest.mark.parametrize("keep_elements", [0, 4 * V, 1000])
@pytest.mark.parametrize("entropy_gradient", [False, True])
def test_values_and_gradients_equal_log_softmax(
    transform: HeadTransform,
    bias: bool,
    tile_elements: int,
    keep_elements: int,
    entropy_gradient: bool,
) -> None:
    hidden, weight, offset, target = inputs(bias=bias)
    leaves = [x for x in (hidden, weight, offset) if x is not None]
    found = token_logprobs(
        hidden,
        weight,
        offset,
        target,
        transform,
        entropy_gradient=entropy_gradient,
        tile_elements=tile_elements,
        keep_elements=keep_elements,
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

    def function(*leaves: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return token_logprobs(*leaves, target, TRANSFORMS[2], tile_elements=2 * V)

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
