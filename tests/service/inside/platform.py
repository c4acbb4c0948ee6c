"""A platform: answers what /run/platform/answer says, writes down what it accepted.

The answer is "STATUS SECONDS"; /run/platform/accepted gets one line of JSON for each request that
was answered with 200, written before the answer.
"""

import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FOLDER = "/run/platform"
WRITING = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with open(f"{FOLDER}/answer") as file:
            status, seconds = file.read().split()
        time.sleep(float(seconds))
        if status == "200":
            row = {
                "path": self.path,
                "key": self.headers["Idempotency-Key"],
                "event": body.get("identity_id"),
                "authorization": self.headers["Authorization"],
                "body": body if self.path == "/DeviceStatus" else None,
            }
            with WRITING, open(f"{FOLDER}/accepted", "a") as file:
                print(json.dumps(row), file=file)
        self.send_response(int(status))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


os.makedirs(FOLDER, exist_ok=True)
with open(f"{FOLDER}/answer", "w") as file:
    file.write("200 0")
ThreadingHTTPServer(("127.0.0.1", 9528), Handler).serve_forever()
