from __future__ import annotations

import pytest

from cascade.storage.errors import DataError
from cascade.storage.names import MAX_BYTES, safe_path

BAD = [
    "",
    " ",
    ".",
    "..",
    "/etc",
    "a/b",
    "a\\b",
    "..\\x",
    "a\0b",
    "a\x1b[2Jb",
    "a\nb",
    "a\u2028b",
    "a\udce9b",
    "ä" * 101,
]


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_is_no_plain_file_name_is_refused_in_one_printable_line(name: str) -> None:
    with pytest.raises(DataError, match="category") as caught:
        safe_path(name, "category")
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 200


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/a", "a//b", "a/", "a/\x1b", "C:\\x/a"])
def test_every_part_of_a_nested_name_is_looked_at(name: str) -> None:
    with pytest.raises(DataError):
        safe_path(name, "category", nested=True)


@pytest.mark.parametrize("name", ["metal nut", "Lötstelle", "...", "-x", "a.b", "缺陷", "x" * MAX_BYTES])
def test_other_names_stay_as_they_are(name: str) -> None:
    assert safe_path(name, "category").as_posix() == name
    assert safe_path(f"maker/{name}", "category", nested=True).parts == ("maker", name)
