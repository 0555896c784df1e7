"""One writer of a folder: the kernel's lock on a file in it (flock), which ends with its holder, however that ends.

Over NFS Linux makes of it a lock of the server's, which other machines see; where a file system has none, take() says
so. One that locks for each machine alone (Lustre mounted with `localflock`) cannot be told from here.
"""

import fcntl
import functools
import pathlib
import sys


def take(descriptor: int, folder: pathlib.Path, *, shared: bool = False, where_impossible: bool = True) -> bool:
    """Lock a file of `folder`, open for reading and writing, without waiting; False where another holds it.

    A shared lock may have several holders, and no other beside them. One lock of the descriptor takes the place of the
    other. Where the file system cannot lock, a line says so, and the answer is `where_impossible`.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        _say_that_it_cannot_lock(folder, error.strerror)
        return where_impossible
    return True


@functools.cache
def _say_that_it_cannot_lock(folder: pathlib.Path, reason: str) -> None:
    """Once for each folder, however many locks are asked of it."""
    print(
        f"{folder}: this file system cannot lock files ({reason}): see that nothing else writes here",
        file=sys.stderr,
    )
