"""Tries, inside a unit's sandbox, what the agent must not be able to do; prints what worked."""

import ctypes
import json
import mmap
import os
import socket
from typing import Callable, Iterator

libc = ctypes.CDLL(None, use_errno=True)


def works(action: Callable[[], object]) -> bool:
    """Whether the system let it happen."""
    try:
        return action() is not False
    except OSError:
        return False


def writable_folders() -> Iterator[str]:
    """Every folder in which a file could be made."""
    for folder, _, _ in os.walk("/"):
        path = os.path.join(folder, ".probe")
        try:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
            os.unlink(path)
            yield folder
        except OSError:
            pass


with open("/proc/self/status") as file:
    status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
with open("/proc/stat") as file:
    has_stat = file.read(3) == "cpu"
print(
    json.dumps(
        {
            "user": os.getuid(),
            "capabilities": status["CapEff"],
            "no_new_privileges": status["NoNewPrivs"],
            "seccomp": status["Seccomp"],
            "writable": list(writable_folders()),
            "sees_other_processes": os.path.exists("/proc/1/status"),
            "proc_stat": has_stat,
            "netlink": works(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)),
            "inotify": libc.inotify_init1(0) >= 0,
            "packet_socket": works(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
            "namespace": libc.unshare(0x10000000) == 0,
            "mount": libc.mount(b"none", b"/mnt", b"tmpfs", 0, None) == 0,
            "executable_memory": works(
                lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)
            ),
            "home": works(lambda: os.listdir("/root")),
            "shadow": os.access("/etc/shadow", os.R_OK),
            "temporary_files_of_others": os.path.exists("/tmp/of-somebody-else"),
        }
    )
)
