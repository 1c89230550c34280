"""A real server whose sandboxes run a small web server in the place of the guest's daemon: `python -m` this, as the
server itself. What is on the daemon's ports is told by its `x-roost-port`; port 8000 of the room answers too."""

from __future__ import annotations

import sys
from typing import Any

from roost.model.function import FunctionSpec
from roost.model.sandbox import Foundation
from roost.sandboxes.assembly import SandboxAssembly
from roost.server.program import main

DAEMON = """
import http.server, json, os, subprocess, threading, time, urllib.parse
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def say(self, body, status=200):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        if url.path == "/health":
            self.send_response(204)
            self.end_headers()
        elif url.path == "/files":
            try:
                self.say(open(query["path"], "rb").read())
            except OSError as error:
                self.say({"code": 404, "message": str(error)}, 404)
        elif url.path == "/slow":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for _ in range(600):
                self.wfile.write(b"1\\r\\n.\\r\\n")
                self.wfile.flush()
                time.sleep(0.1)
            self.wfile.write(b"0\\r\\n\\r\\n")
        else:
            self.say({"path": self.path, "headers": dict(self.headers.items()), "port": self.server.server_port})
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/sh":
            done = subprocess.run(["/bin/sh", "-c", body.decode()], capture_output=True)
            self.say({"code": done.returncode, "out": done.stdout.decode(), "err": done.stderr.decode()})
        elif self.path == "/python":
            exec(body)
            self.say({})
        else:
            self.say({"path": self.path, "headers": dict(self.headers.items()), "body": body.decode("latin-1")})
    def log_message(self, *_):
        pass
print("daemon of", os.environ["E2B_SANDBOX_ID"], flush=True)
web = http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Handler)
threading.Thread(target=web.serve_forever, daemon=True).start()
http.server.ThreadingHTTPServer(("127.0.0.1", 49983), Handler).serve_forever()
"""

_start_message = SandboxAssembly.start_message


def _scripted(
    self: SandboxAssembly, spec: FunctionSpec, id: str, template: str, foundation: Foundation
) -> dict[str, Any]:
    message = _start_message(self, spec, id, template, foundation)
    command = ["/usr/bin/python3", "-c", DAEMON]
    return {**message, "runtime": "custom", "command": command, "port": 49983, "timeout": 60}


if __name__ == "__main__":
    SandboxAssembly.start_message = _scripted  # type: ignore[method-assign]
    sys.exit(main())
