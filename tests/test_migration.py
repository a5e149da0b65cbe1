"""The page for who comes from Basaran tells of every variable of its, with the defaults that both have."""

from __future__ import annotations

from pathlib import Path

from basaran_ops.settings import RETIRED, Settings

from .test_readme import default_of

PAGE = (Path(__file__).parents[1] / "docs" / "migration.md").read_text()

BASARANS = {
    "MODEL": "bigscience/bloomz-560m",
    "HOST": "0.0.0.0",
    "PORT": "80",
    "MODEL_REVISION": "",
    "MODEL_CACHE_DIR": "models",
    "MODEL_LOAD_IN_8BIT": "false",
    "MODEL_LOAD_IN_4BIT": "false",
    "MODEL_LOCAL_FILES_ONLY": "false",
    "MODEL_TRUST_REMOTE_CODE": "false",
    "MODEL_HALF_PRECISION": "false",
    "SERVER_THREADS": "32",
    "SERVER_IDENTITY": "basaran",
    "SERVER_CONNECTION_LIMIT": "512",
    "SERVER_CHANNEL_TIMEOUT": "300",
    "SERVER_MODEL_NAME": "",
    "SERVER_NO_PLAYGROUND": "false",
    "SERVER_CORS_ORIGINS": "*",
    "COMPLETION_MAX_PROMPT": "32768",
    "COMPLETION_MAX_TOKENS": "8192",
    "COMPLETION_MAX_N": "5",
    "COMPLETION_MAX_LOGPROBS": "5",
    "COMPLETION_MAX_INTERVAL": "50",
    "CUDA_MEMORY_FRACTION": "1.0",
}
"""Every variable that Basaran 0.21.1 reads, in its __init__.py."""


def rows() -> dict[str, tuple[str, str]]:
    """Both defaults of each variable in the page's table of settings."""
    lines = PAGE.split("<!-- checked by tests/test_migration.py -->\n")[1].splitlines()[2:]
    told = {}
    for line in lines[: lines.index("")]:
        name, basarans, ours, difference = (cell.strip() for cell in line.strip("|").split("|"))
        assert difference
        told[name.strip("`")] = (basarans.strip("`"), ours.strip("`"))
    return told


def test_the_page_tells_of_every_variable_of_basarans_with_both_defaults() -> None:
    told = rows()
    assert {name: basarans for name, (basarans, _) in told.items()} == BASARANS
    for name, (_, ours) in told.items():
        if name in RETIRED:
            assert ours == "retired"
        else:
            assert ours == default_of(Settings.model_fields[name.lower()]).strip("`"), name
