"""A report as one self-contained page: the same look everywhere, and the file appears whole."""

from html import escape
from pathlib import Path

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1100px;padding:0 1rem;color:#1c2733}"
    "table{border-collapse:collapse;width:100%;font-size:14px}td,th{padding:.3rem .6rem;text-align:left;"
    "border-bottom:1px solid #e3e8ee;vertical-align:top}.less{color:#5c6b7a}.wide{overflow-x:auto}"
    ".number{text-align:right;font-variant-numeric:tabular-nums}.good{color:#1a7f45}.bad{color:#b3261e}"
    ".whole,.wide th{white-space:nowrap}"
)


def write_document(path: Path, title: str, body: str) -> Path:
    """Write the HTML `body` under its title as a page and return its path. The folder is made where it is absent."""
    text = f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{escape(title)}</title><style>{STYLE}</style>"
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")
    draft.write_text(f"{text}<h1>{escape(title)}</h1>{body}</html>")
    draft.replace(path)
    return path
