"""Simulates the machines of a cluster on one machine by network namespaces, each with its own address.

A program restarts itself in private namespaces (`enter`). Its network there has no connection to the outside: it has a
bridge, the hub, at 10.77.0.1, and the hosts of `hosts`, network namespaces at 10.77.0.2, 10.77.0.3, and so on. When the
program ends, for any reason, the kernel removes all of them and ends every process that was started inside, since they
share a process namespace. This needs Linux with the programs `ip` (iproute2), `unshare` and `nsenter` (util-linux), and
either root or the right of users to create namespaces.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

HUB = "10.77.0.1"
INTERFACE = "eth0"  # name of a host's interface, besides `lo`
_INSIDE = "ERAT_IN_NAMESPACES"
_CLONE_NEWNET = 0x40000000


def problem() -> str | None:
    """Return why this machine cannot create such namespaces, in one line, or None; the attempt leaves no traces."""
    if missing := [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]:
        return f"no program {missing[0]}"
    for kind in ("bridge", "veth"):
        tried = run(["ip", "link", "add", "tried", "type", kind])
        if tried.returncode != 0:
            return (tried.stderr.strip().splitlines() or ["no reason is given"])[-1]
    return None


def private(words: Sequence[str]) -> list[str]:
    """Return a command line that runs `words` in private namespaces of network, mounts and processes."""
    as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *as_root, "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", *words]


def run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a program in private namespaces until it ends."""
    return subprocess.run(private(words), env=os.environ | {_INSIDE: "1"}, capture_output=True, text=True, check=False)


def inside() -> bool:
    """Return whether this program runs in private namespaces."""
    return _INSIDE in os.environ


def enter(words: Sequence[str]) -> None:
    """Replace this program by `words` in private namespaces; return at once if it already runs in them."""
    if not inside():
        os.execvpe("unshare", private(words), os.environ | {_INSIDE: "1"})
    # The first process of a process namespace gets no signal for which it has no handler.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


@dataclass(frozen=True)
class Host:
    """A network namespace with one address.

    Attributes:
        address: its address.
        holder: id of a process that keeps the namespace alive.
    """

    address: str
    holder: int

    @property
    def _network(self) -> str:
        return f"/proc/{self.holder}/ns/net"

    def words(self, *words: str) -> list[str]:
        """Return a command line that runs `words` on this host."""
        return ["nsenter", f"--net={self._network}", "--", *words]

    def join(self) -> None:
        """Move this thread, and all processes that it starts from now on, to this host."""
        libc = ctypes.CDLL(None, use_errno=True)  # os.setns exists since Python 3.12 only
        with open(self._network) as network:
            if libc.setns(network.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"setns({self._network}): {os.strerror(ctypes.get_errno())}")


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """Create hosts that are connected to the hub, on which this process runs.

    Args:
        count: the number of hosts.

    Raises:
        RuntimeError: the program is not in private namespaces, so this would change the machine's own network.
    """
    if not inside():
        raise RuntimeError("hosts are made inside private namespaces: call `enter` first")
    _ip("link set lo up")
    _ip("link add hub type bridge")
    _ip(f"addr add {HUB}/24 dev hub")
    _ip("link set hub up")
    with ExitStack() as stack:
        stack.callback(_ip, "link del hub")
        yield [_host(number, stack) for number in range(2, 2 + count)]


def _host(number: int, stack: ExitStack) -> Host:
    holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
    stack.callback(holder.wait)
    stack.callback(holder.kill)
    host = Host(f"10.77.0.{number}", holder.pid)
    own, give_up = os.readlink("/proc/self/ns/net"), time.monotonic() + 120
    while os.readlink(host._network) == own:
        if time.monotonic() > give_up or holder.poll() is not None:
            raise RuntimeError(f"no network namespace for {host.address}")
        time.sleep(0.01)
    _ip(f"link add host{number} type veth peer name {INTERFACE} netns {holder.pid}")
    stack.callback(_ip, f"link del host{number}")  # the kernel does so too, but some time after the holder has ended
    _ip(f"link set host{number} master hub up")
    for line in ("link set lo up", f"addr add {host.address}/24 dev {INTERFACE}", f"link set {INTERFACE} up"):
        subprocess.run(host.words("ip", *line.split()), check=True)
    return host


def _ip(line: str) -> None:
    subprocess.run(["ip", *line.split()], check=True)
