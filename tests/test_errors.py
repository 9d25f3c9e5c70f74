import pytest

import gingham


@pytest.mark.parametrize("kind", [gingham.GinghamError, gingham.DataError, gingham.RunError])
def test_messages_are_one_printable_line_of_limited_length(kind):
    assert (
        str(kind("no class 'a\nb\x1b[2J\ud800' here; name another"))
        == "no class 'a b\\x1b[2J\\ud800' here; name another"
    )
    message = str(kind(f"got {'x' * 10**6}; give less"))
    assert len(message) == 1500
    assert message.startswith("got xxx")
    assert message.endswith("xxx; give less")
    assert " ... " in message
    assert len(str(kind("\x1b" * 10**6))) == 1500
