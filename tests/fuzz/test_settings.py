from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from basaran_ops.settings import PREFIXES, InvalidSettings, Settings, unknown_variables

from .effort import examples

NAMES = [name.upper() for name in Settings.model_fields]

# fmt: off
WORDS = [
    "0", "1", "-1", "2", "8", "15", "16", "512", "4096", "65535", "65536", "99999999", "1e3", "0.5", "1.0",
    "1.5", "true", "False", "yes", "no", "on", "t", "", " ", " 8 ", "8 ", "0x10", "1_000", "\u0663", "nan",
    "inf", "-inf", "auto", "float16", "bfloat16", "float32", "FLOAT32", "packed", "padded", "info", "debug",
    "json", "console", "::", "[::1]", "[", "0.0.0.0", "a=b", "a=b,a=c", "=", ",", "a=", "=b", "m=x", "m",
    "None", "null", "[]", "{}", "9" * 5000, "x" * 5000, "\n", "a\nb", "é", "\udcff", "\x1b[31m", "%s",
    "{0}", "../..", "/dev/null", "+1",
]
# fmt: on

ENVIRONMENTS = st.dictionaries(
    st.sampled_from(NAMES), st.sampled_from(WORDS) | st.text(max_size=8), max_size=8
) | st.dictionaries(st.sampled_from(NAMES), st.sampled_from(WORDS[:12]), max_size=5)


def settings_or_faults(environ: dict[str, str]) -> Settings | list[str]:
    try:
        return Settings.from_environment(environ)
    except InvalidSettings as error:
        return error.faults


def written(settings: Settings) -> dict[str, str]:
    """The environment that gives these settings."""
    values = settings.model_dump(exclude_none=True)
    return {name.upper(): str(value) for name, value in values.items() if value != ""}


def test_any_environment_gives_settings_or_names_each_fault() -> None:
    valid = 0

    @examples(2500)
    @given(ENVIRONMENTS)
    def check(environ: dict[str, str]) -> None:
        nonlocal valid
        settings = settings_or_faults(environ)
        if isinstance(settings, list):
            assert settings
            for fault in settings:
                assert any(re.search(rf"\b{name}\b", fault) for name in NAMES), fault
            return
        valid += 1
        assert Settings.from_environment(written(settings)) == settings
        assert settings.threads > settings.capacity
        assert settings.body_memory >= settings.server_max_body
        assert settings.served_name

    check()
    assert valid > 100


def test_a_value_that_is_wrong_by_itself_is_told_among_others() -> None:
    """All faults of single values are told at once, each by its name, whatever the other values are."""

    @examples(500)
    @given(
        st.sets(st.sampled_from(["PORT", "ENGINE_SLOTS", "MODEL_DTYPE", "LOG_PROMPTS"]), min_size=1),
        ENVIRONMENTS,
    )
    def check(wrong: set[str], environ: dict[str, str]) -> None:
        faults = settings_or_faults(environ | dict.fromkeys(wrong, "wrong"))
        assert isinstance(faults, list)
        assert wrong <= {fault.partition("=")[0] for fault in faults}

    check()


def test_any_environment_gives_warnings_of_what_looks_like_ours() -> None:
    names = st.sampled_from(NAMES) | st.builds(str.__add__, st.sampled_from(PREFIXES), st.text(max_size=8))

    @examples(300)
    @given(st.dictionaries(names | st.text(max_size=8), st.text(max_size=3), max_size=6))
    def check(environ: dict[str, str]) -> None:
        strange = {name for name in environ if name.startswith(PREFIXES) and name not in NAMES}
        warnings = unknown_variables(environ)
        assert len(warnings) == len(strange)
        assert all(any(warning.startswith(name) for name in strange) for warning in warnings)

    check()
