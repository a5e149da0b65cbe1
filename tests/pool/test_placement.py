from __future__ import annotations

import os
from pathlib import Path

import pytest

from basaran_ops.pool import placement
from basaran_ops.pool.placement import Placement, count_gpus, place, usable_cores, with_short_spins
from basaran_ops.settings import InvalidSettings, Settings

EIGHT = frozenset(range(8))


def settings(replicas: int = 1, gpus: int = 1, **values: object) -> Settings:
    chosen: dict[str, object] = {"engine_replicas": replicas, "gpus_per_replica": gpus} | values
    return Settings(**chosen)  # type: ignore[arg-type]


def gpus_of(placed: list[Placement]) -> list[str | None]:
    return [each.environ.get("CUDA_VISIBLE_DEVICES") for each in placed]


def cores_of(placed: list[Placement]) -> list[list[int] | None]:
    return [None if each.cores is None else sorted(each.cores) for each in placed]


@pytest.mark.parametrize(
    ("replicas", "each", "visible", "gpus", "expected"),
    [
        (1, 1, None, 8, ["0"]),
        (2, 1, None, 8, ["0", "1"]),
        (2, 2, None, 4, ["0,1", "2,3"]),
        (1, 4, None, 4, ["0,1,2,3"]),
        (2, 1, "4,6", 8, ["4", "6"]),
        (2, 1, " 4 , 6 ", 8, ["4", "6"]),
        (2, 1, "GPU-8f6c,GPU-1a2b", 2, ["GPU-8f6c", "GPU-1a2b"]),
        (1, 2, "MIG-5c89,MIG-7d31", 1, ["MIG-5c89,MIG-7d31"]),
        (2, 1, "0,1", 0, ["0", "1"]),
    ],
    ids=[
        "one takes the first",
        "one each",
        "groups",
        "all for one",
        "those that are visible",
        "spaces",
        "UUIDs",
        "MIG slices of one GPU",
        "GPUs of another maker, which only the variable tells of",
    ],
)
def test_each_replica_sees_gpus_of_its_own(
    replicas: int, each: int, visible: str | None, gpus: int, expected: list[str]
) -> None:
    environ = {"PATH": "/bin"} | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    placed = place(settings(replicas, each), environ, EIGHT, gpus)
    assert gpus_of(placed) == expected
    assert all(one.environ["PATH"] == "/bin" for one in placed)
    assert cores_of(placed) == [None] * replicas


@pytest.mark.parametrize(
    ("replicas", "each", "visible", "gpus", "asked", "found"),
    [
        (3, 1, None, 2, 3, "this machine shows 2"),
        (2, 2, "4,6,7", 8, 4, "CUDA_VISIBLE_DEVICES=4,6,7 gives 3"),
        (2, 1, "0,9,1", 2, 2, "CUDA_VISIBLE_DEVICES=0,9,1 gives 1"),
        (1, 2, None, 0, 2, "this machine shows 0"),
    ],
    ids=["of the machine", "of those visible", "CUDA stops at the first that is none", "no GPU at all"],
)
def test_more_gpus_than_there_are_are_refused_with_the_numbers(
    replicas: int, each: int, visible: str | None, gpus: int, asked: int, found: str
) -> None:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    with pytest.raises(InvalidSettings) as raised:
        place(settings(replicas, each), environ, EIGHT, gpus)
    (fault,) = raised.value.faults
    named = f"ENGINE_REPLICAS={replicas} x GPUS_PER_REPLICA={each} = {asked} GPUs are asked for"
    assert fault == f"{named}, but {found}"


@pytest.mark.parametrize(
    ("chosen", "fault"),
    [
        (settings(2, engine_device="cuda"), "ENGINE_REPLICAS=2 x GPUS_PER_REPLICA=1 = 2 GPUs are asked for"),
        (settings(2, engine_device="cuda:1"), "ENGINE_DEVICE=cuda:1 names one GPU"),
        (settings(1, 2, engine_device="cpu"), "GPUS_PER_REPLICA=2, but ENGINE_DEVICE=cpu"),
    ],
)
def test_gpus_that_are_named_and_not_there_are_refused(chosen: Settings, fault: str) -> None:
    with pytest.raises(InvalidSettings, match=fault):
        place(chosen, {}, EIGHT, 0)


def test_a_gpu_that_is_named_by_its_number_is_left_to_torch() -> None:
    assert gpus_of(place(settings(engine_device="cuda:1"), {}, EIGHT, 2)) == [None]
    assert gpus_of(place(settings(engine_device="cuda"), {}, EIGHT, 0)) == [None]


@pytest.mark.parametrize(
    ("replicas", "cores", "expected"),
    [
        (2, EIGHT, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (3, EIGHT, [[0, 1], [2, 3, 4], [5, 6, 7]]),
        (2, frozenset({3, 5, 11, 12}), [[3, 5], [11, 12]]),
        (8, EIGHT, [[core] for core in range(8)]),
        (1, EIGHT, [None]),
        (9, EIGHT, [None] * 9),
    ],
    ids=["halves", "uneven", "what the server may use", "one each", "alone", "more replicas than cores"],
)
def test_without_gpus_replicas_share_the_cores_in_runs(
    replicas: int, cores: frozenset[int], expected: list[list[int] | None]
) -> None:
    for chosen in (settings(replicas), settings(replicas, engine_device="cpu")):
        assert cores_of(place(chosen, {}, cores, 0)) == expected
    assert gpus_of(place(settings(replicas), {}, cores, 0)) == [None] * replicas


@pytest.mark.parametrize("visible", ["", "-1", "none"])
def test_hidden_gpus_are_none(visible: str) -> None:
    placed = place(settings(2), {"CUDA_VISIBLE_DEVICES": visible}, EIGHT, 4)
    assert cores_of(placed) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert gpus_of(placed) == [visible] * 2


def test_a_replica_has_a_thread_for_each_of_its_cores_unless_told_otherwise() -> None:
    def threads(chosen: Settings) -> list[int | None]:
        return [one.threads for one in place(chosen, {}, EIGHT, 0)]

    assert threads(settings(3)) == [2, 3, 3]
    assert threads(settings(16)) == [1] * 16
    assert threads(settings(2, engine_threads=7)) == [7, 7]
    assert threads(settings(1)) == [None]
    assert threads(settings(2, engine_device="mps")) == [4, 4]


def test_gpus_are_counted_by_their_device_files_or_by_the_drivers_list(tmp_path: Path) -> None:
    devices, driver = tmp_path / "dev", tmp_path / "gpus"
    devices.mkdir()
    assert count_gpus(devices, driver) == 0
    (driver / "0000:01:00.0").mkdir(parents=True)
    assert count_gpus(devices, driver) == 1
    for name in ("nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm", "nvidia-caps", "nvidia0-backup"):
        (devices / name).touch()
    assert count_gpus(devices, driver) == 2


def test_a_system_that_cannot_pin_still_counts_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(placement.os, "sched_getaffinity", raising=False)
    assert len(usable_cores()) == os.cpu_count()


def test_threads_of_engines_wait_briefly() -> None:
    assert with_short_spins({"A": "b"}) == {"A": "b", "GOMP_SPINCOUNT": "1000"}


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_how_threads_wait_is_the_operators_choice(name: str) -> None:
    assert with_short_spins({name: "x"}) == {name: "x"}
