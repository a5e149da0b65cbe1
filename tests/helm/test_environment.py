"""What the server is told: only settings that it has, and values that it takes."""

from __future__ import annotations

import re
from typing import Any

import pytest

from basaran_ops.settings import HEADROOM, InvalidSettings, Settings, unknown_variables

from .charts import FILES, SCHEMA, environment, one, pod, refusal, render, rendered_file, server
from .generated import managed

OTHERS = {"HOME", "HF_HOME", "HF_TOKEN", "TRITON_CACHE_DIR", "DOWNLOAD_TIMEOUT"}
"""Variables of libraries, and of the chart's own script."""
OF_USERS = {"OTEL_EXPORTER_OTLP_ENDPOINT", "NODE_NAME"}
"""Those that ci/extras-values.yaml adds."""

GPU = {"gpu": {"count": 1}}


def settings(values: dict) -> Settings:
    return Settings.from_environment(environment(server(pod(values))))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_variable_is_a_setting_with_a_value_that_it_takes(file: Any) -> None:
    (workload,) = [o for o in rendered_file(file) if o["kind"] == "Deployment"]
    spec = workload["spec"]["template"]["spec"]
    for container in [*spec["containers"], *spec.get("initContainers", ())]:
        if "basaran-ops" not in container["image"]:
            continue
        names = {entry["name"] for entry in container["env"]}
        known = {name.upper() for name in Settings.model_fields}
        assert names - OTHERS - OF_USERS <= known
        told = environment(container)
        assert unknown_variables(told) == []
        Settings.from_environment(told)


def test_the_names_in_the_templates_are_settings() -> None:
    known = {name.upper() for name in Settings.model_fields}
    assert managed() - OTHERS <= known
    # And whatever the values decide cannot be decided a second time.
    told = environment(server(pod({"model": {"name": "org/model", "localFilesOnly": False}, **GPU})))
    assert told.keys() - OTHERS - {"LOG_FORMAT"} <= managed()


def test_every_setting_can_be_set_in_one_place() -> None:
    free = SCHEMA["properties"]["settings"]["properties"].keys()
    assert free.isdisjoint(managed())
    assert free | (managed() - OTHERS) == {name.upper() for name in Settings.model_fields}


def test_a_large_number_of_seconds_is_written_out() -> None:
    download = {"enabled": True, "timeoutSeconds": 1000000}
    chosen = {"model": {"name": "org/model", "download": download}, "lifecycle": {"drainSeconds": 2000000}}
    spec = pod(chosen)
    assert environment(spec["initContainers"][0])["DOWNLOAD_TIMEOUT"] == "1000000"
    assert environment(server(spec))["SERVER_DRAIN_TIMEOUT"] == "2000000"
    assert spec["terminationGracePeriodSeconds"] == 2000030


def test_values_become_settings() -> None:
    found = settings(
        {
            "model": {
                "name": "org/model",
                "revision": "abc",
                "servedName": "prose",
                "adapters": {"law": "org/law", "french": "/models/french"},
                "trustRemoteCode": True,
            },
            "gpu": {"count": 4, "perReplica": 2},
            "engine": {"slots": 8, "contextLength": 2048},
            "server": {"queueLimit": 5},
            "lifecycle": {"drainSeconds": 33},
            "ports": {"http": 8080, "management": 8081},
            "settings": {"ENGINE_PREFIX_CACHE": False, "CUDA_MEMORY_FRACTION": 0.5, "LOG_FORMAT": "console"},
        }
    )
    assert found.model_dump(exclude_unset=True) == {
        "model": "org/model",
        "model_revision": "abc",
        "model_cache_dir": "/models",
        "server_model_name": "prose",
        "model_adapters": "french=/models/french,law=org/law",
        "model_trust_remote_code": True,
        "engine_device": "cuda",
        "engine_replicas": 2,
        "gpus_per_replica": 2,
        "engine_slots": 8,
        "engine_context_length": 2048,
        "engine_token_budget": 512,
        "server_queue_limit": 5,
        "server_threads": 2 * 8 + 5 + HEADROOM,
        "server_connection_limit": 1000,
        "server_drain_timeout": 33,
        "port": 8080,
        "management_port": 8081,
        "engine_prefix_cache": False,
        "cuda_memory_fraction": 0.5,
        "log_format": "console",
    }


