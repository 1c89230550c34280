"""Packages on demand: pip and npm inside an instance, from the host's configured index, private to the instance."""

from __future__ import annotations

import json
from typing import Any

from tests.support.server import Server

PIP = '''
import json, subprocess, sys
def handler(event, context):
    """install NAME, import NAME, or fetch URL"""
    verb, _, what = event.decode().partition(" ")
    if verb == "install":
        done = subprocess.run([sys.executable, "-m", "pip", "install", what], capture_output=True, text=True)
        return json.dumps([done.returncode, done.stdout[-500:], done.stderr[-500:]])
    if verb == "import":
        import importlib
        try: return importlib.import_module(what).__version__
        except ImportError as e: return repr(e)
    if verb == "fetch":
        import urllib.request, urllib.error
        try: return str(urllib.request.urlopen(what, timeout=5).status)
        except urllib.error.HTTPError as e: return str(e.code)
        except OSError as e: return type(e).__name__
'''
SESSIONS: dict[str, Any] = {
    "sessionAffinity": "HEADER_FIELD",
    "sessionAffinityConfig": json.dumps({"affinityHeaderFieldName": "x-chat-id"}),
    "instanceIsolationMode": "SESSION_EXCLUSIVE",
    "timeout": 300,
}


def test_pip_installs_into_the_session_and_nowhere_else(server: Server) -> None:
    server.deploy("pip", {"index.py": PIP}, roost={"packages": ["pypi"]}, **SESSIONS)
    code, out, err = server.invoke("pip", "install six", x_chat_id="one").json()
    assert code == 0, (out, err)
    assert server.invoke("pip", "import six", x_chat_id="one").text.startswith("1.")
    assert "No module named" in server.invoke("pip", "import six", x_chat_id="two").text
    # It stays with the session: also when its instance is gone.
    with server.client() as client:
        base = "/2023-03-30/functions/pip/sessions/one"
        assert client.put(f"{base}/pause").status_code == 200
        assert client.put(f"{base}/resume").status_code == 200
    assert server.invoke("pip", "import six", x_chat_id="one").text.startswith("1.")
    # The second session's install is served from the cache.
    assert list((server.data_dir / "index-cache").rglob("*"))
    assert server.invoke("pip", "install six", x_chat_id="two").json()[0] == 0


def test_the_door_leads_to_the_index_only(server: Server) -> None:
    server.deploy("pip", {"index.py": PIP}, roost={"packages": ["pypi"]}, **SESSIONS)
    fetch = lambda url: server.invoke("pip", f"fetch {url}", x_chat_id="three").text  # noqa: E731
    assert fetch("http://127.0.0.1:3128/pypi/simple/six/") == "200"
    assert fetch("http://127.0.0.1:3128/npm/left-pad") in ("403", "404")
    assert fetch("http://127.0.0.1:3128/openai/v1/models") in ("403", "404")
    assert fetch("http://127.0.0.1:3128/pypi/simple/../../etc/passwd") in ("400", "403", "404")
    assert fetch(server.url + "/healthz") == "URLError"
    assert fetch("http://example.com/") == "URLError"


def test_without_packages_there_is_no_door(server: Server) -> None:
    server.deploy("shut", {"index.py": PIP})
    assert server.invoke("shut", "fetch http://127.0.0.1:3128/pypi/simple/six/").text == "URLError"


def test_npm_installs(server: Server) -> None:
    code = """
import json, subprocess
def handler(event, context):
    done = subprocess.run(
        "mkdir -p /root/app && cd /root/app && npm install is-number@7.0.0 && "
        "node -e \\"console.log(require('is-number')(42))\\"", shell=True, capture_output=True, text=True)
    return json.dumps([done.returncode, done.stdout[-500:], done.stderr[-800:]])
"""
    server.deploy("npm", {"index.py": code}, roost={"packages": ["npm"]}, timeout=300, memorySize=1024)
    code_, out, err = server.invoke("npm").json()
    assert code_ == 0, (out, err)
    assert out.strip().endswith("true")
