"""One YAML file per deployment: what it may say, and what a wrong one is answered with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from paged_backend.config import EngineConfig
from paged_backend.errors import ConfigError
from paged_backend.handlers.deployment import API_KEY_VARIABLE, Deployment
from paged_backend.handlers.host_configs import ServerConfig

BUNDLED = Path(__file__).parents[2] / "configs" / "paged-tiny.yaml"


def build(data, **options):
    return Deployment.from_dict(data, environ={}, **options)


def test_bundled_file_says_the_defaults():
    deployment = Deployment.load(BUNDLED, environ={})
    engine = EngineConfig.from_args(served_model_name=["paged-tiny"], max_num_seqs=64)
    assert deployment == Deployment(name="paged-tiny", engines=(engine,))
    assert deployment.model_names == ("paged-tiny",)


def test_name_is_enough():
    deployment = build({"name": "x"})
    assert deployment.version == "1.0" and deployment.server == ServerConfig()
    assert deployment.engine.model.model == "paged-tiny" and deployment.model_names == ("x",)
    assert build({"name": "x", "engine": None, "server": {}}) == deployment


def test_served_model_name_wins_over_name():
    assert build({"name": "x", "engine": {"served_model_name": ["a", "b"]}}).model_names == ("a", "b")
    assert build({"name": "x", "engine": {"served_model_name": "a"}}).model_names == ("a",)


def test_round_trip():
    data = {
        "name": "x",
        "version": "2.1",
        "engine": {"max_num_seqs": 3, "served_model_name": ["a"]},
        "server": {"host": "::1", "port": 99, "api_key": "k", "drain_timeout_s": 0.5},
        "torchserve": {"java_heap": "1g", "batch_size": 8},
        "bento": {"timeout_s": 5},
    }
    deployment = build(data)
    assert build(deployment.to_dict()) == deployment
    assert build(yaml.safe_load(yaml.safe_dump(deployment.to_dict()))) == deployment
    assert "api_key" not in deployment.to_dict(with_api_key=False)["server"]
    assert "hunter2" not in repr(build({**data, "server": {"api_key": "hunter2"}}))


def test_relative_folders_are_relative_to_the_file(tmp_path):
    (tmp_path / "weights").mkdir()
    file = tmp_path / "x.yaml"
    for model, resolved in [
        ("./weights", tmp_path / "weights"),
        ("weights", tmp_path / "weights"),
        ("../other", tmp_path.parent / "other"),
        ("org/name", "org/name"),
        ("paged-tiny", "paged-tiny"),
        (str(tmp_path), tmp_path),
    ]:
        file.write_text(f"name: x\nengine: {{model: {model!r}, tokenizer: {model!r}}}\n")
        config = Deployment.load(file, environ={}).engine.model
        assert config.model == config.tokenizer == str(resolved)


def test_several_models(tmp_path):
    (tmp_path / "weights").mkdir()
    file = tmp_path / "x.yaml"
    file.write_text(
        "name: x\nmodels:\n- {model: weights, served_model_name: [a, b]}\n- {max_num_seqs: 4}\n"
        "server: {api_key_file: keys}\n"
    )
    deployment = Deployment.load(file, environ={})
    assert deployment.model_names == ("a", "b", "paged-tiny")
    assert deployment.engine is deployment.engines[0]
    assert deployment.engines[0].model.model == str(tmp_path / "weights")
    assert deployment.engines[1].scheduler.max_num_seqs == 4
    # Together they take what one would.
    assert [engine.cache.gpu_memory_utilization for engine in deployment.engines] == [0.25, 0.25]
    assert deployment.server.api_key_file == str(tmp_path / "keys")  # read where it is served
    assert build(yaml.safe_load(yaml.safe_dump(deployment.to_dict()))) == deployment


def test_the_folder_for_blocks_is_relative_to_the_file_whether_it_is_there_or_not(tmp_path):
    file = tmp_path / "x.yaml"
    for given, expected in (("kv/x", tmp_path / "kv/x"), ("/kv", Path("/kv")), ("~/kv", Path.home() / "kv")):
        file.write_text(f"name: x\nengine: {{kv_offloading_dir: {given}}}\n")
        assert Deployment.load(file, environ={}).engine.cache.kv_offloading_dir == str(expected)


def test_a_file_of_a_chat_template_is_relative_to_the_file_and_a_template_is_none(tmp_path):
    file = tmp_path / "x.yaml"
    for given, expected in (("chat.jinja", str(tmp_path / "chat.jinja")), ("{{ x }}", "{{ x }}"), ("a\nb", "a\nb")):
        file.write_text(f"name: x\nengine: {{chat_template: {json.dumps(given)}}}\n")
        deployment = Deployment.load(file, environ={})
        assert deployment.engine.chat.chat_template == expected
        assert Deployment.from_dict(deployment.to_dict(), environ={}) == deployment


def test_keys_from_the_environment(monkeypatch):
    data = {"name": "x", "server": {"api_key": "from-file"}}

    def keys(value):
        return [(key.name, key.secret) for key in Deployment.from_dict(data, environ=value).server.api_key]

    assert keys({API_KEY_VARIABLE: "k"}) == [("key1", "k")]
    assert keys({API_KEY_VARIABLE: " k  lee:l\n"}) == [("key1", "k"), ("lee", "l")]
    assert keys({API_KEY_VARIABLE: "lee:a:b"}) == [("lee", "a:b")]
    monkeypatch.setenv(API_KEY_VARIABLE, "k2")
    assert keys(None) == [("key1", "k2")]
    for wrong in ("", " ", ":k", "k:", "a/b:k", "a:k a:l", "a:k b:k"):
        with pytest.raises(ConfigError, match=API_KEY_VARIABLE):
            keys({API_KEY_VARIABLE: wrong})


def test_keys_of_a_file_have_names_or_get_them():
    def keys(value):
        return [(key.name, key.secret) for key in build({"name": "x", "server": {"api_key": value}}).server.api_key]

    assert keys(None) == []
    assert keys("a:b") == [("key1", "a:b")]
    assert keys(["a", "b"]) == [("key1", "a"), ("key2", "b")]
    assert keys({"ann": "a", "bob": "b"}) == [("ann", "a"), ("bob", "b")]


def test_a_deployment_without_keys_says_so_and_stays_open():
    one = build({"name": "x"})
    assert one.to_dict()["server"]["api_key"] is None
    assert build(one.to_dict()) == one and not one.server.asks_for_key


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "name is missing"),
        ([], "deployment must be a mapping"),
        ({"name": ""}, "name must be"),
        ({"name": 3}, "name must be"),
        ({"name": "a/b"}, "name must start with a letter or digit"),
        ({"name": "x", "version": 1.0}, 'version must be a quoted string such as "1.0"'),
        ({"name": "x", "verison": "1"}, "Unknown deployment key 'verison'. Did you mean 'version'?"),
        ({"name": "x", "engine": []}, "engine must be a mapping"),
        ({"name": "x", "engine": {"max_num_seq": 1}}, "Did you mean 'max_num_seqs'?"),
        ({"name": "x", "engine": {"max_num_seqs": 0}}, "max_num_seqs must be at least 1"),
        ({"name": "x", "server": {"prot": 1}}, "Unknown server key 'prot'. Did you mean 'port'?"),
        ({"name": "x", "server": {"port": 0}}, "server.port must be in 1..65535"),
        ({"name": "x", "server": {"port": "80"}}, "server.port must be an integer"),
        ({"name": "x", "server": {"host": ""}}, "server.host"),
        (
            {"name": "x", "server": {"api_key": ""}},
            "server.api_key must be a quoted string",
        ),
        (
            {"name": "x", "server": {"api_key": ["a", ""]}},
            "server.api_key must be a quoted string",
        ),
        ({"name": "x", "server": {"api_key": ["a", "a"]}}, "server.api_key holds a key twice"),
        ({"name": "x", "server": {"api_key": []}}, "server.api_key holds no key"),
        ({"name": "x", "server": {"api_key": {}}}, "server.api_key holds no key"),
        ({"name": "x", "server": {"api_key": {"a b": "k"}}}, "the name of a key (number 1)"),
        ({"name": "x", "server": {"api_key": {"a": None}}}, "server.api_key must be a quoted string"),
        ({"name": "x", "server": {"api_key": "a", "api_key_file": "b"}}, "not both"),
        ({"name": "x", "server": {"key_limits": []}}, "server.key_limits must be a mapping"),
        ({"name": "x", "server": {"key_limits": {"default": {"request_per_minute": 1}}}}, "'requests_per_minute'"),
        ({"name": "x", "server": {"key_limits": {"default": {"requests_per_minute": 0}}}}, "requests_per_minute must"),
        ({"name": "x", "server": {"request_limits": {"max_m": 1}}}, "Unknown server.request_limits key 'max_m'"),
        ({"name": "x", "server": {"request_limits": {"max_n": 0}}}, "server.request_limits.max_n must be"),
        (
            {"name": "x", "server": {"request_limits": {"max_stop_strings": 5}}},
            "max_stop_strings must be an integer in 0..4",
        ),
        ({"name": "x", "server": {"access_log": False, "log_prompts": True}}, "server.log_prompts"),
        ({"name": "x", "models": []}, "models must be a list"),
        ({"name": "x", "models": {}}, "models must be a list"),
        ({"name": "x", "models": [{"max_num_seq": 1}]}, "Did you mean 'max_num_seqs'?"),
        ({"name": "x", "models": [{"max_num_seqs": 0}]}, "models.0: max_num_seqs must be at least 1"),
        ({"name": "x", "models": [{}], "engine": {}}, "not both"),
        ({"name": "x", "models": [{}, {}]}, "served_model_name 'paged-tiny' is given twice"),
        (
            {"name": "x", "models": [{"served_model_name": n, "kv_offloading_dir": "d"} for n in "ab"]},
            "kv_offloading_dir 'd' is given twice",
        ),
        (
            {"name": "x", "models": [{"served_model_name": n, "gpu_memory_utilization": 0.6} for n in "ab"]},
            "add up to 1.2",
        ),
        ({"name": "x", "server": {"api_key": "a b"}}, "server.api_key"),
        ({"name": "x", "server": {"max_body_bytes": -1}}, "server.max_body_bytes"),
        ({"name": "x", "server": {"drain_timeout_s": -1}}, "server.drain_timeout_s"),
        ({"name": "x", "server": {"stall_timeout_s": 0}}, "server.stall_timeout_s"),
        ({"name": "x", "server": {"stall_timeout_s": float("inf")}}, "server.stall_timeout_s"),
        ({"name": "x", "torchserve": {"java_heap": "lots"}}, "torchserve.java_heap"),
        ({"name": "x", "torchserve": {"batchsize": 1}}, "Did you mean 'batch_size'?"),
        ({"name": "x", "torchserve": {"job_queue_size": True}}, "torchserve.job_queue_size"),
        ({"name": "x", "bento": {"tracing": 1}}, "bento.tracing must be true or false"),
        ({"name": "x", 3: 4}, "Unknown deployment key '3'"),
    ],
)
def test_refusals(data, message):
    with pytest.raises(ConfigError) as caught:
        build(data)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "is not valid YAML"),
        ("name: x\nname: y\n", "the key 'name' is given twice"),
        ("name: \x00", "is not valid YAML"),
        ("name: x\nserver: {port: no}", "server.port must be an integer"),
        ("", "name is missing"),
        ("- x", "deployment must be a mapping"),
        ("name: x\n? [a, b]\n: 1\n", "a key must be plain text (line 2, column 3)"),
        ("name: x\n? {a: b}\n: 1\n", "a key must be plain text"),
        ("name: !!map [a]", "is not valid YAML"),
        ("name: 2024-13-45", "a malformed value"),
        ("name: " + "[" * 3000, "is not valid YAML"),
    ],
)
def test_file_errors_name_the_file(tmp_path, text, message):
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Deployment.load(file, environ={})
    assert str(caught.value).startswith(str(file)) and message in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        "'hunter2",
        '"hunter2',
        '"hunter2" hunter2',
        "hunter2: x: y",
        "*hunter2",
        "!hunter2 x",
        "!hunter2!x y",
        "&hunter2",
        "[hunter2",
        "@hunter2",
        "%hunter2",
        "12345678",
        "[12345678]",
        "'hunter2 x'",
        "hunter2\x00",
        "null, hunter2: 1}",
    ],
)
def test_no_message_holds_the_key(tmp_path, value):
    file = tmp_path / "secret.yaml"
    file.write_text(f"name: x\nserver:\n  api_key: {value}\n  host: 3\n")
    with pytest.raises(ConfigError) as caught:
        Deployment.load(file, environ={})
    assert "hunter2" not in str(caught.value) and "12345678" not in str(caught.value)
    assert caught.value.__cause__ is None or isinstance(caught.value.__cause__, ConfigError)


def test_reading_fills_nothing_in(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("name: x\nengine: {model: ./weights}\n")
    assert Deployment.read(file) == {"name": "x", "engine": {"model": str(tmp_path / "weights")}}


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        Deployment.load(tmp_path / "none.yaml")
