"""Charts in pages that need no network: Plotly's script is in them, compressed and whole."""

import base64
import gzip
import json
import re

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from pipelines.evaluation.figures import drawn, loader, write_figure


def test_the_script_is_plotlys_own_and_the_same_bytes_each_time():
    packed = re.search(r'id="plotly-gzip">([^<]+)</script>', loader())[1]
    assert gzip.decompress(base64.b64decode(packed)).decode() == get_plotlyjs()
    loader.cache_clear()
    assert re.search(r'id="plotly-gzip">([^<]+)</script>', loader())[1] == packed
    assert len(loader()) < 0.45 * len(get_plotlyjs())


def test_a_figure_is_json_that_no_text_of_it_can_end():
    figure = go.Figure(go.Scatter(x=[1, 2], y=[3.5, None], name="</script><b>"))
    html = drawn(figure)
    content = re.search(r'<script type="application/json" class="figure">(.*)</script>$', html)[1]
    assert "</" not in content
    assert json.loads(content) == json.loads(figure.to_json())


def test_a_page_of_one_figure_names_no_address_outside_of_the_script(tmp_path):
    page = write_figure(tmp_path / "new" / "page.html", go.Figure(go.Bar(y=[1.0])), "A & B").read_text()
    assert "<title>A &amp; B</title>" in page
    assert "src=" not in page.replace(loader(), "")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["page.html"]
