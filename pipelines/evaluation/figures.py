"""Plotly figures in self-contained pages of 1.8 MB in place of 4.6: their script is compressed, browsers inflate it.

A page holds `drawn(figure)` for each figure, and `loader()` once, after the last of them.
"""

import base64
import gzip
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

_LOADER = """
<script>
(async () => {
  const held = atob(document.getElementById("plotly-gzip").textContent);
  const stream = new Blob([Uint8Array.from(held, c => c.charCodeAt(0))]).stream();
  const script = document.createElement("script");
  script.textContent = await new Response(stream.pipeThrough(new DecompressionStream("gzip"))).text();
  document.head.appendChild(script);
  for (const each of document.querySelectorAll("script.figure")) {
    const { data, layout } = JSON.parse(each.textContent);
    await Plotly.newPlot(each.previousElementSibling, data, layout, { displaylogo: false, responsive: true });
  }
})().catch(error => {
  for (const each of document.querySelectorAll("div.figure")) {
    if (!each.children.length) each.textContent = `This chart needs a browser of 2023 or newer (${error}).`;
  }
});
</script>
"""


def drawn(figure: Any) -> str:
    """Return a Plotly figure as HTML, which `loader` draws."""
    content = figure.to_json().replace("</", "<\\/")  # no text of it ends the script
    return f'<div class="figure"></div><script type="application/json" class="figure">{content}</script>'


@lru_cache(maxsize=1)
def loader() -> str:
    """Return the HTML that draws every figure above it: Plotly's own script, compressed, and what inflates it.

    The same release of Plotly gives the same bytes.
    """
    from plotly.offline import get_plotlyjs

    packed = base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()
    return f'<script type="application/octet-stream" id="plotly-gzip">{packed}</script>{_LOADER}'


def write_figure(path: Path, figure: Any, title: str) -> Path:
    """Write one figure as a page of its own and return its path. Needs no network."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")
    draft.write_text(f"<!doctype html><meta charset='utf-8'><title>{escape(title)}</title>{drawn(figure)}{loader()}")
    draft.replace(path)
    return path
