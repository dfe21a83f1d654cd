"""Proxies in their ordinary default configuration, with compression on, and as docs/proxies.md says."""

import asyncio
import http.client
import re
import shutil
import signal
import socket
import ssl
import sys
import tempfile
from pathlib import Path

from . import servers

# A channel that is not there: the data plane says so in its own words.
NO_CHANNEL = "/channels/there-is-none"
DOC = servers.ROOT / "docs" / "proxies.md"
VENV = Path(sys.executable).parent


def documented(name):
    """The code block of docs/proxies.md that is marked with this name."""
    return re.search(rf"<!-- run: proxies {name} -->\n```\w+\n(.*?)```", DOC.read_text(), re.S)[1]


def indented(text, spaces):
    return "".join(" " * spaces + line for line in text.splitlines(keepends=True))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


NGINX = """
daemon off; user root; worker_processes 1; pid {folder}/pid; error_log {folder}/log;
events {{ worker_connections 768; }}
http {{
    access_log off; include /etc/nginx/mime.types; gzip on;
    client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    {compression}
    server {{
        listen 127.0.0.1:{port}; listen 127.0.0.1:{tls} ssl http2;
        ssl_certificate {folder}/tls.crt; ssl_certificate_key {folder}/tls.key;
        {route}
    }}
}}
"""

# The defaults of the Debian package.
HAPROXY = """
defaults
    mode http
    timeout connect 5000
    timeout client 50000
    timeout server 50000
{route}
"""
HAPROXY_ROUTE = """
frontend web
    bind :443 ssl crt /etc/tls/tls.pem alpn h2,http/1.1
    default_backend sluice
backend sluice
    server pods sluice:8080
"""

CADDY = """
{{
    admin off
    auto_https off
    storage file_system {folder}
}}
{route}
"""

ENVOY = """
static_resources:
  listeners:
{listeners}
  clusters:
    - name: sluice
      load_assignment:
        cluster_name: sluice
        endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {upstream_port}}}}}}}}}]}}]
"""
ENVOY_LISTENER = """
    - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
      filter_chains:
        - filters:
            - name: http
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: web
                codec_type: AUTO
{manager}
                route_config:
                  virtual_hosts:
                    - name: all
                      domains: ["*"]
{routes}
                http_filters:
{compressor}
                  - name: router
                    typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
{tls}
"""
ENVOY_TLS = """
          transport_socket:
            name: tls
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
              common_tls_context:
                alpn_protocols: [h2, http/1.1]
                tls_certificates: [{{certificate_chain: {{filename: {folder}/tls.crt}}, private_key: {{filename: {folder}/tls.key}}}}]
"""
# All content types, as a person who does not think of event streams might have it.
ENVOY_COMPRESSOR = """
                  - name: compressor
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.compressor.v3.Compressor
                      response_direction_config: {{common_config: {{content_type: [text/event-stream, text/plain, application/json]}}}}
                      compressor_library:
                        name: gzip
                        typed_config: {{"@type": type.googleapis.com/envoy.extensions.compression.gzip.compressor.v3.Gzip}}
"""


