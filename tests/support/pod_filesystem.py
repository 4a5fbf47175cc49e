"""What a container of a pod with a read-only root sees of the file system: this machine's, which cannot be written.

Only the volumes of the pod can: those in memory or on the node (emptyDir) are fresh, those of Secrets have given files.
Needs Linux and root; the mounts are of a namespace of their own and end with the process.
"""

from __future__ import annotations

from collections.abc import Mapping
import functools
from pathlib import Path
import shlex
import subprocess
import tempfile
from typing import Any


def command_in(
    pod: Mapping[str, Any], container: Mapping[str, Any], secrets: Mapping[str, Path], folder: Path
) -> list[str]:
    """The beginning of a command line whose rest then runs as in the container.

    Args:
        pod: Spec of the pod.
        container: Its container.
        secrets: The folder with the files of each Secret, by its name.
        folder: An empty folder, on which the root is mounted.
    """
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = [(mount["mountPath"], volumes[mount["name"]]) for mount in container["volumeMounts"]]
    lines = _READ_ONLY_ROOT.format(folder=shlex.quote(str(folder))).splitlines()
    made = [f'mkdir -p "$root"{shlex.quote(path)}' for path, _ in mounts]
    at = lines.index("# mount points")
    lines[at : at + 1] = made
    for path, volume in mounts:
        place = f'"$root"{shlex.quote(path)}'
        if "emptyDir" in volume:
            size = str(volume["emptyDir"]["sizeLimit"]).removesuffix("i")
            lines.append(f"mount -t tmpfs -o size={size} pod {place}")
        else:
            source = shlex.quote(str(secrets[volume["secret"]["secretName"]]))
            lines += [f"mount --bind {source} {place}", f"mount -o remount,bind,ro {place}"]
    lines.append('exec chroot "$root" "$@"')
    return ["unshare", "--mount", "sh", "-ec", "\n".join(lines), "sh"]


_READ_ONLY_ROOT = """\
mount --make-rprivate /
mount -t tmpfs pod {folder}
root={folder}/root
mkdir {folder}/upper {folder}/work "$root"
mount -t overlay pod -o lowerdir=/,upperdir={folder}/upper,workdir={folder}/work "$root"
# mount points
mount -o remount,ro "$root"
mount --rbind /proc "$root/proc"
mount --rbind /dev "$root/dev\""""


@functools.cache
def why_impossible() -> str:
    """Why no such file system can be made here; empty = it can."""
    pod = {"volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}]}
    container = {"volumeMounts": [{"name": "v", "mountPath": "/tmp"}]}
    with tempfile.TemporaryDirectory() as folder:
        command = [*command_in(pod, container, {}, Path(folder)), "true"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        except OSError as error:
            return str(error)
    return done.stderr if done.returncode else ""
