"""The page a person sees at `/`: what this service is, and its calls ready to try. BentoML's own page loads a tag
manager and badges from elsewhere; this one uses only the files BentoML serves from this machine."""

from html import escape

from starlette.responses import HTMLResponse

_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<link rel="stylesheet" href="./static_content/swagger-ui.css">
<style>body{{margin:0;font:16px/1.5 system-ui,sans-serif;color:#1c2733}}
header{{max-width:1420px;margin:1.5rem auto 0;padding:0 20px}}
h1{{margin:0}}.swagger-ui .info,.swagger-ui .scheme-container{{display:none}}</style></head>
<body><header><h1>{title}</h1><p>{text}</p>
<p><a href="./status">status</a> · <a href="./ready">ready</a> · <a href="./models">models</a> ·
<a href="./metrics">metrics</a> · <a href="./docs.json">docs.json</a></p></header><div id="calls"></div>
<script src="./static_content/swagger-ui-bundle.js" charset="utf-8"></script>
<script>fetch("./docs.json").then(r => r.json()).then(spec => {{
  spec.info = {{title: document.title, version: ""}};
  SwaggerUIBundle({{spec: spec, dom_id: "#calls", docExpansion: "list", presets: [SwaggerUIBundle.presets.apis]}});
}});</script></body></html>
"""
# nothing on the page may call out, whatever a later BentoML puts into its files
_POLICY = "default-src 'self' 'unsafe-inline' data:"


def page(title: str, text: str) -> HTMLResponse:
    content = _PAGE.format(title=escape(title), text=escape(text))
    return HTMLResponse(content, headers={"Content-Security-Policy": _POLICY})