class Proxy:
    """A running proxy before `upstream`; plain HTTP on `http`, TLS with HTTP/2 on `tls`."""

    def __init__(self, kind, variant, upstream, sessions=None):
        # `sessions`: address of the service that decides about a request, where the block has one.
        self.kind, self.variant, self.upstream, self.sessions = kind, variant, upstream, sessions
        self.row = f"{kind}, {variant}"

    @property
    def told(self):
        return self.variant.startswith("as documented")

    @property
    def compressed(self):
        return "compression" in self.variant

    async def __aenter__(self):
        self.folder = Path(tempfile.mkdtemp(prefix=f"proxy-{self.kind.lower()}-"))
        port, tls = free_port(), free_port()
        self.http, self.tls = ("127.0.0.1", port), ("127.0.0.1", tls)
        certificate = await servers.spawn(
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-keyout",
            self.folder / "tls.key",
            "-out",
            self.folder / "tls.crt",
            stderr=asyncio.subprocess.DEVNULL,
        )
        if await asyncio.wait_for(certificate.wait(), servers.SOON):
            raise AssertionError("openssl made no certificate")
        (self.folder / "tls.pem").write_text(
            (self.folder / "tls.key").read_text() + (self.folder / "tls.crt").read_text()
        )
        command = getattr(self, "_" + self.kind.lower())(port, tls)
        with open(self.folder / "output", "wb") as log:
            # SIGTERM, not SIGKILL, when the driver dies: nginx takes its workers along only then.
            self.process = await servers.spawn(*command, death=signal.SIGTERM, stdout=log, stderr=log)

        async def listens():
            if self.process.returncode is not None:
                raise AssertionError(f"{self.row} ended: {(self.folder / 'output').read_text(errors='replace')[:700]}")
            for address in (self.http, self.tls):
                try:
                    _, writer = await asyncio.open_connection(*address)
                    writer.close()
                except OSError:
                    return False
            # Traefik listens before it has read its routes, and answers 404 of its own until then.
            try:
                _, headers, _ = await servers.ask(self.http, NO_CHANNEL)
            except (OSError, http.client.HTTPException):
                return False
            return headers.get("content-type", "").startswith("application/problem+json")

        try:
            await servers.eventually(f"{self.row} listens", listens)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_):
        await servers.end(self.process, limit=3.0)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _filled(self, text, port, tls):
        """A documented block with the test's own addresses and files."""
        if self.sessions:
            text = text.replace("sessions:9000", "{}:{}".format(*self.sessions))
        text = text.replace("sluice:8080", "{}:{}".format(*self.upstream)).replace("/etc/tls/", f"{self.folder}/")
        return text.replace("bind :443 ssl", f"bind 127.0.0.1:{port}\n    bind 127.0.0.1:{tls} ssl")

    def _write(self, name, text):
        (self.folder / name).write_text(text)
        return self.folder / name

    def _nginx(self, port, tls):
        route = documented("nginx") if self.told else "location / { proxy_pass http://sluice:8080; }"
        if self.sessions:
            route = documented("nginx-sessions")
        compression = "gzip_proxied any; gzip_types *; gzip_min_length 0;" if self.compressed else ""
        config = NGINX.format(
            folder=self.folder, port=port, tls=tls, compression=compression, route=self._filled(route, port, tls)
        )
        return "nginx", "-e", self.folder / "log", "-c", self._write("nginx.conf", config)

    def _haproxy(self, port, tls):
        route = documented("haproxy") if self.told else HAPROXY_ROUTE
        if self.compressed:
            route = re.sub(
                r"(frontend web\n)",
                r"\1    compression algo gzip\n    compression type text/event-stream text/plain application/json\n",
                route,
            )
        if self.told:
            self._write("away.http", documented("haproxy-away"))
        return "haproxy", "-db", "-f", self._write("haproxy.cfg", HAPROXY.format(route=self._filled(route, port, tls)))

    def _caddy(self, port, tls):
        route = documented("caddy") if self.told else "sluice.example.com {\n\treverse_proxy sluice:8080\n}\n"
        body = self._filled(route, port, tls).split("{", 1)[1].rsplit("}", 1)[0]
        body = ("\tencode\n" if self.compressed else "") + body
        # The certificate is the test's own; its name does not matter to the client.
        sites = (
            f"http://:{port} {{\n\tbind 127.0.0.1\n{body}}}\n"
            f"https://:{tls} {{\n\tbind 127.0.0.1\n\ttls {self.folder}/tls.crt {self.folder}/tls.key\n{body}}}\n"
        )
        config = self._write("Caddyfile", CADDY.format(folder=self.folder, route=sites))
        return VENV / "caddy", "run", "--adapter", "caddyfile", "--config", config

    def _traefik(self, port, tls):
        dynamic = (
            documented("traefik")
            if self.told
            else (
                "http:\n  routers:\n    sluice:\n      rule: PathPrefix(`/`)\n      service: sluice\n"
                "  services:\n    sluice:\n      loadBalancer:\n        servers:\n          - url: http://sluice:8080\n"
            )
        )
        middleware = (
            documented("traefik-compress")
            if self.told
            else "http:\n  middlewares:\n    compressed:\n      compress: {}\n"
        )
        if self.compressed:
            dynamic = dynamic.replace(
                "      service: sluice\n", "      service: sluice\n      middlewares: [compressed]\n"
            )
            dynamic += middleware.removeprefix("http:\n")
        # One router answers on both entry points only if it is there twice.
        router = dynamic.split("  routers:\n")[1].split("  services:\n")[0]
        dynamic = dynamic.replace(
            router,
            router
            + router.replace("    sluice:\n", "    secure:\n", 1)
            + "      tls: {}\n      entryPoints: [secure]\n",
            1,
        )
        dynamic += (
            "tls:\n  stores:\n    default:\n      defaultCertificate:\n"
            f"        certFile: {self.folder}/tls.crt\n        keyFile: {self.folder}/tls.key\n"
        )
        static = self._write(
            "traefik.yaml",
            (
                "global: {checkNewVersion: false, sendAnonymousUsage: false}\n"
                f"entryPoints:\n  web: {{address: '127.0.0.1:{port}'}}\n  secure: {{address: '127.0.0.1:{tls}'}}\n"
                f"providers:\n  file:\n    filename: {self.folder}/dynamic.yaml\n    watch: false\n"
            ),
        )
        self._write("dynamic.yaml", self._filled(dynamic, port, tls))
        return VENV / "traefik", f"--configFile={static}"

    def _envoy(self, port, tls):
        routes = documented("envoy") if self.told else "routes:\n  - match: {prefix: /}\n    route: {cluster: sluice}\n"
        manager = documented("envoy-away") if self.told else ""
        compressor = ENVOY_COMPRESSOR.format() if self.compressed else ""
        listeners = "".join(
            ENVOY_LISTENER.format(
                port=p,
                manager=indented(manager, 16),
                routes=indented(routes, 22),
                compressor=compressor,
                tls=ENVOY_TLS.format(folder=self.folder) if p == tls else "",
            )
            for p in (port, tls)
        )
        config = self._write("envoy.yaml", ENVOY.format(listeners=listeners, upstream_port=self.upstream[1]))
        return VENV / "envoy", "-c", config, "--concurrency", "1", "--log-level", "warn", "--disable-hot-restart"


def client_tls():
    """TLS with HTTP/2, without a look at the certificate, which is the test's own."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context
