"""The README's table of settings is the settings. Run as a module it writes the table."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic.fields import FieldInfo

from basaran_ops.settings import Settings

README = Path(__file__).parents[1] / "README.md"
BETWEEN = re.compile(r"(?<=checked by a test -->\n).*?(?=<!-- end of settings -->)", re.DOTALL)


def settings_table() -> str:
    rows = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        rows.append(f"| `{name.upper()}` | {default_of(field)} | {field.description} |")
    return "\n".join(rows) + "\n"


def default_of(field: FieldInfo) -> str:
    """A setting's default as an environment has it."""
    value = str(field.default).lower() if isinstance(field.default, bool) else field.default
    return "" if value in (None, "") else f"`{value}`"


def test_the_table_of_settings_is_up_to_date() -> None:
    match = BETWEEN.search(README.read_text())
    assert match is not None
    assert match.group() == settings_table(), "run `make docs`"


def test_the_architecture_fits_on_its_page() -> None:
    assert len((README.parent / "ARCHITECTURE.md").read_text().splitlines()) <= 80


if __name__ == "__main__":
    README.write_text(BETWEEN.sub(lambda _: settings_table(), README.read_text()))
