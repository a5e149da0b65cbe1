from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from basaran_ops.text.stop_checker import StopChecker

FEW = st.text(alphabet="ab", max_size=30)


def checked(pieces: list[str], stop: list[str]) -> tuple[str, str | None]:
    checker = StopChecker(stop)
    text = "".join(checker.push(piece) for piece in pieces)
    if checker.matched is None:
        text += checker.flush()
    return text, checker.matched


def reference(text: str, stop: list[str]) -> tuple[str, str | None]:
    """Character by character: the first end of any stop string, and of those there the longest."""
    for end in range(1, len(text) + 1):
        matches = [s for s in stop if text[:end].endswith(s)]
        if matches:
            longest = max(matches, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(st.lists(FEW), st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=4))
def test_the_outcome_does_not_depend_on_how_the_text_is_split(pieces: list[str], stop: list[str]) -> None:
    assert checked(pieces, stop) == reference("".join(pieces), stop)


@given(st.lists(FEW), st.lists(st.text(alphabet="ab", min_size=1, max_size=5), min_size=1, max_size=3))
def test_no_more_is_held_back_than_a_stop_string_less_one(pieces: list[str], stop: list[str]) -> None:
    checker = StopChecker(stop)
    given_text = shown = ""
    for piece in pieces:
        given_text += piece
        shown += checker.push(piece)
        if checker.matched is not None:
            break
        assert len(given_text) - len(shown) < max(map(len, stop))
        assert given_text.startswith(shown)


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["three", "two"], "one "),
        ("abcd", ["bc", "abcd"], "a"),
        ("abc", ["bc", "abc"], ""),
        ("abc", [], "abc"),
        ("中文。再见", ["。"], "中文"),
    ],
)
def test_the_earliest_completing_match_wins(text: str, stop: list[str], expected: str) -> None:
    assert checked(list(text), stop)[0] == expected
