"""Whether the servers that a recipe names can be reached."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import requests

_TIMEOUT = 5.0
"""Seconds."""


def endpoints_of(settings: Any, where: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping of a recipe that names a server: (dotted key, mapping with `base_url`)."""
    if not isinstance(settings, Mapping):
        return
    if isinstance(settings.get("base_url"), str):
        yield where, settings
    if settings.get("use_vllm") and settings.get("vllm_mode") == "server":
        host, port = settings.get("vllm_server_host", "0.0.0.0"), settings.get("vllm_server_port", 8000)
        yield (
            f"{where}.use_vllm",
            {"base_url": settings.get("vllm_server_base_url") or f"http://{host}:{port}"},
        )
    for key, value in settings.items():
        yield from endpoints_of(value, f"{where}.{key}".lstrip("."))


def reach(endpoint: Mapping[str, Any]) -> tuple[bool, str]:
    """Ask a server for its models.

    Returns:
        Whether a run can count on it, and what was found, in words.
    """
    url = str(endpoint["base_url"]).rstrip("/").removesuffix("/chat/completions") + "/models"
    variable = endpoint.get("api_key_env")
    if variable and not os.environ.get(variable):
        return False, f"api_key_env names {variable}, which is not set: export it"
    headers = {"Authorization": f"Bearer {os.environ[variable]}"} if variable else {}
    try:
        answer = requests.get(url, headers=headers, timeout=_TIMEOUT)
    except requests.RequestException as error:
        return False, f"{url} does not answer ({type(error).__name__}): start the server, or mend base_url"
    if answer.status_code in (401, 403):
        return False, f"{url} refuses the key (status {answer.status_code}): set api_key_env to a valid one"
    if answer.status_code >= 500:
        return False, f"{url} answers with status {answer.status_code}: the server is not ready"
    models = _models(answer)
    if models is None:
        return True, f"{url} answers (status {answer.status_code}), and lists no models to check against"
    wanted = endpoint.get("model")
    if wanted and wanted not in models:
        return False, f"{url} serves {', '.join(models) or 'no model'}, not {wanted}"
    return True, f"{url} answers" + (f" and serves {wanted}" if wanted else "")


def _models(answer: requests.Response) -> list[str] | None:
    try:
        return [str(entry["id"]) for entry in answer.json()["data"]]
    except (ValueError, KeyError, TypeError):
        return None
