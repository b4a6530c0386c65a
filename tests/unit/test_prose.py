"""Plain words: what a regular expression can check of docstrings, comments, names and pages."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.sources import ROOT, defined, name, words

ALL = sorted(path for kind in ("py", "lua") for path in (ROOT / "relay").rglob(f"*.{kind}"))
PAGES = [ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("[AG][RL]*.md")]
MAX_WORDS = 25
"""In a sentence."""

PRIVATE = {
    "anew", "courier", "couriers", "carrier", "carriers", "detour", "detours", "doubted",
    "doubtful", "errand", "errands", "fate", "fates", "gave", "gives", "heard", "kept", "lately",
    "lent", "loan", "mover", "movers", "noes", "noted", "said", "stray", "strays", "tally",
    "told", "woken",
}  # fmt: skip
"""Words that only the first authors understood, or that hide who acts."""
PRIVATE_IN_NAMES = PRIVATE | {
    "away", "box", "boxes", "brought", "companies", "company", "conduct", "doubt", "doubts",
    "hear", "hearing", "hears", "least", "lend", "most", "parcel", "partner", "partners",
    "roster", "shed", "standing",
}  # fmt: skip
STILL_PRIVATE = (
    "relay/store/", "relay/reference/", "relay/inbox/model/types.py", "relay/inbox/ports.py",
)  # fmt: skip
"""Where the words of the first authors still stand. The list may only shrink."""
STORED_NAMES = {"kept", "standing"}
"""Members of stored or signed JSON, which never change."""
NOUN_CLAUSE = re.compile(
    r"(?:What|Whether|Whose?|Whom|How|Where|Which|When|Why|Gives|Tells|Says)\b"
)
LIST_OR_TABLE = re.compile(r"(?m)^\s*(?:[|>*#-]|\d+\.|[┌│└])|──|::\s*$|```|^ {4}")


def sentences(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text):
        if not LIST_OR_TABLE.search(paragraph):
            yield from re.split(r"(?<=[.!?:;])\s+", " ".join(paragraph.split()))


def objections(text: str) -> Iterator[str]:
    """Yield what is wrong with a text."""
    for sentence in sentences(text):
        if len(sentence.split()) > MAX_WORDS:
            yield f"{len(sentence.split())} words: {sentence}"
    # neither code nor the name of an argument is prose
    plain = re.sub(r"`+[^`]*`+|(?m:^ *\w+:)", "", text.lower())
    yield from (f"word: {word}" for word in PRIVATE & set(re.findall(r"[a-z]+", plain)))


def docstrings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def comments(path: Path) -> Iterator[str]:
    source = path.read_text()
    if path.suffix == ".lua":
        block: list[str] = []
        for line in [*source.splitlines(), ""]:
            if found := re.match(r"\s*--\s?(.*)", line):
                block.append(found[1])
            elif block:
                yield "\n".join(block)
                block = []
        return
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not re.search(r"noqa|type:|pragma", token.string):
            yield token.string.lstrip("# ")


def chosen(path: Path) -> Iterator[str]:
    """Yield the names that a file defines."""
    source = path.read_text()
    if path.suffix == ".lua":
        code = re.sub(r"--.*|'[^']*'|\"[^\"]*\"", "", source)
        yield from re.findall(r"[A-Za-z_]\w+", code)
        return
    yield from defined(ast.parse(source))


def private_prose(path: Path) -> Iterator[str]:
    texts = list(comments(path))
    if path.suffix == ".py":
        texts += docstrings(ast.parse(path.read_text()))
    for text in texts:
        yield from objections(text)


def private_names(path: Path) -> set[str]:
    found = {one for one in chosen(path) if words(one) & PRIVATE_IN_NAMES}
    return found - STORED_NAMES


SOURCES = [path for path in ALL if not name(path).startswith(STILL_PRIVATE)]


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_docstrings_and_comments_are_plain_sentences(path: Path):
    assert list(private_prose(path)) == []


@pytest.mark.parametrize("path", [p for p in SOURCES if p.suffix == ".py"], ids=name)
def test_a_docstring_begins_with_a_verb_or_a_noun(path: Path):
    found = docstrings(ast.parse(path.read_text()))
    assert [text.splitlines()[0] for text in found if NOUN_CLAUSE.match(text)] == []


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_a_name_is_a_word_of_the_field(path: Path):
    assert private_names(path) == set()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_pages_are_plain_sentences(page: Path):
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text())
    assert list(objections(text)) == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs/adr").glob("0*.md")), ids=name)
def test_the_title_of_a_decision_is_plain(page: Path):
    title = page.read_text().splitlines()[0]
    assert list(objections(title)) == []
    assert not NOUN_CLAUSE.match(title.partition(". ")[2]), "state the decision"


@pytest.mark.parametrize("place", STILL_PRIVATE)
def test_the_exceptions_only_shrink(place: str):
    files = [path for path in ALL if name(path).startswith(place)]
    assert any(private_names(path) or list(private_prose(path)) for path in files), "clean now"


def test_the_checks_find_what_they_look_for():
    long = " ".join(["word"] * (MAX_WORDS + 1))
    assert list(objections(f"{long}.")) == [f"{MAX_WORDS + 1} words: {long}."]
    assert list(objections("A peer told us.")) == ["word: told"]
    assert list(objections("The field `told` stays.")) == []
    assert NOUN_CLAUSE.match("Whether it is there.")
    assert words("_is_doubtfulInbox") & PRIVATE_IN_NAMES == {"doubtful"}
