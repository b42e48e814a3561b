"""What the client makes of servers that are dead, slow, wrong or confused."""

from __future__ import annotations

import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from grpo_core.errors import ConfigError, DataError, SyncError
from grpo_core.protocols import BuildContext
from grpo_generator_vllm_server import VLLMServerConfig, VLLMServerGenerator
from grpo_generator_vllm_server.errors import (
    BadAnswerError,
    NoServerLeftError,
    RequestRefusedError,
)


@pytest.fixture
def servers(fake_servers) -> list[Any]:
    return fake_servers(2)


@pytest.fixture
def make_generator(tmp_path: Path) -> Iterator[Callable[..., VLLMServerGenerator]]:
    made = []

    def make(*servers: Any, **options: Any) -> VLLMServerGenerator:
        quick = {"recover_seconds": 0, "connect_seconds": 2, "request_seconds": 20}
        config = VLLMServerConfig(urls=tuple(s.url for s in servers), **(quick | options))
        context = BuildContext(role="generator", name="vllm-server", seed=0, run_dir=tmp_path)
        made.append(VLLMServerGenerator(config, context))
        return made[-1]

    yield make
    for generator in made:
        generator.close()


@pytest.fixture
def update(load_policy) -> Any:
    return load_policy()[1]


@pytest.fixture
def many(make_request) -> Any:
    return make_request(prompt_ids_P=tuple((10 + i, 20) for i in range(20)))


def indices(groups: Any) -> list[int]:
    return sorted(g.index for g in groups)


def test_prompts_are_shared_between_servers_and_answered_once(
    servers, make_generator, update, many
) -> None:
    generator = make_generator(*servers, requests_at_once=2)
    for server in servers:
        server.slow = 0.02
    assert generator.sync(update(3)) == 3
    groups = list(generator.generate(many))
    assert indices(groups) == list(range(20))
    assert {g.policy_version for g in groups} == {3}
    assert all(len(g.completions_G) == 4 for g in groups)
    counts = [server.count("/v1/completions") for server in servers]
    assert sum(counts) == 20
    assert min(counts) >= 5


def test_the_slower_server_gets_fewer_prompts(servers, make_generator, update, many) -> None:
    servers[0].slow = 0.2
    generator = make_generator(*servers, requests_at_once=2)
    generator.sync(update(0))
    list(generator.generate(many))
    assert servers[0].count("/v1/completions") < servers[1].count("/v1/completions")


def test_a_dead_servers_prompts_go_elsewhere(servers, make_generator, update, many) -> None:
    generator = make_generator(*servers, requests_at_once=4)
    for server in servers:
        server.slow = 0.05
    generator.sync(update(0))
    groups = generator.generate(many)
    first = next(groups)
    servers[0].stop()
    found = [first, *groups]
    assert indices(found) == list(range(20))
    # It stays out until it takes weights again.
    before = servers[0].count("/v1/completions")
    list(generator.generate(many))
    assert servers[0].count("/v1/completions") == before


@pytest.mark.parametrize("fault", ["5xx", "garbage", "hang", "nan", "fewer choices"])
def test_a_faulty_servers_prompts_go_elsewhere(
    servers, make_generator, update, many, fault: str
) -> None:
    generator = make_generator(*servers, request_seconds=0.5)
    generator.sync(update(0))
    servers[0].fault = fault
    assert indices(generator.generate(many)) == list(range(20))
    assert generator._fleet.members[0].out
    assert servers[0].url in generator._fleet.members[0].out


@pytest.mark.parametrize("fault", ["5xx", "garbage", "nan"])
def test_a_passing_fault_is_asked_again(servers, make_generator, update, many, fault) -> None:
    generator = make_generator(servers[0])
    generator.sync(update(0))
    servers[0].fault, servers[0].faults_left = fault, 2
    assert indices(generator.generate(many)) == list(range(20))
    assert generator._fleet.members[0].out is None


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("garbage", "answered no JSON"),
        ("other json", "no completions in its answer"),
        ("fewer choices", "asked for 4 completions, it returned 3"),
        ("one index twice", "it returned 4 with indices"),
        ("nan", "log-probs that are none, the first nan"),
        ("minus infinity", "the first -9999.0"),
        ("above zero", "the first 0.5"),
        ("no logprobs", "no token_ids or no log-probs"),
        ("short logprobs", "3 tokens and 2 log-probs"),
        ("out of vocabulary", "token id 281, but the policy's vocabulary has 281"),
        ("negative id", "token id -1"),
        ("no tokens", "0 tokens"),
        ("past the end", "goes on after its end token 2"),
        ("aborted", "ended by 'abort'"),
        ("cut off early", "max_model_len is too small"),
        ("other prompt", "another prompt than was sent"),
    ],
)
def test_no_bad_answer_becomes_a_rollout(
    servers, make_generator, make_request, update, fault: str, said: str
) -> None:
    generator = make_generator(servers[0], attempts=2)
    generator.sync(update(0))
    servers[0].fault = fault
    request = make_request(prompt_ids_P=((10, 20),))
    with pytest.raises(BadAnswerError, match=said) as caught:
        list(generator.generate(request))
    assert servers[0].url in str(caught.value)
    assert servers[0].count("/v1/completions") == 2


