"""One writer of a folder: the kernel's lock on a file in it (flock), which ends with its holder, however that ends."""

import fcntl
import pathlib
import sys


def take(descriptor: int, folder: pathlib.Path) -> bool:
    """Lock a file of `folder`, open for writing, without waiting; False where another holds it.

    Where the file system cannot lock, a line says so, and the answer is True.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        print(
            f"{folder}: this file system cannot lock files ({error.strerror}): see that nothing else writes here",
            file=sys.stderr,
        )
    return True
