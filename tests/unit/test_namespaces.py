"""Tests hosts on one machine: each has the given address, sees the others, and is gone when the program ends."""

from __future__ import annotations

import json
import subprocess
import sys

import psutil
import pytest

from tests import namespaces

pytestmark = pytest.mark.skipif(
    (why := namespaces.problem()) is not None, reason=f"network namespaces cannot be made here: {why}"
)

# On a server in the first host: who called, and what a caller from the second was told; then, whether an error removes
# the hub, and whether a thread can move to a host.
INSIDE = """
import json, psutil, subprocess, sys, threading
from tests import namespaces

SERVE = '''
import socket
with socket.create_server(("10.77.0.2", 7000)) as server:
    print("ready", flush=True)
    caller, (address, _) = server.accept()
    caller.sendall(address.encode())
'''
CALL = 'import socket; print(socket.create_connection(("10.77.0.2", 7000), 5).recv(99).decode())'
seen = {}
try:
    with namespaces.hosts(2) as (first, second):
        server = subprocess.Popen(first.words(sys.executable, "-c", SERVE), stdout=subprocess.PIPE, text=True)
        server.stdout.readline()
        called = subprocess.run(second.words(sys.executable, "-c", CALL), capture_output=True, text=True, check=True)
        seen["caller"] = called.stdout.strip()
        seen["holders"] = [first.holder, second.holder]
        seen["hub"] = sorted(psutil.net_if_addrs())
        raise KeyError
except KeyError:
    seen["after"] = sorted(psutil.net_if_addrs())
    seen["left"] = [process.pid for process in psutil.process_iter()]
with namespaces.hosts(1) as (again,):
    def move():
        again.join()
        seen["there"] = psutil.net_if_addrs()[namespaces.INTERFACE][0].address
    thread = threading.Thread(target=move)
    thread.start()
    thread.join()
print(json.dumps(seen))
"""


def test_hosts_see_each_other_and_go() -> None:
    before = sorted(psutil.net_if_addrs())
    done = namespaces.run([sys.executable, "-c", INSIDE])
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["caller"] == "10.77.0.3"
    assert seen["there"] == "10.77.0.2"
    assert {"hub", "host2", "host3"} <= set(seen["hub"])
    assert not {"hub", "host2", "host3"} & set(seen["after"])
    assert not set(seen["holders"]) & set(seen["left"])
    assert sorted(psutil.net_if_addrs()) == before


STAYING = """
import subprocess
from tests import namespaces

with namespaces.hosts(1) as (host,):
    subprocess.Popen(host.words("sleep", "3600"))
    print("up", flush=True)
    input()
"""


def test_a_program_that_is_killed_takes_its_hosts_along() -> None:
    words = namespaces.private(["env", f"{namespaces._INSIDE}=1", sys.executable, "-c", STAYING])
    program = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None and program.stdout.readline() == "up\n"
    inside = psutil.Process(program.pid).children(recursive=True)
    assert len(inside) >= 3, "itself, what keeps the host, and what runs there"
    program.kill()
    program.communicate()
    _, alive = psutil.wait_procs(inside, timeout=300)
    assert not alive


def test_nobody_makes_hosts_on_the_machine_s_own_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(namespaces._INSIDE, raising=False)
    with pytest.raises(RuntimeError, match="inside private namespaces"), namespaces.hosts(1):
        pass
