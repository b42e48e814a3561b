"""Decoding one token for every row without the model's own ``forward``.

For the most common anatomy (Llama, Mistral, Qwen2, Qwen3): pre-norm layers of rotary attention and
a gated MLP. Query, key and value are one product, gate and up another, adapters are merged into
the copies, and nothing is checked, wrapped or recorded between them: for small models on a CPU
that is half of the time. Whether it computes what the model computes is tried, not believed: see
``capability``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from grpo_core.policy import dense_weight, head_transform
from grpo_generator_hf.attention import Variant
from grpo_generator_hf.projection import Projection

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from grpo_generator_hf.slots import Slots

_MODEL = {"embed_tokens", "layers", "norm", "rotary_emb"}
_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}


def anatomy_obstacle(base: PreTrainedModel) -> str | None:
    """What is not where it is expected, or ``None``."""
    model: Any = base.base_model
    if _names(model) != _MODEL:
        return f"the model is made of {sorted(_names(model))}"
    for layer in model.layers:
        if _names(layer) != _LAYER:
            return f"a layer is made of {sorted(_names(layer))}"
        if _names(layer.self_attn) - {"q_norm", "k_norm", "rotary_emb"} != _ATTENTION:
            return f"attention is made of {sorted(_names(layer.self_attn))}"
        if _names(layer.mlp) != _MLP:
            return f"the MLP is made of {sorted(_names(layer.mlp))}"
        linears = [getattr(layer.self_attn, name) for name in sorted(_ATTENTION)]
        linears += [getattr(layer.mlp, name) for name in sorted(_MLP - {"act_fn"})]
        odd = [type(linear).__name__ for linear in linears if dense_weight(linear) is None]
        if odd:
            return f"the weight of a {odd[0]} cannot be had as one matrix"
    if dense_weight(cast("nn.Module", base.get_output_embeddings())) is None:
        return "the weight of its head cannot be had as one matrix"
    return None


class FusedStep:
    """Copies of the weights, laid out for decoding; to be made anew when the weights change."""

    def __init__(self, base: PreTrainedModel, slots: Slots, *, rows: int) -> None:
        model: Any = base.base_model
        self._slots = slots
        self._embedding = cast("Tensor", model.embed_tokens.weight)
        self._rotary = model.rotary_emb
        self._layers = [_Layer(layer, rows) for layer in model.layers]
        self._norm = _Norm(model.norm)
        self._head = _project([cast("nn.Module", base.get_output_embeddings())], rows)
        self._transform = head_transform(base)

    def step(self, token_B: Tensor) -> Tensor:
        """Append one token to each row; logits of the next one, ``(B, V)``."""
        position_B = self._slots.advance()
        x_BH = functional.embedding(token_B, self._embedding)
        cos_1BD, sin_1BD = self._rotary(x_BH, position_B[None])
        cos_B1D, sin_B1D = cos_1BD[0, :, None], sin_1BD[0, :, None].clone()
        # sin with the sign that the halves get when they change places.
        sin_B1D[..., : sin_B1D.shape[-1] // 2].neg_()
        for index, layer in enumerate(self._layers):
            x_BH = layer(index, x_BH, cos_B1D, sin_B1D, self._slots)
        return self._transform.apply_(self._head(self._norm(x_BH)))


class _Layer:
    def __init__(self, layer: Any, rows: int) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._before_attention = _Norm(layer.input_layernorm)
        self._before_mlp = _Norm(layer.post_attention_layernorm)
        self._qkv = _project([attention.q_proj, attention.k_proj, attention.v_proj], rows)
        self._out = _project([attention.o_proj], rows)
        self._gate_up = _project([mlp.gate_proj, mlp.up_proj], rows)
        self._down = _project([mlp.down_proj], rows)
        self._activation = mlp.act_fn
        self._head_size: int = attention.head_dim
        self._variant = Variant(scaling=attention.scaling)
        sizes = [_out_features(x) for x in (attention.q_proj, attention.k_proj)]
        self._heads, self._kv_heads = (size // self._head_size for size in sizes)
        self._head_norm = None
        if hasattr(attention, "q_norm"):
            self._head_norm = _Norm(attention.q_norm)
            # One norm over all query and key heads; each keeps its own weight.
            self._head_norm.weight = torch.cat(
                [
                    attention.q_norm.weight.expand(self._heads, -1),
                    attention.k_norm.weight.expand(self._kv_heads, -1),
                ]
            )

    def __call__(
        self, index: int, x_BH: Tensor, cos_B1D: Tensor, sin_B1D: Tensor, slots: Slots
    ) -> Tensor:
        qkv = self._qkv(self._before_attention(x_BH)).unflatten(-1, (-1, self._head_size))
        turning, value = qkv.split([self._heads + self._kv_heads, self._kv_heads], dim=1)
        if self._head_norm is not None:
            turning = self._head_norm(turning)
        turned = turning.roll(self._head_size // 2, -1).mul_(sin_B1D).addcmul_(turning, cos_B1D)
        query, key = turned.split([self._heads, self._kv_heads], dim=1)
        attended = slots.step(index, query, key, value, self._variant).flatten(1)
        x_BH = self._out.added_to(x_BH, attended)
        gate, up = self._gate_up(self._before_mlp(x_BH)).chunk(2, -1)
        return self._down.added_to(x_BH, self._activation(gate).mul_(up))


class _Norm:
    """Root-mean-square norm over the last dimension (arXiv 1910.07467)."""

    def __init__(self, module: Any) -> None:
        self.weight = cast("Tensor", module.weight)
        self._epsilon: float = getattr(module, "variance_epsilon", None) or module.eps

    def __call__(self, x: Tensor) -> Tensor:
        # In float32 whatever the model's dtype, and only then the weight, as transformers does.
        normed = functional.rms_norm(x.float(), x.shape[-1:], eps=self._epsilon)
        return normed.to(x.dtype) * self.weight


def _project(modules: list[nn.Module], rows: int) -> Projection:
    found = [dense_weight(module) for module in modules]
    weights = [pair[0] for pair in found if pair is not None]
    biases = [pair[1] for pair in found if pair is not None]
    return Projection(weights, biases, rows=rows)


def _names(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


def _out_features(module: nn.Module) -> int:
    return cast("int", module.out_features)
