from __future__ import annotations

import logging

import pytest

from basaran_ops.engine.library_logs import only_errors_logged


def test_a_librarys_errors_are_logged_and_afterwards_all_that_was(caplog: pytest.LogCaptureFixture) -> None:
    library = logging.getLogger("some_library")
    library.setLevel(logging.INFO)
    child = logging.getLogger("some_library.part")
    with only_errors_logged("some_library", "another"):
        child.warning("a table")
        child.error("an error")
    child.info("as before")
    assert [record.message for record in caplog.records] == ["an error", "as before"]