def test_large_numbers_are_written_out() -> None:
    assert (
        environment(server(pod({"settings": {"SERVER_MAX_BODY": 1073741824}})))["SERVER_MAX_BODY"]
        == "1073741824"
    )


# -- threads, slots and queue ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"engine": {"slots": 1}, "server": {"queueLimit": 0}},
        {"engine": {"slots": 256}, "gpu": {"count": 8}},
        {"engine": {"slots": 2000, "replicas": 3}, "server": {"queueLimit": 5000}},
    ],
)
def test_each_admitted_request_has_a_thread_and_each_thread_a_connection(values: dict) -> None:
    found = settings(values)
    assert found.threads == found.slots + found.server_queue_limit + HEADROOM
    assert found.server_connection_limit > found.threads
    assert found.engine_token_budget >= found.engine_slots


UNFIT = [
    ({"server": {"threads": 32 + 64 + HEADROOM - 1}}, "SERVER_THREADS"),
    ({"engine": {"replicas": 2}, "server": {"threads": 64 + 64 + HEADROOM - 1}}, "SERVER_THREADS"),
    ({"server": {"connectionLimit": 32 + 64 + HEADROOM}}, "SERVER_CONNECTION_LIMIT"),
    ({"engine": {"slots": 64, "tokenBudget": 63}}, "ENGINE_TOKEN_BUDGET"),
    ({"ports": {"http": 9000}}, "MANAGEMENT_PORT"),
    ({"settings": {"MODEL_LOAD_IN_8BIT": True, "MODEL_LOAD_IN_4BIT": True}}, "MODEL_LOAD_IN_8BIT"),
    ({"settings": {"MODEL_HALF_PRECISION": True, "MODEL_DTYPE": "bfloat16"}}, "MODEL_HALF_PRECISION"),
    ({"model": {"name": "org/m", "adapters": {"org/m": "org/lora"}}}, "MODEL_ADAPTERS"),
]
"""Values that the server would refuse, and what of."""


