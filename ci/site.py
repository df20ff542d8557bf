"""MkDocs' hooks: pages of the site that stand elsewhere in the checkout, and links to files that are no pages.

On GitHub a page's links go anywhere in the checkout. On the site, what is a page there is linked as one, other files
are copied to files/, and folders are named without a link.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {  # file of the checkout: page of the site, if it is there
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "CODE_OF_CONDUCT.md": "conduct.md",
    "SECURITY.md": "security-policy.md",
    "tests/README.md": "testing.md",
}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_copied: dict[str, File] = {}


def on_files(files, config):
    """Adds the pages, and the files that pages link to."""
    _copied.clear()
    for source, page in ELSEWHERE.items():
        if (ROOT / source).is_file():
            files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    for file in list(files.documentation_pages()):
        _relinked(file.content_string, _place(file.src_uri), config)
    for file in _copied.values():
        files.append(file)
    return files


def on_page_markdown(markdown, page, config, files):
    """Links of a page, as the site has them."""
    return _relinked(markdown, _place(page.file.src_uri), config)


def _place(page: str) -> str:
    """Where in the checkout the text of a page stands."""
    return next((source for source, name in ELSEWHERE.items() if name == page), f"docs/{page}")


def _relinked(text: str, source: str, config) -> str:
    folder = posixpath.dirname(source)
    here = posixpath.relpath(ELSEWHERE.get(source, posixpath.relpath(source, "docs")), ".")

    def link(match):
        image, label, target = match.groups()
        path, hash_, anchor = target.partition("#")
        if not path or "://" in path or path.startswith("mailto:"):
            return match[0]
        if label.startswith("`test_"):  # long names in narrow cells: where they may break
            label = f"<code>{label.strip('`').replace('_', '_<wbr>')}</code>"
        place = posixpath.normpath(posixpath.join(folder, path))
        if place in ELSEWHERE and (ROOT / place).is_file():
            page = ELSEWHERE[place]
        elif place.startswith("docs/"):
            page = posixpath.relpath(place, "docs")
        elif (ROOT / place).is_dir():
            return label
        elif not (ROOT / place).is_file():
            return match[0]  # which the strict build finds
        else:
            page = f"files/{place}" + (".txt" if place.endswith(".md") else "")
            _copied.setdefault(page, File.generated(config, page, abs_src_path=str(ROOT / place)))
        return f"{image}[{label}]({posixpath.relpath(page, posixpath.dirname(here) or '.')}{hash_}{anchor})"

    pieces = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(piece if piece.startswith("```") else LINK.sub(link, piece) for piece in pieces)
