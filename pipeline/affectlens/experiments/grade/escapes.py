"""Everything that code in the sandbox must not be able to do, tried from inside; harmless where it succeeds.

Never imported: :mod:`affectlens.experiments.grade.sandbox` runs the text of this file where it runs everything else.
"""

import os
import resource
import signal
import socket


def attempt(name, *arguments):
    """Try one of the attempts below; what it achieved, or nothing."""
    return globals()["try_" + name](*arguments)


def refused(action, *arguments):
    """Whether the system refuses."""
    try:
        action(*arguments)
    except (OSError, ValueError):
        return True
    return False


def try_processes():
    try:
        child = os.fork()
    except OSError:
        return ""
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return "a process was started"


def try_programs():
    # Where this succeeds, nothing comes back, which tells just as well.
    return "" if refused(os.execv, "/proc/self/exe", ["python", "-c", ""]) else "a program was started"


def try_signals(parent):
    return "" if refused(os.kill, parent, 0) else "another process can be signalled"


def try_writing(path):
    return "" if refused(open, path, "w") else "a file was written"


def try_reading(path):
    return "" if refused(open, path) else "a file was read"


def try_network(port):
    def connect():
        with socket.socket() as connection:
            connection.connect(("127.0.0.1", port))

    def send():
        with socket.socket(type=socket.SOCK_DGRAM) as connection:
            connection.sendto(b"", ("127.0.0.1", port))

    return "" if refused(connect) and refused(send) else "a connection was made"


def try_memory(allowed):
    try:
        taken = bytearray(allowed)
    except MemoryError:
        return ""
    return f"{len(taken)} bytes were taken"


def try_time():
    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if resource.RLIM_INFINITY in (soft, hard):
        return "processor time has no limit"
    signal.signal(signal.SIGXCPU, signal.SIG_IGN)
    return "" if refused(resource.setrlimit, resource.RLIMIT_CPU, (soft, hard + 60)) else "the limit was lifted"
