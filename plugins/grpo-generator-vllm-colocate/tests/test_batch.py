"""A request on its way to another rank."""

from __future__ import annotations

import json

from grpo_core import SamplingParams
from grpo_generator_vllm_colocate.batch import as_json, from_json


def test_a_request_arrives_as_it_was(make_request) -> None:
    sampling = {"temperature": 0.1 + 0.2, "top_p": 1 / 3, "top_k": 5, "min_p": 0.07}
    request = make_request(
        sampling={
            **sampling,
            "repetition_penalty": 1.1,
            "max_tokens": 9,
            "stop": ("=", "\n\u00e9"),
        },
        prompt_ids_P=((5, 151643), (7,)),
        prompt_keys_P=(4, 0),
        step=-3,
        seed=2**61,
        eos_token_ids=(2, 3),
    )
    assert request.sampling != SamplingParams()
    assert from_json(json.loads(json.dumps(as_json(request)))) == request