def test_when_no_server_is_left_each_ones_reason_is_said(
    servers, make_generator, update, many
) -> None:
    generator = make_generator(*servers)
    generator.sync(update(0))
    servers[0].stop()
    servers[1].fault = "5xx"
    with pytest.raises(NoServerLeftError) as caught:
        list(generator.generate(many))
    assert "503: overloaded" in str(caught.value)
    if "has failed" not in str(caught.value):
        assert servers[0].url in str(caught.value)


def test_a_hanging_server_is_not_waited_for(servers, make_generator, update, many) -> None:
    generator = make_generator(servers[0], request_seconds=0.3)
    generator.sync(update(0))
    servers[0].fault = "hang"
    started = time.monotonic()
    with pytest.raises(NoServerLeftError, match=r"no answer within 0.3 s"):
        list(generator.generate(many))
    assert time.monotonic() - started < 5


def test_a_restarted_server_gets_its_weights_again_before_it_is_used(
    servers, make_generator, update, many
) -> None:
    generator = make_generator(servers[0], recover_seconds=5)
    generator.sync(update(6))
    held = servers[0].held
    servers[0].restart()
    groups = list(generator.generate(many))
    assert indices(groups) == list(range(20))
    assert servers[0].held == held
    order = [path for path, _ in servers[0].calls]
    assert order.index("/v1/completions") < len(order) - 1 - order[::-1].index("/pause")


def test_a_server_that_was_restarted_between_steps_gets_the_new_weights(
    servers, make_generator, update, many
) -> None:
    generator = make_generator(servers[0], recover_seconds=5)
    generator.sync(update(6))
    servers[0].restart()
    assert generator.sync(update(7)) == 7
    assert servers[0].held.endswith(".v7")
    assert indices(generator.generate(many)) == list(range(20))


def test_one_replica_that_is_behind_gets_no_prompts(servers, make_generator, update, many) -> None:
    generator = make_generator(*servers)
    generator.sync(update(1))
    servers[1].stuck_version = servers[1].held
    assert generator.sync(update(2)) == 2
    assert "was given policy version 2 and holds" in generator._fleet.members[1].out
    before = servers[1].count("/v1/completions")
    list(generator.generate(many))
    assert servers[1].count("/v1/completions") == before
    resumes = servers[1].count("/resume")
    # The next sync tries it again.
    servers[1].stuck_version = None
    generator.sync(update(3))
    assert servers[1].count("/resume") == resumes + 1
    list(generator.generate(many))
    assert servers[1].count("/v1/completions") > before


def test_weights_that_nobody_takes_stop_the_run_and_nobody_is_resumed(
    servers, make_generator, update
) -> None:
    generator = make_generator(*servers)
    for server in servers:
        server.push_error = "ValueError: 2 missing"
    with pytest.raises(SyncError, match=r"no vLLM server holds policy version 0.*2 missing"):
        generator.sync(update(0))
    for server in servers:
        assert server.count("/pause") >= 1
        assert server.count("/resume") == 0


def test_weights_that_change_while_sampling_are_noticed(
    servers, make_generator, update, many
) -> None:
    generator = make_generator(servers[0])
    generator.sync(update(0))
    groups = generator.generate(many)
    next(groups)
    servers[0].held = "grpo-another.v0"
    with pytest.raises(SyncError, match="another run"):
        list(groups)


