"""That the verdict on a server under load and abuse can be a bad one."""

import dataclasses

import pytest

from stress.abusing import Record, judge

pytestmark = pytest.mark.slow


def seen(**changes):
    """A record of which nothing is bad but what is changed."""
    flat = Record(health=[0.1] * 40, memory=[300.0, 310.0] * 20, threads=[12, 13] * 20, files_before=20, files_after=20)
    return dataclasses.replace(flat, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"memory": [300.0 + 8 * k for k in range(40)]}, "memory grew from 416 MB in the second quarter to 576 MB in the last"),
        ({"threads": list(range(40))}, "threads grew from 19 in the second quarter to 39 in the last"),
        ({"files_after": 40}, "40 files are open when everyone has left, 20 were before they came"),
        ({"health": [0.1, 7.0]}, r"/health took 7.0 s, over 5 s"),
        ({"health": []}, "/health was never answered"),
        ({"exit_code": None}, "told to end, the server ended with None"),
        ({"exit_code": -9}, "told to end, the server ended with -9"),
        ({"stderr": "x\nTraceback (most recent call last):\n"}, "a traceback on stderr"),
    ],
)
def test_a_bad_record_is_judged_so(changes, said):
    (sentence,) = judge(seen(**changes))
    assert sentence.startswith(said)


def test_a_good_record_is_judged_so():
    assert judge(seen()) == []
    assert judge(seen(memory=[300.0 + k for k in range(40)])) == [], "a little more is no growth yet"


@pytest.mark.parametrize(
    ("status", "body", "lost"),
    [
        (500, b"Internal Server Error", True),
        (200, b"{}", True),
        (422, b'{"error": "one sentence"}', False),
        (422, b'{"error": "two\\nlines"}', True),
        (422, b"no JSON", True),
        (503, b'{"error": "too much at once"}', False),
    ],
)
def test_an_answer_to_an_abuse_is_judged_by_its_status_and_sentence(status, body, lost):
    record = Record()
    record.status("it", status, body, (422,))
    assert bool(record.lost) == lost
