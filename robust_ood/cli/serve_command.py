"""`robust-ood serve`: a guard as a web service."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robust_ood.cli.arguments import parse_arguments
from robust_ood.cli.evaluate_checks import choose_device
from robust_ood.cli.output import check_file
from robust_ood.cli.parsing import CommandParser
from robust_ood.cli.quiet import quiet
from robust_ood.deployment import load_guard
from robust_ood.deployment.uploads import Limits
from robust_ood.errors import UserError

_LIBRARIES = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "prometheus_client": "prometheus-client",
    "python_multipart": "python-multipart",
}
"""Modules of the extra, and what pip calls them."""


def parser() -> CommandParser:
    """Return the parser of the serve command."""
    parser = CommandParser(prog="robust-ood serve", description="Serve a guard over HTTP.")
    add = parser.add_argument
    defaults = Limits()
    add("guard", type=Path, help="folder that robust-ood calibrate wrote")
    add("--host", type=str, default="127.0.0.1", help="address to listen on")
    add("--port", type=int, default=8000, help="port; 0 takes a free one")
    add("--log", type=Path | None, default=None, help="append each decision as a JSON line")
    add("--max_bytes", type=int, default=defaults.body, help="of a request")
    add("--max_pixels", type=int, default=defaults.pixels, help="of an image")
    add("--max_images", type=int, default=defaults.images, help="of a request")
    add("--batch_size", type=int, default=defaults.batch, help="images scored together at most")
    add("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Serve until stopped, and return the exit code."""
    quiet()
    config = parse_arguments(parser(), arguments)
    for field in ("max_bytes", "max_pixels", "max_images", "batch_size"):
        if config[field] < 1:
            raise UserError(f"{field}: expected a number >= 1, got {config[field]}")
    if not 0 <= config.port <= 65535:
        raise UserError(f"port: expected a number in 0..65535, got {config.port}")
    if config.log is not None:
        check_file(config.log, "log")
    require_serve()
    guard = load_guard(config.guard).to(choose_device(config.device))
    from robust_ood.deployment.service import bind, make_app, make_server

    limits = Limits(
        body=config.max_bytes,
        pixels=config.max_pixels,
        images=config.max_images,
        batch=config.batch_size,
    )
    guard.description.preprocessing.form  # noqa: B018  # refuses oblong networks at once
    with bind(config.host, config.port) as listening:
        app = make_app(guard, limits, config.log)
        port = listening.getsockname()[1]
        print(f"serving {config.guard} at http://{config.host}:{port}/", flush=True)
        make_server(app).run(sockets=[listening])
    return 0


def require_serve() -> None:
    """Raise `UserError` where a package of the extra is missing."""
    missing = []
    for module, package in _LIBRARIES.items():
        try:
            __import__(module)
        except ImportError:
            missing.append(package)
    if missing:
        raise UserError(f"serve: needs {', '.join(missing)}; pip install 'robust-ood[serve]'")
