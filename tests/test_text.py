import pytest

from gingham.text import count, render


@pytest.mark.parametrize(
    ("number", "expected"),
    [(0, "0"), (9999, "9,999"), (10_000, "10.0 K"), (48_884, "48.9 K"), (195_536, "196 K"), (1_492_992, "1.49 M"),
     (25_557_032, "25.6 M"), (8_178_000_000, "8.18 G")],
)  # fmt: skip
def test_count_has_three_digits_from_10_000_on(number, expected):
    assert count(number) == expected
    assert count(number, "B") == (f"{expected}B" if expected[-1] in "KMG" else f"{expected} B")


def test_tables_are_aligned_and_keep_markup_as_text():
    text = render(["name", "kind<", "size"], [["a", "x", "1"], ["[bold]b[/]", "longer", "1000"]])
    lines = text.splitlines()
    assert lines[0] == "name       kind   size"
    assert lines[2] == "a          x         1"
    assert lines[3] == "[bold]b[/] longer 1000"


def test_wide_tables_are_not_truncated():
    text = render(["name", "text<"], [["a" * 300, "b" * 300]])
    assert "a" * 300 in text
    assert "b" * 300 in text
