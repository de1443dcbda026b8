"""The pages a person sees: what a service is with its calls ready to try, and the login page of a tool. BentoML's own
page loads a tag manager and badges from elsewhere; this one uses only the files BentoML serves from this machine."""

import base64
import hashlib
from html import escape

from starlette.responses import HTMLResponse

_STYLE = """body{margin:0;font:16px/1.5 system-ui,sans-serif;color:#1c2733}
header,main{max-width:1420px;margin:1.5rem auto 0;padding:0 20px}main{max-width:34rem;margin-top:12vh}
h1{margin:0}code{background:#eef2f6;padding:.1em .3em}.swagger-ui .info{display:none}
input{font:inherit;width:100%;box-sizing:border-box;padding:.4em;margin:.5em 0}button{font:inherit;padding:.4em 1.2em}
.problem{color:#a11}"""
_SCRIPT = """fetch("./docs.json").then(r => r.json()).then(spec => {
  spec.info = {title: document.title, version: ""};
  SwaggerUIBundle({spec: spec, dom_id: "#calls", docExpansion: "list", presets: [SwaggerUIBundle.presets.apis]});
});"""
_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<link rel="stylesheet" href="./static_content/swagger-ui.css">
<style>{style}</style></head>
<body><header><h1>{title}</h1><p>{text}</p>
<p><a href="./status">status</a> · <a href="./ready">ready</a> · <a href="./models">models</a> ·
<a href="./metrics">metrics</a> · <a href="./docs.json">docs.json</a></p></header><div id="calls"></div>
<script src="./static_content/swagger-ui-bundle.js" charset="utf-8"></script>
<script>{script}</script></body></html>
"""
_LOGIN = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Bellwether {tool}</title>{reload}
<meta name="viewport" content="width=device-width"><style>{style}</style></head>
<body><main><h1>Bellwether {tool}</h1>{problem}
<p>Run <code>bellwether open {tool}</code> in a terminal of this machine, or paste the key (the file
<code>artifacts/write_key</code>, or <code>BELLWETHER_WRITE_KEY</code>):</p>
<form method="post" action="/session">
<input type="password" name="key" aria-label="key" autocomplete="off" autofocus required>
<button>Open</button></form></main></body></html>
"""


def _digest(text: str) -> str:
    """Return the source of an inline script or style for a Content-Security-Policy."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


# the pages may load nothing from elsewhere, whatever a later BentoML puts into its files, and no page may frame them
_SEALED = "frame-ancestors 'none'; base-uri 'none'; object-src 'none'; form-action 'self'"
_POLICY = (
    f"default-src 'self'; script-src 'self' {_digest(_SCRIPT)}; style-src 'self' 'unsafe-inline'; "
    f"img-src 'self' data:; {_SEALED}"
)
_LOGIN_POLICY = f"default-src 'none'; style-src {_digest(_STYLE)}; {_SEALED}"
_NO_EMBED = {"Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY"}
PRIVATE_HEADERS = _NO_EMBED | {"Cache-Control": "no-store"}
# with no-referrer a browser sends `Origin: null` with the form, and the guard could not check where it comes from
_LOGIN_HEADERS = PRIVATE_HEADERS | {"Referrer-Policy": "same-origin", "Content-Security-Policy": _LOGIN_POLICY}


def page(title: str, text: str) -> HTMLResponse:
    """Return the API page of a service: title, text, links, and every call ready to try."""
    content = _PAGE.format(title=escape(title), text=escape(text), style=_STYLE, script=_SCRIPT)
    return HTMLResponse(content, headers=_NO_EMBED | {"Content-Security-Policy": _POLICY})


def login_page(tool: str, status: int = 200, problem: str = "", reload: bool = False) -> HTMLResponse:
    """Return the login page.

    reload    request `/` again from this page: a browser withholds a strict cookie when a link on another site led here
    """
    content = _LOGIN.format(
        tool=escape(tool),
        style=_STYLE,
        problem=f'<p class="problem">{escape(problem)}</p>' if problem else "",
        reload='<meta http-equiv="refresh" content="0;url=/">' if reload else "",
    )
    return HTMLResponse(content, status, headers=_LOGIN_HEADERS)
