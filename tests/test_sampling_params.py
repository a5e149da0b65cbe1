from __future__ import annotations

from typing import Any

import pytest

from basaran_ops import SamplingParams
from basaran_ops.errors import InvalidRequest


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("max_tokens", -1),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", float("nan")),
        ("top_p", 1.5),
        ("top_k", -2),
        ("min_p", -0.5),
        ("n", 0),
        ("seed", 2**63),
        ("stop", ("a", "")),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(param: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as raised:
        SamplingParams(**{param: value})
    assert raised.value.param == param
    assert raised.value.message.startswith(param)


def test_each_choice_has_its_own_seed() -> None:
    assert [SamplingParams(seed=5, n=3).seed_of(choice) for choice in range(3)] == [5, 6, 7]
    assert SamplingParams().seed_of(1) is None
