"""First thing in every child: die with the parent, whatever happens to it. Linux.

A parent that is killed with SIGKILL cannot clean up, and a child that hangs notices no closed socket: only the kernel
can end it then (prctl(2), PR_SET_PDEATHSIG). The signal is tied to the *thread* that made the child, which is why
`process` makes children on one thread that never ends. Imported before anything heavy; needs only the standard library.
"""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel for SIGKILL when the parent ends; end at once if it has ended already (the race before this call).

    `parent_pid` is what the parent calls itself, so that a parent which is process 1 of a container works too.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)
