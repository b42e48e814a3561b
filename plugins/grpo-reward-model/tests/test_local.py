"""A reward model in this process, against transformers alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from grpo_core.errors import ConfigError, DataError
from grpo_core.protocols import RewardProvider
from grpo_core.types import Abstained, Failed, ScoreRequest, Value
from grpo_reward_model import RewardModel, RewardModelConfig
from grpo_reward_model.local import batches

CHAT = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"})
PAIRS = [
    ("1+1=", "2"),
    ("What is <b>?", "<answer>2</answer> " * 9),
    ("2+2=", "<think>2+2=4</think>"),
    ("1", "1"),
    ("3", "<answer>7</answer><answer>"),
]
TEXTS = [prompt + text for prompt, text in PAIRS]
RENDERED = "<|system|>Be brief.\n<|user|>1+1?\n<|assistant|>2\n"


Ask = Callable[..., ScoreRequest]


def make(folder: Path, **options: Any) -> RewardModel:
    return RewardModel(RewardModelConfig(path=str(folder), **options))


def values(outcomes: Any) -> list[float]:
    assert all(isinstance(o, Value) for o in outcomes), outcomes
    return [o.value for o in outcomes]


@pytest.mark.parametrize("name", ["decoder", "encoder"])
@pytest.mark.parametrize("tokens_per_batch", [1, 60, 10_000])
def test_scores_are_the_models_whatever_shares_their_batch(
    name: str,
    tokens_per_batch: int,
    folders: dict[str, Path],
    expected: Callable[..., list[float]],
    ask: Ask,
) -> None:
    model = make(folders[name], tokens_per_batch=tokens_per_batch)
    assert isinstance(model, RewardProvider)
    found = values(model.score(ask(*PAIRS)))
    wanted = expected(name, TEXTS)
    assert max(wanted) - min(wanted) > 0.1, "equal scores would compare nothing"
    assert found == pytest.approx(wanted, abs=1e-5)
    for pair, score in zip(PAIRS, found, strict=True):
        assert values(model.score(ask(pair))) == pytest.approx([score], abs=1e-5)


def test_conversations_are_rendered_by_the_models_own_template(
    folders: dict[str, Path], expected: Callable[..., list[float]], tmp_path: Path, ask: Ask
) -> None:
    found = values(make(folders["decoder"]).score(ask((CHAT, "2"))))
    assert found == pytest.approx(expected("decoder", [RENDERED]), abs=1e-5)
    kwargs = {"chat_template_kwargs": {"extra": "!"}}
    found = values(make(folders["decoder"], **kwargs).score(ask((CHAT, "2"))))
    assert found == pytest.approx(expected("decoder", [RENDERED.replace("\n", "!\n")]), abs=1e-5)
    (tmp_path / "t.jinja").write_text("{{ messages[-1]['content'] }}")
    other = make(folders["decoder"], chat_template=str(tmp_path / "t.jinja"))
    assert values(other.score(ask((CHAT, "2")))) == pytest.approx(
        expected("decoder", ["2"]), abs=1e-5
    )


def test_an_answer_that_the_prompt_begins_is_one_message(
    folders: dict[str, Path], expected: Callable[..., list[float]], ask: Ask
) -> None:
    begun = (*CHAT, {"role": "assistant", "content": "It is "})
    text = RENDERED.replace("|>2", "|>It is 2")
    found = values(make(folders["decoder"]).score(ask((begun, "2"))))
    assert found == pytest.approx(expected("decoder", [text]), abs=1e-5)


def test_a_conversation_without_a_template_is_an_error(folders: dict[str, Path], ask: Ask) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders["decoder"])
    tokenizer.chat_template = None
    config = RewardModelConfig(path=str(folders["decoder"]))
    with pytest.raises(DataError, match="no chat template"):
        RewardModel(config, tokenizer=tokenizer).score(ask((CHAT, "2")))


def test_several_outputs_need_a_choice(
    folders: dict[str, Path], expected: Callable[..., list[float]], ask: Ask
) -> None:
    with pytest.raises(ConfigError, match=r"2 outputs: 0 \(LABEL_0\), 1 \(LABEL_1\)"):
        make(folders["two"])
    with pytest.raises(ConfigError, match="no output 'good'"):
        make(folders["two"], output="good")
    with pytest.raises(ConfigError, match="no output 2"):
        make(folders["two"], output=2)
    wanted = expected("two", TEXTS, output=1)
    for output in (1, "LABEL_1"):
        model = make(folders["two"], output=output)
        assert values(model.score(ask(*PAIRS))) == pytest.approx(wanted, abs=1e-5)


def test_a_model_whose_head_was_never_trained_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"no weights for score\.weight"):
        make(folders["policy"])


def test_what_cannot_be_loaded_is_named(tmp_path: Path, folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="absent"):
        make(tmp_path / "absent")
    with pytest.raises(ConfigError, match="device 'tpu9'"):
        make(folders["decoder"], device="tpu9")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA GPU"):
            make(folders["decoder"], device="cuda:7")


def test_long_inputs(
    folders: dict[str, Path], expected: Callable[..., list[float]], ask: Ask
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders["decoder"])
    ids = tokenizer(TEXTS[1], add_special_tokens=False)["input_ids"]
    some = ask(PAIRS[0], PAIRS[1])
    short = expected("decoder", TEXTS[:1])[0]

    failed = make(folders["decoder"], max_tokens=len(ids) - 1).score(some)
    assert failed[0] == Value(value=pytest.approx(short, abs=1e-5))
    assert isinstance(failed[1], Failed)
    assert failed[1].kind == "invalid"
    assert f"{len(ids)} tokens" in failed[1].reason
    left = make(folders["decoder"], max_tokens=len(ids) - 1, too_long="abstain").score(some)
    assert isinstance(left[1], Abstained)
    fits = make(folders["decoder"], max_tokens=len(ids)).score(some)
    assert isinstance(fits[1], Value)

    cut = make(folders["decoder"], max_tokens=20, too_long="truncate-left").score(some)
    model = AutoModelForSequenceClassification.from_pretrained(folders["decoder"]).eval()
    with torch.no_grad():
        wanted = float(model(torch.tensor([ids[-20:]])).logits[0, 0])
    assert values(cut)[1] == pytest.approx(wanted, abs=1e-5)


def test_the_models_own_limit_holds(folders: dict[str, Path], ask: Ask) -> None:
    (outcome,) = make(folders["decoder"]).score(ask(("1" * 300, "2")))
    assert isinstance(outcome, Failed)
    assert "takes 256" in outcome.reason


def test_an_empty_input_is_no_score(folders: dict[str, Path], ask: Ask) -> None:
    (outcome,) = make(folders["decoder"]).score(ask(("", "")))
    assert isinstance(outcome, Failed)


def test_nothing_outside_is_touched(folders: dict[str, Path], ask: Ask) -> None:
    torch.manual_seed(3)
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    before = torch.get_rng_state()
    with pytest.raises(ConfigError):
        make(folders["policy"])  # draws its head at random
    model = make(folders["decoder"])
    model.score(ask(*PAIRS))
    assert torch.equal(torch.get_rng_state(), before)
    assert (torch.get_num_threads(), torch.get_default_dtype()) == (threads, dtype)
    assert torch.is_grad_enabled()


def test_the_policys_autocast_and_train_mode_do_not_reach_it(
    folders: dict[str, Path], expected: Callable[..., list[float]], ask: Ask
) -> None:
    own = AutoModelForSequenceClassification.from_pretrained(
        folders["encoder"], dtype=torch.float32
    ).train()  # dropout 0.1
    config = RewardModelConfig(path=str(folders["encoder"]))
    model = RewardModel(config, model=own)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = values(model.score(ask(*PAIRS)))
    assert found == pytest.approx(expected("encoder", TEXTS), abs=1e-5)
    assert own.training


def test_own_dtype(
    folders: dict[str, Path], expected: Callable[..., list[float]], ask: Ask
) -> None:
    found = values(make(folders["decoder"], dtype="bfloat16").score(ask(*PAIRS)))
    wanted = expected("decoder", TEXTS)
    assert found != pytest.approx(wanted, abs=1e-5)
    assert found == pytest.approx(wanted, abs=0.3)


def test_special_tokens_are_added_to_plain_text_only(folders: dict[str, Path], ask: Ask) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = AutoTokenizer.from_pretrained(folders["decoder"])
    eos = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{eos} $A", special_tokens=[(eos, tokenizer.eos_token_id)]
    )
    plain, special = (
        RewardModel(
            RewardModelConfig(path=str(folders["decoder"]), add_special_tokens=added),
            tokenizer=tokenizer,
        )
        for added in (False, True)
    )
    both = ask(PAIRS[0], (CHAT, "2"))
    a, b = values(plain.score(both)), values(special.score(both))
    assert a[0] != pytest.approx(b[0], abs=1e-4)
    assert a[1] == b[1]


def test_batches_keep_to_the_budget_and_lose_nothing() -> None:
    lengths = [5, 1, 9, 2, 30, 3, 3, 8]
    inputs = {i: [0] * n for i, n in enumerate(lengths)}
    made = list(batches(inputs, 16))
    assert sorted(p for batch in made for p in batch) == list(range(len(lengths)))
    for batch in made:
        assert len(batch) == 1 or len(batch) * max(lengths[p] for p in batch) <= 16
    assert len(made) < len(lengths)
