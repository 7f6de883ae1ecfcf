"""Locks: of several runs on one folder, the one that may compute a cell or train a model."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from purifier_core.checks import ConfigError
from purifier_core.lab.records import Store

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def locked(store: Store, name: str, wait: bool) -> Iterator[bool]:
    """Whether this run has now locked `name` in the store's folder; with `wait` it has, however long that takes.

    The lock is an flock on an empty file in locks/. It ends with its process, even a killed one, so nobody has to guess
    whether its owner still lives. On a shared file system the lock must reach every machine: NFS passes it on unless
    mounted with nolock, Lustre only if mounted with flock. A machine that dies keeps its locks until the server
    notices. If locks stay on one machine, two machines may compute the same cell; that costs time only, since records
    are written whole. Look into the store after locking: another run may have done the work.
    Raises ConfigError where the file system knows no locks.
    """
    store.locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(store.locks / f"{name}.lock", poll_interval=0.2, fallback_to_soft=False)
    is_ours = _acquired(lock, wait)
    try:
        yield is_ours
    finally:
        if is_ours:
            with suppress(OSError):  # Windows removes no open file
                # removed while locked: a waiting process then finds its file without a name, and begins anew
                Path(lock.lock_file).unlink()
            lock.release()


def _acquired(lock: FileLock, wait: bool) -> bool:
    while True:
        try:
            lock.acquire(timeout=-1 if wait else 0)
            return True
        except Timeout:
            return False
        except OSError as problem:
            if problem.errno in _NO_LOCKS:
                raise ConfigError(
                    f"{Path(lock.lock_file).parent} is on a file system without locks ({problem.strerror}), so that "
                    "runs cannot share it; mount it with locks, or set PURIFIER_HOME to a folder elsewhere."
                ) from problem
            if problem.errno != errno.ESTALE:  # NFS: another machine removed the file between opening and locking it
                raise
