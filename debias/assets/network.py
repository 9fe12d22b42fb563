"""The environment's proxies and certificates, checked before a library fails on them with a traceback."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import ssl
from pathlib import Path
from urllib.parse import urlsplit

from debias.records import UserError, without_passwords

PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "all_proxy", "https_proxy", "http_proxy")
CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
SOCKS = {"socks5": "socksio", "socks5h": "socksio"}  # scheme -> the module that speaks it


def is_loopback(url: str) -> bool:
    """Whether an address is this machine itself, which no proxy can reach."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def check(url: str) -> None:
    """Raise UserError, with the variable's name, if the environment keeps every client from reaching an address."""
    if is_loopback(url):
        return
    for name in PROXIES:
        if value := os.environ.get(name):
            _check_proxy(name, value)
    for name in CERTIFICATES:
        if value := os.environ.get(name):
            _check_certificates(name, value)


def check_hub() -> None:
    """`check` for the model hub, unless HF_HUB_OFFLINE says that it will not be asked."""
    if os.environ.get("HF_HUB_OFFLINE", "0") in ("", "0"):
        check(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")


def _check_proxy(name: str, value: str) -> None:
    scheme = urlsplit(value if "://" in value else f"http://{value}").scheme.lower()
    shown = f"{name}={without_passwords(value)}"
    if module := SOCKS.get(scheme):
        if importlib.util.find_spec(module) is None:
            raise UserError(
                f"{shown}: SOCKS proxies need a package: python -m pip install {module} pysocks; or unset {name}"
            )
    elif scheme not in ("http", "https"):
        raise UserError(f"{shown} is not a proxy that can be used; write http://HOST:PORT, or unset {name}")


def _check_certificates(name: str, value: str) -> None:
    path = Path(value)
    try:
        if path.is_dir():
            return
        ssl.create_default_context(cafile=value)
    except (OSError, ssl.SSLError) as error:
        reason = "does not exist" if not path.exists() else "is not a file of certificates in PEM format"
        raise UserError(f"{name}={value} {reason}; correct it, or unset {name}") from error
