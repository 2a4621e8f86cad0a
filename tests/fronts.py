"""nginx and HAProxy before a server of the tests."""

import os
import select
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Self

import pytest
from server import PATIENCE_S, Server

PATH = os.environ["PATH"] + ":/usr/sbin"

NGINX = """
worker_processes 1; pid {folder}/front.pid; error_log {folder}/nginx.log crit;
events {{ worker_connections 1024; }}
http {{
  access_log off; proxy_http_version 1.1; client_body_temp_path {folder}; proxy_temp_path {folder};
  fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
  limit_req_zone $server_port zone=rate:1m rate=50r/s; limit_conn_zone $server_port zone=number:1m;
  upstream server {{ server 127.0.0.1:{server}; keepalive 64; }}
  server {{
    listen 127.0.0.1:{port} backlog=1024; {limits}
    location / {{ proxy_pass http://server; proxy_set_header Connection ""; }}
  }}
}}
"""
HAPROXY = """
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  timeout queue 1s
frontend front
  bind 127.0.0.1:{port}
  stick-table type ip size 1k expire 10s store http_req_rate(1s)
  http-request track-sc0 src
  {limits}
  default_backend back
backend back
  server server 127.0.0.1:{server} {slots}
"""


class Front:
    """nginx or HAProxy before a server, on a port of its own; both return from their start when they listen."""

    def __init__(self, name: str, config: str, folder: Path, server: Server, **limits: str) -> None:
        if not (program := shutil.which(name, path=PATH)):
            pytest.skip(f"needs {name}")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._pid = folder / "front.pid"
        file = folder / "front.conf"
        file.write_text(config.format(folder=folder, port=self.port, server=server.port, **limits))
        commands: dict[str, list[str | Path]] = {
            "nginx": [program, "-e", "stderr", "-c", file],
            "haproxy": [program, "-D", "-q", "-p", self._pid, "-f", file],
        }
        self._start = commands[name]

    def start(self) -> None:
        subprocess.run(self._start, check=True)

    def stop(self) -> None:
        """Ends it at once, with all connections; returns when it is gone."""
        with open(os.pidfd_open(int(self._pid.read_text()))) as end:
            signal.pidfd_send_signal(end.fileno(), signal.SIGTERM)
            assert select.select([end], [], [], PATIENCE_S)[0]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"
