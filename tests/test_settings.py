from __future__ import annotations

import pytest
from pydantic import ValidationError

from basaran_ops.settings import InvalidSettings, Settings, unknown_variables


def test_variables_are_read_by_basarans_names() -> None:
    settings = Settings.from_environment(
        {
            "MODEL": "user/repo",
            "MODEL_LOAD_IN_8BIT": "yes",
            "MODEL_TRUST_REMOTE_CODE": "1",
            "PORT": "80",
            "COMPLETION_MAX_N": "3",
            "SERVER_MODEL_NAME": "name",
        }
    )
    assert (settings.model, settings.port, settings.completion_max_n) == ("user/repo", 80, 3)
    assert settings.model_load_in_8bit
    assert settings.model_trust_remote_code


def test_an_empty_variable_is_unset() -> None:
    assert Settings.from_environment({"MODEL": "", "PORT": "", "ENGINE_CONTEXT_LENGTH": ""}) == Settings()


def test_all_faults_are_reported_at_once_each_by_its_name() -> None:
    with pytest.raises(InvalidSettings) as raised:
        Settings.from_environment(
            {"PORT": "http", "ENGINE_SLOTS": "0", "MODEL_DTYPE": "int3", "LOG_LEVEL": "loud"}
        )
    lines = raised.value.faults
    assert [line.partition("=")[0] for line in lines] == ["MODEL_DTYPE", "ENGINE_SLOTS", "PORT", "LOG_LEVEL"]
    assert "'http'" in lines[2]


def test_settings_that_contradict_each_other_are_refused_together() -> None:
    with pytest.raises(InvalidSettings) as raised:
        Settings.from_environment(
            {
                "MODEL_LOAD_IN_8BIT": "1",
                "MODEL_LOAD_IN_4BIT": "1",
                "MODEL_HALF_PRECISION": "1",
                "MODEL_DTYPE": "float32",
                "ENGINE_TOKEN_BUDGET": "8",
                "SERVER_THREADS": "10",
                "SERVER_CONNECTION_LIMIT": "5",
            }
        )
    text = str(raised.value)
    for name in (
        "MODEL_LOAD_IN_4BIT",
        "MODEL_HALF_PRECISION",
        "ENGINE_TOKEN_BUDGET",
        "SERVER_THREADS=10",
        "SERVER_CONNECTION_LIMIT=5",
    ):
        assert name in text


def test_adapters_are_directories_by_name() -> None:
    settings = Settings(model_adapters=" fr = ./french, org/law-v1.5=org/law=2 ,")
    assert settings.adapters == {"fr": "./french", "org/law-v1.5": "org/law=2"}
    assert Settings().adapters == {}


def test_every_fault_of_adapters_is_told_by_the_settings_name() -> None:
    with pytest.raises(InvalidSettings) as raised:
        Settings.from_environment(
            {
                "MODEL": "user/repo",
                "MODEL_ADAPTERS": "fr,=x,de=,nl=a,nl=b,user/repo=d",
                "MODEL_LOAD_IN_8BIT": "1",
                "MODEL_LOAD_IN_4BIT": "1",
            }
        )
    told = [line for line in raised.value.faults if line.startswith("MODEL_ADAPTERS: ")]
    assert told == [
        "MODEL_ADAPTERS: 'fr' is not of the form name=directory",
        "MODEL_ADAPTERS: '=x' is not of the form name=directory",
        "MODEL_ADAPTERS: 'de=' is not of the form name=directory",
        "MODEL_ADAPTERS: 'nl' is there twice",
        "MODEL_ADAPTERS: 'user/repo' is the model's own name",
    ]
    assert len(raised.value.faults) == 6


def test_an_adapter_may_not_have_the_name_that_the_model_is_given() -> None:
    with pytest.raises(ValidationError, match="MODEL_ADAPTERS: 'name' is the model's own name"):
        Settings(model="user/repo", server_model_name="name", model_adapters="name=x")


def test_threads_follow_slots_and_queue() -> None:
    settings = Settings(engine_slots=8, engine_replicas=2, server_queue_limit=10, engine_token_budget=64)
    assert settings.capacity == 26
    assert settings.threads == 42


def test_settings_are_frozen_and_refuse_unknown_fields() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Settings(prot=1)  # type: ignore[call-arg]


def test_a_typing_mistake_is_told_with_the_nearest_name() -> None:
    warnings = unknown_variables({"ENGINE_SLOT": "4", "SERVER_FOO_BAR": "1", "PATH": "/bin", "MODEL": "x"})
    assert warnings == [
        "ENGINE_SLOT is not a setting; did you mean ENGINE_SLOTS?",
        "SERVER_FOO_BAR is not a setting",
    ]


def test_a_setting_of_basarans_without_effect_is_told_with_the_reason() -> None:
    (warning,) = unknown_variables({"COMPLETION_MAX_INTERVAL": "50"})
    assert warning == "COMPLETION_MAX_INTERVAL has no effect: tokens are sent as soon as they are there"


def test_an_ipv6_address_may_be_in_brackets() -> None:
    assert Settings.from_environment({"HOST": "[::1]"}).host == "::1"
    assert Settings.from_environment({"HOST": "::"}).host == "::"


@pytest.mark.parametrize("host", ["[", "]", "[]"])
def test_brackets_alone_are_no_address(host: str) -> None:
    with pytest.raises(InvalidSettings, match="HOST"):
        Settings.from_environment({"HOST": host})


def test_bodies_have_room_for_one_of_the_largest_size() -> None:
    assert Settings().body_memory == 16 * Settings().server_max_body
    assert Settings(server_max_body=2**26).body_memory == 2**30
    assert Settings(server_max_body=1000).body_memory == 2**28
    with pytest.raises(InvalidSettings, match="SERVER_BODY_MEMORY=999"):
        Settings.from_environment({"SERVER_MAX_BODY": "1000", "SERVER_BODY_MEMORY": "999"})
