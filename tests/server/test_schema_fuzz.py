from __future__ import annotations

from pathlib import Path

from ..running_server import running_server
from ..schema_fuzz import TEMPLATE, fuzz


def test_generated_requests_never_meet_a_500_nor_an_answer_outside_the_schema(
    tiny_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "template").write_text(TEMPLATE)
    with running_server(
        tmp_path / "log",
        MODEL=str(tiny_path),
        MODEL_CHAT_TEMPLATE=str(tmp_path / "template"),
        ENGINE_SLOTS="4",
        ENGINE_CONTEXT_LENGTH="128",
    ) as server:
        server.wait_ready()
        cases = fuzz(server, examples=60, seed=1)
    print(f"{cases} cases")
    assert cases > 500
