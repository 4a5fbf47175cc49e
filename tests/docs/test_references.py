"""What the documents point at is there: files and headings behind links, named paths, quoted code."""

from __future__ import annotations

from pathlib import Path
import re

import pytest


ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *(
        ROOT / name
        for name in (
            "README.md",
            "CONTRIBUTING.md",
            "SECURITY.md",
            "CHANGELOG.md",
            "k8s/README.md",
            "inference_service/demo/README.md",
        )
    ),
    *sorted((ROOT / "docs").glob("*.md")),
]
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FOLDERS = "protos|inference_service|rest_adapter|demo_training|tests|docs|k8s|docker|benchmarks"
QUOTE = re.compile(r"<!-- from: (\S+) -->\n```\n(.*?)```\n", re.DOTALL)
NAMED_PATH = re.compile(rf"`((?:{FOLDERS})/[\w./-]*)`")


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub and GitLab make them."""
    text = FENCED.sub("", document.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(document: Path, text: str) -> list[str]:
    broken = []
    for link in LINK.findall(FENCED.sub("", text)):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    assert broken_links(document, document.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "link", ["no-such.md", "README.md#no-such-heading", "#no-such-heading", "docs/none/"]
)
def test_a_broken_link_is_found(link: str) -> None:
    assert broken_links(ROOT / "README.md", f"[text]({link})") == [link]


@pytest.mark.parametrize(
    "document",
    [path for path in DOCUMENTS if path.name != "CHANGELOG.md"],  # which names old paths as well
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_named_paths_exist(document: Path) -> None:
    named = NAMED_PATH.findall(document.read_text(encoding="utf-8"))
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_quoted_code_is_in_its_file(document: Path) -> None:
    for file, code in QUOTE.findall(document.read_text(encoding="utf-8")):
        assert code in (ROOT / file).read_text(encoding="utf-8"), file


def test_the_patterns_find_references() -> None:
    """The tests above loop over matches: a pattern that matches nothing would check nothing."""
    texts = [document.read_text(encoding="utf-8") for document in DOCUMENTS]
    links = [link for text in texts for link in LINK.findall(FENCED.sub("", text))]
    local = [link for link in links if not link.startswith(("https://", "http://"))]
    assert len(local) >= 30
    assert sum("#" in link for link in local) >= 3
    assert sum(len(NAMED_PATH.findall(text)) for text in texts) >= 40
    quotes = sum(len(QUOTE.findall(text)) for text in texts)
    assert quotes == sum(text.count("<!-- from: ") for text in texts) >= 3
