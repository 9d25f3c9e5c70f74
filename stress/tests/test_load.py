"""Tests of the checks on a server under load."""

import dataclasses

import pytest

from stress.load import Record, find_issues

pytestmark = pytest.mark.slow


def make_record(**changes):
    """Return a good record with these changes."""
    record = Record(
        health=[0.1] * 40, memory=[300.0, 310.0] * 20, threads=[12, 13] * 20, files_before=20, files_after=20
    )
    return dataclasses.replace(record, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"memory": [300.0 + 8 * k for k in range(40)]},
            "memory grew from 416 MB in the second quarter to 576 MB in the last",
        ),
        ({"threads": list(range(40))}, "threads grew from 19 in the second quarter to 39 in the last"),
        ({"files_after": 40}, "40 files are open when everyone has left, 20 were before they came"),
        ({"health": [0.1, 7.0]}, r"/health took 7.0 s, over 5 s"),
        ({"health": []}, "/health was never answered"),
        ({"exit_code": None}, "after SIGTERM, the server ended with None"),
        ({"exit_code": -9}, "after SIGTERM, the server ended with -9"),
        ({"stderr": "x\nTraceback (most recent call last):\n"}, "a traceback on stderr"),
    ],
)
def test_bad_record_has_an_issue(changes, message):
    (issue,) = find_issues(make_record(**changes))
    assert issue.startswith(message)


def test_good_record_has_no_issues():
    assert find_issues(make_record()) == []
    assert find_issues(make_record(memory=[300.0 + k for k in range(40)])) == [], "a little more is no growth yet"


@pytest.mark.parametrize(
    ("status", "body", "is_lost"),
    [
        (500, b"Internal Server Error", True),
        (200, b"{}", True),
        (422, b'{"error": "one sentence"}', False),
        (422, b'{"error": "two\\nlines"}', True),
        (422, b"no JSON", True),
        (400, b"Invalid HTTP request received.", False),
        (503, b'{"error": "too much at once"}', False),
    ],
)
def test_response_is_checked_by_its_status_and_error_message(status, body, is_lost):
    record = Record()
    record.status("it", status, body, (400, 422))
    assert bool(record.lost) == is_lost
