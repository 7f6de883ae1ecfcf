"""Kernels for the book's pages, forked from one process that has imported what all of them need.

A page reads records and draws; most of a fresh kernel's time goes into importing pandas and the drawing libraries, once
for each page. Where processes cannot be forked, the pages get ordinary kernels.
"""

import atexit
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import EntryPoint
from typing import Any

from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

FIGURES = {"figure_formats": {"svg"}, "print_figure_kwargs": {"bbox_inches": None}}
"""How figures are handed to the page: as figures.py takes them, in the size that they are drawn in."""


def offer() -> None:
    """Let this process start kernels by forking, from now on."""
    if hasattr(os, "fork"):
        entry = EntryPoint("forked", f"{__name__}:Forked", KernelProvisionerFactory.GROUP_NAME)
        KernelProvisionerFactory.provisioners[entry.name] = entry
        os.environ[KernelProvisionerFactory.default_provisioner_name_env] = entry.name


class Forked(LocalProvisioner):
    """Starts a kernel as a fork of the warm process, which all processes that read pages share."""

    warm: subprocess.Popen | None = None
    turn = multiprocessing.Lock()

    async def launch_kernel(self, cmd: list[str], **given: Any) -> Any:
        """Start it with the arguments of the ordinary command, in its folder and environment."""
        assert Forked.warm, "start() comes first"
        into, out = Forked.warm.stdin, Forked.warm.stdout
        assert into
        assert out
        arguments = cmd[cmd.index("-f") :]
        line = json.dumps({"arguments": arguments, "folder": given["cwd"], "env": given["env"]})
        with Forked.turn:
            print(line, file=into, flush=True)
            self.process = Process(int(out.readline()))
        self.pid = self.pgid = self.process.pid
        return self.connection_info


def start() -> None:
    """Start the warm process, which imports while pages are read."""
    Forked.warm = subprocess.Popen(
        [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(Forked.warm.communicate)  # its input ends, and so does it


class Process:
    """A forked kernel, with what `LocalProvisioner` asks of a `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def poll(self) -> int | None:
        """None while it runs, then 0: the warm process alone could tell how it ended."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return 0
        return None

    wait = poll


def reap(*_: Any) -> None:
    """Take leave of the kernels that have ended."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def serve() -> None:
    """Import what pages need, read all records, and fork a kernel for each line on the standard input."""
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # as kernels do before they import it
    import jinja2  # noqa: F401 - pandas' tables
    import matplotlib.pyplot  # noqa: F401
    import seaborn  # noqa: F401
    from ipykernel.kernelapp import IPKernelApp
    from traitlets.config import Config

    from purifier_core.lab.records import Store

    list(Store().all())
    signal.signal(signal.SIGCHLD, reap)
    for line in sys.stdin:
        asked = json.loads(line)
        if pid := os.fork():
            print(pid, flush=True)
            continue
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        os.chdir(asked["folder"])
        os.environ.clear()
        os.environ.update(asked["env"])
        IPKernelApp.launch_instance(argv=asked["arguments"], config=Config(InlineBackend=FIGURES))
        os._exit(0)


if __name__ == "__main__":
    serve()
