from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from basaran_ops.checkpoint.directory import complete_directory


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build(partial: Path) -> None:
        (partial / "half").write_text("made")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        complete_directory(tmp_path / "model", build)
    assert [path.name for path in tmp_path.iterdir()] == ["model.lock"]


def test_what_a_killed_build_left_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "model.partial" / "stale").write_text("half")
    complete_directory(tmp_path / "model", lambda partial: (partial / "fresh").touch())
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["fresh"]
    assert not (tmp_path / "model.partial").exists()


def test_many_who_ask_at_once_get_one_build(tmp_path: Path) -> None:
    builds = []

    def build(partial: Path) -> None:
        builds.append(partial)
        time.sleep(0.1)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: complete_directory(tmp_path / "model", build), range(8)))
    assert len(builds) == 1


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_who_may_enter_may_read(tmp_path: Path, mask: int, mode: int) -> None:
    def build(partial: Path) -> None:
        (partial / "inner").mkdir()
        (partial / "inner" / "weights").touch(mode=0o600)

    before = os.umask(mask)
    try:
        complete_directory(tmp_path / "model", build)
    finally:
        os.umask(before)
    assert (tmp_path / "model" / "inner" / "weights").stat().st_mode & 0o777 == mode
