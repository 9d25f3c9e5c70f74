import pytest
from hypothesis import given
from hypothesis import strategies as st

from gingham.text import count, natural_key, render_table


@pytest.mark.parametrize(
    ("number", "expected"),
    [(0, "0"), (9999, "9,999"), (10_000, "10.0 K"), (48_884, "48.9 K"), (195_536, "196 K"), (1_492_992, "1.49 M"),
     (25_557_032, "25.6 M"), (8_178_000_000, "8.18 G")],
)  # fmt: skip
def test_count_has_three_digits_from_10_000_on(number, expected):
    assert count(number) == expected
    assert count(number, "B") == (f"{expected}B" if expected[-1] in "KMG" else f"{expected} B")


def test_tables_are_aligned_and_keep_markup_as_text():
    text = render_table(["name", "kind<", "size"], [["a", "x", "1"], ["[bold]b[/]", "longer", "1000"]])
    lines = text.splitlines()
    assert lines[0] == "name       kind   size"
    assert lines[2] == "a          x         1"
    assert lines[3] == "[bold]b[/] longer 1000"


def test_wide_tables_are_not_truncated():
    text = render_table(["name", "text<"], [["a" * 300, "b" * 300]])
    assert "a" * 300 in text
    assert "b" * 300 in text


@given(st.lists(st.text(max_size=6)))
def test_natural_order_does_not_depend_on_the_input_order(names):
    ordered = sorted(names, key=natural_key)
    names.reverse()
    assert sorted(names, key=natural_key) == ordered
    numbers = [name for name in ordered if name.isascii() and name.isdigit()]
    assert [int(name) for name in numbers] == sorted(map(int, numbers))
