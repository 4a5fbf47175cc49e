"""Counts what `make serve` installs: packages, and the size of their files.

    .venv/bin/python benchmarks/install_size.py

Packages that are installed besides, such as those of the tests, are left out. Compiled bytecode counts, pip does not.
"""

from __future__ import annotations

from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


ROOT = "qwen-vl-serving"
EXTRAS = frozenset(("all", "examples"))  # of the Makefile


def closure(root: str, extras: frozenset[str]) -> dict[str, Distribution]:
    """The distribution and all that it requires, by canonical name."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(root, extra) for extra in ("", *extras)]
    while waiting:
        name, extra = waiting.pop()
        key = (canonicalize_name(name), extra)
        if key in seen:
            continue
        seen.add(key)
        try:
            found[key[0]] = distribution(name)
        except PackageNotFoundError:  # a marker of another system, or an extra that was left out
            continue
        for text in found[key[0]].requires or ():
            required = Requirement(text)
            if required.marker is None or required.marker.evaluate({"extra": extra}):
                waiting += [(required.name, each) for each in ("", *required.extras)]
    return found


def size_of(installed: Distribution) -> int:
    """The size of its files in bytes."""
    paths = (Path(str(file.locate())) for file in installed.files or ())
    return sum(path.stat().st_size for path in paths if path.is_file())


def main() -> None:
    """Prints the figures."""
    packages = closure(ROOT, EXTRAS)
    size = sum(map(size_of, packages.values()))
    print(f"{len(packages)} packages, {size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
