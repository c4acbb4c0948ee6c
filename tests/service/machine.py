"""A virtual machine with the package installed, whose power can be cut."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import List, Optional

from .container import INSIDE

PACKAGES = "systemd,systemd-sysv,udev,dbus,python3,procps,initramfs-tools,linux-image-cloud-amd64"
TOOLS = ("qemu-system-x86_64", "mmdebstrap", "systemd-nspawn", "mke2fs")
EVENT = re.compile(r"^[0-9a-f]{8}-[0-9]+(?=\r?$)", re.M)
HOST = "10.0.2.2"
"""This machine, as seen from inside QEMU's user network."""
NETWORK = "[Match]\nName=eth0\n[Network]\nAddress=10.0.2.15/24\n"
UNIT = """[Unit]
ConditionKernelCommandLine={word}
[Service]
ExecStart=/usr/bin/python3 {command}
[Install]
WantedBy=multi-user.target
"""


def missing_tools() -> List[str]:
    """What has to be installed before a machine can be made."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]


def _tree() -> Path:
    """The file system of a bare machine, made once and kept outside the repository."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "/var/cache") / "se3-uploader"
    finished = base / "bookworm-machine"
    if not finished.exists():
        base.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix="bookworm-machine.", dir=base))
        subprocess.run(
            ["mmdebstrap", "-q", "--variant=minbase", f"--include={PACKAGES}", "bookworm", making],
            check=True,
        )
        making.chmod(0o755)
        making.rename(finished)
    return finished


class Machine:
    """One disk, and the QEMU that runs on it at the moment."""

    def __init__(self, folder: Path, dist: Path, settings: str, report_url: str) -> None:
        """Make the disk: Debian, the package from dist, its settings, and an engine.

        report_url is told by inside/drain.py what is there at the end.
        """
        self.wire = folder / "wire"
        """What inside/writer.py says to have committed."""
        self.wire.touch()
        self._console = folder / "console"
        self._disk = folder / "disk.img"
        self._qemu: Optional[subprocess.Popen[bytes]] = None
        root = folder / "root"
        subprocess.run(["cp", "-a", _tree(), root], check=True)
        for name in ("writer.py", "drain.py"):
            shutil.copy(INSIDE / name, root / "opt")
        units = root / "etc/systemd/system"
        drain = f"/opt/drain.py {report_url}"
        (units / "engine.service").write_text(UNIT.format(word="writing", command="/opt/writer.py"))
        (units / "drain.service").write_text(UNIT.format(word="draining", command=drain))
        (root / "etc/systemd/network/eth0.network").write_text(NETWORK)
        subprocess.run(
            ["systemd-nspawn", "-q", "--register=no", "--keep-unit", "-D", root,
             f"--bind-ro={dist}:/dist", "sh", "-ec",
             "dpkg -i /dist/se3-uploader_*_amd64.deb"
             "; systemctl -q enable engine drain systemd-networkd"
             "; install -d -g se3-events -m 2755 /data/sophon"],
            check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        (root / "etc/se3-uploader/uploader.yaml").write_text(settings)
        for name in ("vmlinuz", "initrd.img"):
            (found,) = (root / "boot").glob(f"{name}-*")
            found.rename(folder / name)
        subprocess.run(
            ["mke2fs", "-q", "-F", "-t", "ext4", "-d", root, self._disk, "1500M"], check=True
        )
        shutil.rmtree(root)

    def boot(self, *words: str) -> None:
        """Switch it on with these words on the kernel's command line.

        Emulated, because KVM is not there, or not working, inside many virtual machines.
        """
        folder = self._disk.parent
        with self.wire.open("a") as wire:
            print(file=wire)  # ends a line that was cut off
        kernel = (
            "root=/dev/vda rw console=ttyS0 quiet systemd.show_status=no net.ifnames=0 panic=-1"
        )
        self._qemu = subprocess.Popen(
            ["qemu-system-x86_64", "-accel", "tcg,tb-size=256", "-m", "768",
             "-display", "none", "-monitor", "none", "-no-reboot",
             "-kernel", folder / "vmlinuz", "-initrd", folder / "initrd.img",
             "-append", " ".join([kernel, *words]),
             # No cache of this machine's: what the inner kernel has not written is gone.
             "-drive", f"file={self._disk},format=raw,if=virtio,cache=none",
             "-nic", "user,model=virtio-net-pci",
             "-chardev", f"file,id=console,path={self._console},append=on",
             "-serial", "chardev:console",
             "-chardev", f"file,id=wire,path={self.wire},append=on", "-serial", "chardev:wire"],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    @property
    def is_on(self) -> bool:
        """Whether it runs."""
        return self._qemu is not None and self._qemu.poll() is None

    def cut_power(self) -> None:
        """kill -9, where it is on."""
        if self._qemu is not None:
            self._qemu.kill()
            self._qemu.wait()
            self._qemu = None

    def wait_off(self, seconds: float) -> None:
        """Wait until it has switched itself off; TimeoutExpired where it does not."""
        assert self._qemu is not None
        self._qemu.wait(seconds)
        self._qemu = None

    def written(self) -> List[str]:
        """Events whose commit had ended, in order.

        A number that the cut shortened is that of an earlier event, so it does no harm.
        """
        return EVENT.findall(self.wire.read_text(errors="replace"))
