"""First thing in every child: die with the parent, whatever happens to it, and when it is told to. Linux.

A parent that is killed with SIGKILL cannot clean up, and a child that hangs notices no closed socket: only the kernel
can end it then (prctl(2), PR_SET_PDEATHSIG). The signal is tied to the *thread* that made the child, which is why
`process` makes children on one thread that never ends. A child inherits an ignored or blocked SIGTERM, which was the
parent's own affair (signal(7)): here it ends a process again. Imported before anything heavy; needs only the standard
library.
"""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel for SIGKILL when the parent ends; end at once if it has ended already (the race before this call).
    SIGTERM ends the process from now on, whatever the parent made of it. On the main thread.

    `parent_pid` is what the parent calls itself, so that a parent which is process 1 of a container works too.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
