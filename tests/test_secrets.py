from grpo_core.secrets import HIDDEN, without_secrets


def test_a_name_that_says_so_hides_its_whole_value() -> None:
    config = {"hf_token": "a", "judge": {"api_key": ["b"], "password": None, "steps": 3}}
    assert without_secrets(config) == {
        "hf_token": HIDDEN,
        "judge": {"api_key": HIDDEN, "password": None, "steps": 3},
    }


def test_counts_of_tokens_are_no_secret() -> None:
    config = {"max_tokens": 64, "tokens_per_microbatch": 8192}
    assert without_secrets(config) == config


def test_known_forms_are_hidden_wherever_they_stand() -> None:
    secrets = (
        "hf_abcdefghij",
        "sk-proj-abcdefgh",
        "ghp_" + "a" * 36,
        "AKIA" + "A" * 16,
        "Bearer abcdefghijk",
        "http://host/?write_token=abc&x=1",
        "https://me:pw@host/",
    )
    hidden = without_secrets([f"before {secret} behind" for secret in secrets])
    assert hidden[5] == f"before http://host/?write_token={HIDDEN}&x=1 behind"
    assert hidden[6] == f"before https://{HIDDEN}host/ behind"
    for text in hidden:
        assert HIDDEN in text
        assert text.startswith("before ")
        assert text.endswith(" behind")


def test_strings_are_shown_as_the_caller_wants_them() -> None:
    assert without_secrets({"a": ("x", 1)}, str.upper) == {"a": ["X", 1]}
