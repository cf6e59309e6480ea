"""A stand-in for `pycuda.driver`: what samkit uses of it, and no other name. Device memory is this process's own.

Names, arguments and rules are those of pycuda's documentation (doc/driver.rst; `Stream.handle` from its wrapper):
`init` comes first, memory belongs to a context that must be current, asynchronous copies want page-locked memory and
happen when the stream is waited for.

Contexts are those of src/cpp/cuda.hpp. pycuda has a stack for each thread, of which the top alone is current for CUDA.
`detach` releases a context that is current; of one that is not it pushes the context first, in the thread that retained
it, and does nothing in another. Releasing a primary context pops nothing, so what `detach` pushed stays current.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
import types
import weakref

import numpy as np

GPU = "Stand-in H100"


class State:
    """What is alive."""

    def __init__(self):
        self.started = False
        self.stacks = {}
        """pycuda's stacks of contexts, by thread."""
        self.current = []
        """What CUDA itself has current, in all threads together."""
        self.retained = 0
        self.memory, self.pinned, self.allocations = {}, {}, 0
        self.streams = weakref.WeakValueDictionary()

    def mine(self):
        return self.stacks.setdefault(threading.get_ident(), [])

    @property
    def stack(self):
        return [context for stack in self.stacks.values() for context in stack]

    def left(self):
        """Return what closing should have freed; the primary context is retained once, and stays."""
        names = ("memory", "pinned", "stack", "current")
        found = {name: value for name in names if (value := getattr(self, name))} | dict(self.streams)
        return found if self.retained <= 1 else {**found, "retained": self.retained}


def make(spec=None, gpu=GPU, devices=1):
    """Return a fresh module; its `state` says what is alive."""
    module = types.ModuleType("pycuda.driver")
    state = State()
    handles = itertools.count(0x5000)

    class Error(Exception):
        pass

    class LogicError(Error):
        pass

    def started():
        if not state.started:
            raise LogicError("CUDA was used before init()")

    def current():
        started()
        if not state.mine():
            raise LogicError("no context is current in this thread")
        return state.mine()[-1]

    def init(flags=0):
        if not devices:
            raise Error("cuInit failed: no CUDA-capable device is detected")
        state.started = True

    class Context:
        def __init__(self):
            self.alive = True
            self._thread = threading.get_ident()

        def push(self):
            if not self.alive:
                raise LogicError("the context is gone")
            if state.mine():
                state.current.pop()
            state.mine().append(self)
            state.current.append(self)

        @staticmethod
        def pop():
            if not state.mine():
                raise LogicError("cannot pop non-current context")
            state.mine().pop()
            state.current.pop()
            if state.mine():
                state.current.append(state.mine()[-1])

        def detach(self):
            if not self.alive:
                raise LogicError("cannot detach from invalid context")
            self.alive = False
            if state.mine()[-1:] == [self]:
                state.mine().pop()
                state.retained -= 1
            elif self._thread == threading.get_ident():
                state.current.append(self)
                state.retained -= 1

    class Device:
        def __init__(self, number):
            started()
            self._number = number

        @staticmethod
        def count():
            started()
            return devices

        def name(self):
            return gpu

        def compute_capability(self):
            return (9, 0)

        def retain_primary_context(self):
            state.retained += 1
            return Context()

    class Stream:
        def __init__(self, flags=0):
            self._context = current()
            self._queue = []
            self._handle = next(handles)
            state.streams[self._handle] = self

        @property
        def handle(self):
            return self._handle

        def synchronize(self):
            current()
            queue, self._queue = self._queue, []
            for work in queue:
                work()

    class DeviceAllocation:
        def __init__(self, count):
            self._context = current()
            self._buffer = ctypes.create_string_buffer(b"\xff" * count, count)  # not a number, until it is written
            self._address = ctypes.addressof(self._buffer)
            state.memory[self._address] = count
            state.allocations += 1

        def __int__(self):
            return self._address

        def free(self):
            if current() is not self._context:
                raise LogicError("memory is freed in another context than it was allocated in")
            del state.memory[self._address]

    class PagelockedHostAllocation:
        def __init__(self, shape, dtype):
            dtype = np.dtype(dtype)
            self._buffer = ctypes.create_string_buffer(int(np.prod(shape)) * dtype.itemsize)
            address = ctypes.addressof(self._buffer)
            self.__array_interface__ = {
                "shape": tuple(np.atleast_1d(shape)), "typestr": dtype.str, "data": (address, False), "version": 3,
            }  # fmt: skip
            self._key = address
            state.pinned[address] = len(self._buffer)

        def free(self):
            current()
            del state.pinned[self._key]

    def mem_alloc(count):
        current()
        if count < 1:
            raise LogicError("cuMemAlloc failed: invalid argument")
        return DeviceAllocation(count)

    def pagelocked_empty(shape, dtype, order="C", mem_flags=0):
        current()
        return np.asarray(PagelockedHostAllocation(shape, dtype))

    def check(array, address, needs_pinned):
        current()
        if not array.flags.c_contiguous:
            raise LogicError("the buffer is not contiguous")
        if state.memory.get(int(address), -1) < array.nbytes:
            raise LogicError(f"{array.nbytes} bytes do not lie at {int(address):#x}")
        start = array.ctypes.data
        if needs_pinned and not any(a <= start and start + array.nbytes <= a + n for a, n in state.pinned.items()):
            raise LogicError("the host memory is not page-locked")

    def copy(to, source, count):
        ctypes.memmove(int(to), int(source), count)

    def memcpy_htod_async(dest, src, stream=None):
        check(src, dest, True)
        stream._queue.append(lambda: copy(dest, src.ctypes.data, src.nbytes))

    def memcpy_dtoh_async(dest, src, stream=None):
        check(dest, src, True)
        stream._queue.append(lambda: copy(dest.ctypes.data, src, dest.nbytes))

    def memcpy_dtod_async(dest, src, size, stream=None):
        current()
        if min(state.memory.get(int(address), -1) for address in (dest, src)) < size:
            raise LogicError(f"{size} bytes do not lie at {int(dest):#x} and {int(src):#x}")
        stream._queue.append(lambda: copy(dest, src, size))

    def memcpy_dtoh(dest, src):
        check(dest, src, False)
        copy(dest.ctypes.data, src, dest.nbytes)

    def get_version():
        return (13, 0, 0)

    def get_driver_version():
        return 13040

    names = (
        Error, LogicError, init, Context, Device, Stream, DeviceAllocation, PagelockedHostAllocation,
        mem_alloc, pagelocked_empty, memcpy_htod_async, memcpy_dtoh_async, memcpy_dtod_async, memcpy_dtoh,
        get_version, get_driver_version,
    )  # fmt: skip
    for thing in names:
        setattr(module, thing.__name__, thing)
    module.state = state
    module.__spec__ = spec
    return module