def test_weights_that_changed_before_a_sync_in_flight_are_noticed_by_it(
    servers, make_generator, update, many
) -> None:
    """After it the server holds this run's weights again, and nothing else would tell."""
    generator = make_generator(servers[0], requests_at_once=1)
    generator.sync(update(0))
    groups = generator.generate(many)
    next(groups)
    assert generator.sync(update(1)) == 1
    next(groups)
    servers[0].held = "grpo-another.v0"
    with pytest.raises(SyncError, match="another run"):
        generator.sync(update(2))


def test_syncs_in_flight_lose_and_repeat_no_prompt(servers, make_generator, update, many) -> None:
    generator = make_generator(*servers, requests_at_once=2)
    for server in servers:
        server.slow = 0.02
    generator.sync(update(0))
    groups = generator.generate(many)
    found = [next(groups)]
    for version in (1, 2, 3):
        assert generator.sync(update(version)) == version
        # What was ready before comes first; the rest was begun under some version.
        while found[-1].policy_version != version:
            found.append(next(groups))
    found += groups
    assert indices(found) == list(range(20))
    assert {g.policy_version for g in found} == {0, 1, 2, 3}
    assert sum(server.count("/v1/completions") for server in servers) == 20


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": "0.25.1"}, "is vLLM 0.25.1; .* tested with >=0.32,<0.33"),
        ({"version": "0.33.0rc1"}, "is vLLM 0.33.0rc1"),
        ({"version": "of today"}, "no version"),
        ({"logprobs_mode": "raw_logprobs"}, "leave out the temperature"),
        ({"extension": False}, "without the worker extension"),
        ({"instance": None}, "does not say which process answers"),
        ({"workers": 2}, "has 2 workers, of which 1 answer"),
    ],
)
def test_first_contact_says_what_does_not_fit(
    servers, make_generator, update, change: dict[str, Any], said: str
) -> None:
    for name, value in change.items():
        setattr(servers[0], name, value)
    with pytest.raises(ConfigError, match=said) as caught:
        make_generator(servers[0]).sync(update(0))
    assert servers[0].url in str(caught.value)


def test_what_a_sync_reports_is_what_the_reference_describes(
    servers, make_generator, load_policy, move
) -> None:
    model, update = load_policy()
    move(model)
    servers[0].dtype = servers[1].dtype = "bfloat16"
    generator = make_generator(*servers)
    assert generator.metrics() == {}
    generator.sync(update(0))
    found = generator.metrics()
    path = Path(__file__).parents[3] / "docs" / "metrics.yaml"
    assert set(found) == set(yaml.safe_load(path.read_text("utf-8"))["sync"])
    assert found["sync/servers"] == 2
    assert found["sync/interrupted"] == 0
    # Two bytes for each weight, and for the tied head once more.
    head = model.get_input_embeddings().weight.numel()
    assert found["sync/bytes"] == 2 * (sum(p.numel() for p in model.parameters()) + head)
    assert 0 < found["sync/rounding_mean"] <= found["sync/rounding_max"] < 2**-8


def test_builds_of_an_accepted_version_are_accepted(servers, make_generator, update) -> None:
    servers[0].version = "0.32.1.dev7+gabc123"
    assert make_generator(servers[0]).sync(update(0)) == 0
    servers[1].version = "0.40.0"
    assert make_generator(servers[1], versions=">=0.40").sync(update(0)) == 0


def test_a_missing_or_wrong_token_is_said_and_the_right_one_is_used(
    fake_servers, make_generator, update, monkeypatch, tmp_path: Path
) -> None:
    (server,) = fake_servers(1, token="right-token")
    monkeypatch.delenv("GRPO_VLLM_TOKEN", raising=False)
    with pytest.raises(NoServerLeftError, match="bearer token is missing or wrong"):
        make_generator(server).sync(update(0))
    monkeypatch.setenv("GRPO_VLLM_TOKEN", "wrong")
    with pytest.raises(NoServerLeftError, match="bearer token") as caught:
        make_generator(server).sync(update(0))
    assert "wrong-token" not in str(caught.value)
    (tmp_path / "token").write_text("right-token\n")
    generator = make_generator(server, token_file=str(tmp_path / "token"))
    assert generator.sync(update(0)) == 0


