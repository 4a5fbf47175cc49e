"""The `QWENVL_*` variables of the programs, and what was probably meant by misspelt ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import difflib
import re
from typing import Final

from qwenvl.setting_names import ADAPTER, SERVICE


ENV_PREFIX: Final = "QWENVL_"

KNOWN: Final = frozenset(name.upper() for name in (*SERVICE, *ADAPTER, "api_key"))
"""The known variables without their prefix. `QWENVL_API_KEY` is the key of the clients."""

_ANY_PREFIX: Final = re.compile(r"QWEN_?VL_(?P<name>.+)", re.IGNORECASE)
# Kubernetes sets these for a Service called `qwenvl` or `qwenvl-...`.
_SERVICE_LINK: Final = re.compile(
    r".*_SERVICE_(HOST|PORT(_\w+)?)|(.*_)?PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?"
)
_SERVICE_URL: Final = re.compile(r"(tcp|udp|sctp)://")
_HINTS: Final = {
    "HOST": "HTTP_ADDRESS",
    "PORT": "HTTP_ADDRESS",
    "HTTP_HOST": "HTTP_ADDRESS",
    "HTTP_PORT": "HTTP_ADDRESS",
    "GRPC_HOST": "GRPC_ADDRESS",
    "GRPC_PORT": "GRPC_ADDRESS",
}


def unknown_variables(environ: Mapping[str, str]) -> dict[str, str | None]:
    """The variables that look like settings and are none, with the one that was probably meant or None.

    Args:
        environ: The process environment; empty variables count as unset.
    """
    found: dict[str, str | None] = {}
    for variable, value in sorted(environ.items()):
        match = _ANY_PREFIX.fullmatch(variable)
        if match is None or not value or _is_service_link(variable, value):
            continue
        name = match["name"].upper()
        if variable != ENV_PREFIX + name or name not in KNOWN:
            meant = name if name in KNOWN else _HINTS.get(name) or closest(name, KNOWN)
            found[variable] = None if meant is None else ENV_PREFIX + meant
    return found


def check_variables(environ: Mapping[str, str]) -> list[str]:
    """Warnings about unknown `QWENVL_*` variables.

    Raises:
        SystemExit: One of them is close to a known name: most likely a misspelt setting, perhaps that of the API keys.
    """
    unknown = unknown_variables(environ)
    misspelt = [
        f"{variable} is not a setting; did you mean {meant}?"
        for variable, meant in unknown.items()
        if meant is not None
    ]
    if misspelt:
        raise SystemExit("\n".join(misspelt))
    return [f"{variable} is not a setting and has no effect" for variable in unknown]


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.75)), None)


def _is_service_link(variable: str, value: str) -> bool:
    return _SERVICE_LINK.fullmatch(variable) is not None or (
        variable.endswith("PORT") and _SERVICE_URL.match(value) is not None
    )