@pytest.mark.parametrize(("values", "name"), UNFIT)
def test_the_chart_refuses_what_the_server_would(
    values: dict, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refusal(values)
    assert message.count("\n- ") == 1, "one fault, said once"
    with pytest.raises(InvalidSettings, match=name):
        Settings.from_environment(environment_of(values))


def environment_of(values: dict) -> dict[str, str]:
    """What these refused values would have told the server, by hand."""
    names = {
        "threads": "SERVER_THREADS",
        "connectionLimit": "SERVER_CONNECTION_LIMIT",
        "replicas": "ENGINE_REPLICAS",
        "slots": "ENGINE_SLOTS",
        "tokenBudget": "ENGINE_TOKEN_BUDGET",
        "http": "PORT",
        "name": "MODEL",
    }
    told = {}
    for section in values.values():
        for name, value in section.items():
            if name == "adapters":
                told["MODEL_ADAPTERS"] = ",".join(f"{adapter}={source}" for adapter, source in value.items())
            else:
                told[names.get(name, name)] = str(value)
    return told


@pytest.mark.parametrize(
    "least", [{"server": {"threads": 32 + 64 + HEADROOM}}, {"server": {"connectionLimit": 113}}]
)
def test_the_least_that_the_server_takes_is_taken(least: dict) -> None:
    settings(least)


@pytest.mark.parametrize("name", ["SERVER_DRAIN_TIMEOUT", "PORT", "ENGINE_SLOTS", "HF_TOKEN", "LOG_FORMAT"])
def test_a_variable_that_values_decide_is_refused_in_extra_env(name: str) -> None:
    message = refusal({"extraEnv": [{"name": name, "value": "1"}]})
    assert f"extraEnv sets {name}" in message


@pytest.mark.parametrize(
    "chosen",
    [
        {"SERVER_DRAIN_TIMEOUT": 600},  # lifecycle.drainSeconds
        {"ENGINE_SLOT": 3},  # a typing mistake
        {"COMPLETION_MAX_TOKENS": "many"},
        {"LOG_LEVEL": "loud"},
        {"CUDA_MEMORY_FRACTION": 1.5},
    ],
)
def test_settings_are_refused_by_name_type_and_bounds(chosen: dict) -> None:
    assert next(iter(chosen)) in refusal({"settings": chosen})


# -- the device ------------------------------------------------------------------------------------------


def test_with_gpus_the_server_must_not_fall_back_to_the_cpu() -> None:
    assert settings(GPU).engine_device == "cuda"
    assert settings({}).engine_device == "cpu"


@pytest.mark.parametrize(
    ("values", "threads"),
    [
        ({}, 2),
        ({"engine": {"threads": 5}}, 5),
        ({"resources": {"requests": {"cpu": "7500m"}, "limits": {"cpu": 8}}}, 7),
        ({"resources": {"requests": {"cpu": 8}, "limits": {"cpu": None}}, "engine": {"replicas": 4}}, 2),
        ({"resources": {"requests": {"cpu": "250m"}}}, 1),
        ({"resources": {"requests": {"cpu": None}, "limits": {"cpu": "3.5"}}}, 3),
        ({"resources": {"requests": {"cpu": None}, "limits": {"cpu": None}}}, None),
        (GPU, None),
    ],
)
def test_an_engine_has_as_many_threads_as_its_share_of_the_cpus_promised(
    values: dict, threads: int | None
) -> None:
    assert settings(values).engine_threads == threads


# -- secrets and files -----------------------------------------------------------------------------------


def test_without_secrets_there_are_none() -> None:
    objects = render({})
    assert [o for o in objects if o["kind"] in ("Secret", "ConfigMap")] == []
    assert settings({}).server_api_keys_file == ""


def test_keys_are_a_file_of_a_secret_in_a_directory_that_follows_it() -> None:
    spec = pod({"apiKeys": {"existingSecret": "clients", "existingSecretKey": "list.txt"}})
    (volume,) = [v for v in spec["volumes"] if v["name"] == "api-keys"]
    assert volume["secret"]["secretName"] == "clients"
    assert volume["secret"]["items"] == [{"key": "list.txt", "path": "api-keys"}]
    (mount,) = [m for m in server(spec)["volumeMounts"] if m["name"] == "api-keys"]
    # By subPath it would stay as it was when the Secret changes.
    assert "subPath" not in mount
    assert environment(server(spec))["SERVER_API_KEYS_FILE"] == f"{mount['mountPath']}/api-keys"


def test_a_token_comes_from_its_secret() -> None:
    (entry,) = [
        e
        for e in server(pod({"huggingFace": {"existingSecret": "hub", "existingSecretKey": "hf"}}))["env"]
        if e["name"] == "HF_TOKEN"
    ]
    assert entry["valueFrom"]["secretKeyRef"] == {"name": "hub", "key": "hf"}


def test_secrets_among_the_values_are_in_a_secret_and_nowhere_else() -> None:
    values = {"apiKeys": {"keys": ["very-secret-key"]}, "huggingFace": {"token": "hf_very-secret"}}
    objects = render(values)
    secret = one(objects, "Secret")
    assert secret["data"].keys() == {"api-keys", "hf-token"}
    others = [o for o in objects if o is not secret]
    assert not re.search("very-secret", repr(others))


@pytest.mark.parametrize(
    "values",
    [
        {"apiKeys": {"existingSecret": "a", "keys": ["b"]}},
        {"huggingFace": {"existingSecret": "a", "token": "b"}},
    ],
)
def test_a_secret_is_in_one_place(values: dict) -> None:
    assert "exclude each other" in refusal(values)


@pytest.mark.parametrize("key", ["two words", "", "a\nb"])
def test_a_key_that_no_header_can_carry_is_refused(key: str) -> None:
    assert "keys" in refusal({"apiKeys": {"keys": [key]}})


def test_a_chat_template_arrives_as_it_is() -> None:
    text = '{%- for m in messages %}\n{{ m.role }}: "{{ m.content }}" # \\n {{ "x" }}\n{%- endfor %}\n'
    objects = render({"model": {"chatTemplate": text}})
    assert one(objects, "ConfigMap")["data"] == {"chat_template.jinja": text}
    spec = one(objects, "Deployment")["spec"]["template"]["spec"]
    (mount,) = [m for m in server(spec)["volumeMounts"] if m["name"] == "chat-template"]
    assert environment(server(spec))["MODEL_CHAT_TEMPLATE"] == f"{mount['mountPath']}/chat_template.jinja"
