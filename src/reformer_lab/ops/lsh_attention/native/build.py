"""The compiled kernel: made on first use for the processor at hand, kept in the cache, shared by all processes."""

import ctypes
import fcntl
import functools
import hashlib
import os
import platform
import secrets
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from reformer_lab.folders import CACHE_VARIABLE, cache_folder

COMPILERS = ("c++", "g++", "clang++")
COMPILER_VARIABLE = "CXX"
# No -ffast-math: NaN, infinities and the order of sums keep their meaning.
FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-pthread",
    "-Wno-psabi",
)  # fmt: skip
TIMEOUT_SECONDS = 300
_SOURCES = Path(__file__).parent


@functools.cache
def library() -> tuple[ctypes.CDLL | None, None] | tuple[None, str]:
    """Return the loaded kernel, or None and one line that says why there is none. The answer stays that of the first call."""
    compiler = find_compiler()
    if compiler is None:
        return None, f"no C++ compiler found ({', '.join(COMPILERS)}): install one, or name it in ${COMPILER_VARIABLE}"
    try:
        path = cache_folder() / "native" / f"lsh-{identity(compiler)}.so"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with _taking_turns(path.parent):
                if not path.exists():
                    compile_kernel(compiler, path)
        return ctypes.CDLL(str(path)), None
    except subprocess.TimeoutExpired:
        return None, f"{compiler[0]} took more than {TIMEOUT_SECONDS} s"
    except subprocess.CalledProcessError as error:
        lines = [line for line in (error.stderr or "").splitlines() if "error" in line] or [f"exit status {error.returncode}"]
        return None, f"{compiler[0]} failed: {lines[0].strip()}"
    except OSError as error:
        return None, f"the kernel cannot be kept in {cache_folder()} or loaded from there ({error}): set ${CACHE_VARIABLE}"


def find_compiler() -> list[str] | None:
    """Return the command of the C++ compiler: $CXX, or the first that is installed."""
    named = os.environ.get(COMPILER_VARIABLE)
    for command in [shlex.split(named)] if named else [[name] for name in COMPILERS]:
        found = shutil.which(command[0]) if command else None
        if found:
            return [found, *command[1:]]
    return None


def identity(compiler: list[str]) -> str:
    """Return a digest of all that the compiled kernel follows from: sources, flags, compiler and processor."""
    version = _run([*compiler, "--version"])
    digest = hashlib.sha256(repr((compiler, version, FLAGS, _processor())).encode())
    for source in sorted((*_SOURCES.glob("*.cpp"), *_SOURCES.glob("*.h"))):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:24]


def compile_kernel(compiler: list[str], path: Path) -> None:
    """Compile the kernel to `path`, which appears whole or not at all, even if several processes do it at once."""
    temporary = path.with_suffix(f".{secrets.token_hex(4)}.part")
    try:
        _run([*compiler, *FLAGS, str(_SOURCES / "kernel.cpp"), "-o", str(temporary)])
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def _taking_turns(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, so that of processes that start together one compiles.

    The system frees the lock of a process that dies. It saves work and no more: whoever waits too long, or finds a file system
    without locks, goes on without it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:
                break
            else:
                break
        yield
    finally:
        os.close(descriptor)


def _run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=True).stdout


def _processor() -> str:
    """Return what -march=native depends on: a cache may be shared by machines that differ."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        wanted = ("model name", "flags", "Features", "CPU part")
        return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
    return f"{platform.machine()} {platform.processor()}"
