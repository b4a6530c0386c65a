"""tests/README.md lists exactly the files of tests/, and each has a docstring to be listed with."""

from __future__ import annotations

import re

import pytest

from tests.support import contents

HOW = "run: .venv/bin/python -m tests.support.contents"


def test_the_folders_are_those_that_are_there() -> None:
    found = {path.parent.name for path in contents.TESTS.glob("*/*.py")}
    assert found == contents.FOLDERS.keys()


@pytest.mark.parametrize("folder", contents.FOLDERS)
def test_the_page_lists_exactly_the_files_of_a_folder(folder: str) -> None:
    section = contents.README.read_text().partition(f"## {folder}/\n")[2].partition("\n## ")[0]
    listed = re.findall(r"^- `([^`]+)`: \S", section, re.MULTILINE)
    assert listed == [path.name for path in contents.files(folder)], HOW


def test_no_two_helpers_have_one_name() -> None:
    names = [
        path.name
        for folder in contents.FOLDERS
        for path in contents.files(folder)
        if not path.name.startswith("test_") and path.name != "conftest.py"
    ]
    assert len(names) == len(set(names)), sorted(names)