def test_a_private_authority_is_trusted_where_it_is_given(
    fake_servers, make_generator, update, tmp_path: Path
) -> None:
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    (server,) = fake_servers(1, tls=tls)
    given = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(given))
    assert make_generator(server, ca_file=str(given)).sync(update(0)) == 0
    trustme.CA().cert_pem.write_to_path(str(given))
    for ca_file in (None, str(given)):
        with pytest.raises(NoServerLeftError, match=r"signed it \(generator.ca_file\)"):
            make_generator(server, ca_file=ca_file).sync(update(0))
    given.write_text("nothing of the kind")
    for path in (given, tmp_path / "missing.pem"):
        with pytest.raises(ConfigError, match="is no PEM file with certificates"):
            make_generator(server, ca_file=str(path)).sync(update(0))


def test_a_server_that_is_not_there(make_generator, update) -> None:
    config = VLLMServerConfig(urls=("http://127.0.0.1:1",), recover_seconds=0)
    with pytest.raises(NoServerLeftError, match="cannot be reached"):
        VLLMServerGenerator(config).sync(update(0))


def test_requests_that_no_server_could_serve(servers, make_generator, update, make_request) -> None:
    generator = make_generator(servers[0])
    with pytest.raises(SyncError, match="before it had any weights"):
        generator.generate(make_request())
    generator.sync(update(0))
    with pytest.raises(DataError, match="empty"):
        generator.generate(make_request(prompt_ids_P=((),)))
    with pytest.raises(DataError, match="context is 1024"):
        generator.generate(make_request(prompt_ids_P=((5,) * 1020,)))
    with pytest.raises(ConfigError, match="text only"):
        generator.generate(make_request(inputs_P=({"pixel_values": 1}, {}, {})))
    with pytest.raises(ConfigError, match="empty string"):
        generator.generate(make_request(sampling={"stop": ("",)}))
    assert servers[0].count("/v1/completions") == 0


def test_a_refused_request_is_not_repeated(servers, make_generator, update, many) -> None:
    generator = make_generator(*servers)
    generator.sync(update(0))
    for server in servers:
        server._completions = lambda body: (400, {"error": {"message": "too long"}})
    with pytest.raises(RequestRefusedError, match="400: too long"):
        list(generator.generate(many))
    asked = Counter(
        tuple(body["prompt"]) for s in servers for p, body in s.calls if p == "/v1/completions"
    )
    assert max(asked.values()) == 1


def test_adapters_are_named_by_version_and_the_old_ones_leave(
    servers, make_generator, load_policy, many
) -> None:
    _, update = load_policy(lora_rank=4)
    servers[0].lora_rank = 8
    generator = make_generator(servers[0])
    for version in (0, 1):
        assert generator.sync(update(version)) == version
        (name,) = servers[0].adapters
        assert name.endswith(f".v{version}")
    list(generator.generate(many))
    asked = {body["model"] for p, body in servers[0].calls if p == "/v1/completions"}
    assert asked == {name}
    assert servers[0].held is None  # the base is never sent


def test_adapters_that_do_not_fit(servers, make_generator, load_policy, caplog) -> None:
    _, update = load_policy(lora_rank=16)
    servers[0].lora_rank = servers[1].lora_rank = 8
    with pytest.raises(ConfigError, match=r"--lora-rank 16"):
        make_generator(servers[0], sync="adapter").sync(update(0))
    make_generator(servers[1]).sync(update(0))
    assert "merged" in caplog.text
    _, plain = load_policy()
    with pytest.raises(ConfigError, match=r"set model\.lora"):
        make_generator(servers[0], sync="adapter").sync(plain(0))


def test_every_setting_is_sent(servers, make_generator, update, make_request) -> None:
    generator = make_generator(servers[0], structured_outputs={"regex": "[0-9]+"})
    generator.sync(update(0))
    sampling = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1}
    list(generator.generate(make_request(sampling={**sampling, "repetition_penalty": 1.1})))
    sent = [body for path, body in servers[0].calls if path == "/v1/completions"]
    for body in sent:
        assert {k: body[k] for k in sampling} == sampling
        assert body["repetition_penalty"] == 1.1
        assert body["stop_token_ids"] == [2]
        assert body["structured_outputs"] == {"regex": "[0-9]+"}
    assert len({body["seed"] for body in sent}) == 3


def test_closing_twice_and_asking_afterwards(servers, make_generator, update, make_request) -> None:
    generator = make_generator(servers[0])
    generator.sync(update(0))
    generator.close()
    generator.close()
    with pytest.raises(SyncError):
        generator.generate(make_request())
    assert generator.sync(update(1)) == 1
