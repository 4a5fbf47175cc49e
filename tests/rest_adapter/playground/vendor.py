"""Renews the libraries of the playground from npm: `python tests/rest_adapter/playground/vendor.py [NAME@VERSION ...]`.

Without arguments it fetches the versions in `vendor/versions.json` again. It needs npm, which verifies what it fetches,
and changes two things: the import of preact by hooks.mjs, as browsers know paths only, and the comment that names a
source map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import hashlib
import json
from pathlib import Path
import re
import subprocess
import sys
import tarfile
import tempfile
from typing import Any


VENDOR = Path(__file__).parents[3] / "rest_adapter" / "playground" / "vendor"
VERSIONS = VENDOR / "versions.json"
_SOURCE_MAP = re.compile(rb"\n?//# sourceMappingURL=\S+\s*$")


@dataclass(frozen=True, slots=True)
class Library:
    """What is taken from a package: the served name of each file by its path in the package."""

    licence: str
    files: Mapping[str, str]


LIBRARIES = {
    "preact": Library(
        "MIT",
        {
            "dist/preact.mjs": "preact.mjs",
            "hooks/dist/hooks.mjs": "hooks.mjs",
            "LICENSE": "LICENSE.preact.txt",
        },
    ),
    "htm": Library("Apache-2.0", {"dist/htm.mjs": "htm.mjs", "LICENSE": "LICENSE.htm.txt"}),
    "marked": Library("MIT", {"lib/marked.esm.js": "marked.mjs", "LICENSE": "LICENSE.marked.txt"}),
    "dompurify": Library(
        "Apache-2.0",
        {"dist/purify.es.mjs": "purify.mjs", "LICENSE": "LICENSE.dompurify.txt"},
    ),
}


def digest(body: bytes) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(body).hexdigest()


def fetch(name: str, version: str) -> dict[str, Any]:
    """Writes the files of one library; returns its entry of `versions.json`."""
    library = LIBRARIES[name]
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--json", "--pack-destination", folder, f"{name}@{version}"]
        packed = subprocess.run(
            command, check=True, cwd=folder, stdout=subprocess.PIPE, timeout=120
        )
        reply = json.loads(packed.stdout)
        (told,) = reply if isinstance(reply, list) else reply.values()
        with tarfile.open(Path(folder) / told["filename"]) as archive:
            found = {}
            for path, served in library.files.items():
                member = archive.extractfile(f"package/{path}")
                assert member is not None
                body = _SOURCE_MAP.sub(b"\n", member.read())
                body = body.replace(b'from"preact"', b'from"./preact.mjs"')
                (VENDOR / served).write_bytes(body)
                found[served] = digest(body)
    return {
        "version": told["version"],
        "licence": library.licence,
        "npm_integrity": told["integrity"],
        "sha256": found,
    }


def main(argv: Sequence[str]) -> None:
    """Fetches the named libraries, or all."""
    versions = json.loads(VERSIONS.read_text())
    wanted = dict(item.rsplit("@", 1) for item in argv) or {
        name: entry["version"] for name, entry in versions.items()
    }
    for name, version in wanted.items():
        versions[name] = fetch(name, version)
        print(name, versions[name]["version"])
    VERSIONS.write_text(json.dumps(dict(sorted(versions.items())), indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
