"""docs/adversarial.md names 27 rows, and every test that it names exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adversarial.md").read_text()


def test_the_page_has_every_row_and_every_row_has_a_test() -> None:
    rows = {int(number): row for number, row in re.findall(r"^\| (\d+) \|(.*)\|$", PAGE, re.MULTILINE)}
    assert sorted(rows) == list(range(1, 28))
    assert all("`test_" in row for row in rows.values())


def test_every_test_of_the_page_exists() -> None:
    written = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    existing = set(re.findall(r"def (test_\w+)\(", written))
    named = {name for name in re.findall(r"`(test_\w+)`", PAGE)}
    assert len(named) > 80
    assert not named - existing
