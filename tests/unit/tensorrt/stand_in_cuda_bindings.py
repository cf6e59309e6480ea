"""A stand-in for `cuda.bindings.driver`: what samkit uses of it and no other name, in this process's own memory.

Names, arguments and results are those of cuda-bindings 13.5: each function returns a tuple that begins with CUDA's
error. Rules are those of CUDA's driver API: cuInit comes first, each thread has a stack of contexts, asynchronous
copies want page-locked memory and happen when the stream is waited for.
"""

# ruff: noqa: N801, N802, N803 - the package's names
from __future__ import annotations

import ctypes
import enum
import itertools
import types


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_NOT_INITIALIZED = 3
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_INVALID_CONTEXT = 201


class CUdevice_attribute(enum.IntEnum):
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


class Handle:
    """A CUstream, CUcontext or CUdeviceptr."""

    def __init__(self, number):
        self._number = number
        self._queue = []

    def __int__(self):
        return self._number


def make(state, spec=None, gpu="Stand-in RTX", devices=1, capability=(8, 9)):
    """Return a fresh module; `state` says what is alive."""
    module = types.ModuleType("cuda.bindings.driver")
    numbers = itertools.count(0x7000)
    alive, pinned, streams = {}, {}, {}

    def fails(error):
        return (error,)

    def needs_context(act):
        def checked(*arguments):
            if not state.started:
                return fails(CUresult.CUDA_ERROR_NOT_INITIALIZED)
            return act(*arguments) if state.mine() else fails(CUresult.CUDA_ERROR_INVALID_CONTEXT)

        checked.__name__ = act.__name__
        return checked

    def cuInit(Flags):
        if not devices:
            return fails(CUresult.CUDA_ERROR_NO_DEVICE)
        state.started = True
        return (CUresult.CUDA_SUCCESS,)

    def cuDeviceGetCount():
        return CUresult.CUDA_SUCCESS, devices

    def cuDeviceGet(ordinal):
        return CUresult.CUDA_SUCCESS, Handle(ordinal)

    def cuDeviceGetName(length, dev):
        return CUresult.CUDA_SUCCESS, gpu.encode().ljust(length, b"\0")

    def cuDeviceGetAttribute(attrib, dev):
        return CUresult.CUDA_SUCCESS, capability[CUdevice_attribute(attrib) - 75]

    def cuDriverGetVersion():
        return CUresult.CUDA_SUCCESS, 13040

    def cuGetErrorString(error):
        return CUresult.CUDA_SUCCESS, error.name.removeprefix("CUDA_ERROR_").replace("_", " ").lower().encode()

    def cuDevicePrimaryCtxRetain(dev):
        state.retained += 1
        return CUresult.CUDA_SUCCESS, Handle(next(numbers))

    def cuCtxPushCurrent(ctx):
        state.mine().append(ctx)
        return (CUresult.CUDA_SUCCESS,)

    @needs_context
    def cuCtxPopCurrent():
        return CUresult.CUDA_SUCCESS, state.mine().pop()

    @needs_context
    def cuStreamCreate(Flags):
        stream = Handle(next(numbers))
        streams[int(stream)] = state.streams[int(stream)] = stream
        return CUresult.CUDA_SUCCESS, stream

    @needs_context
    def cuStreamDestroy(hStream):
        del streams[int(hStream)]
        del state.streams[int(hStream)]
        return (CUresult.CUDA_SUCCESS,)

    @needs_context
    def cuStreamSynchronize(hStream):
        queue, hStream._queue = hStream._queue, []
        for work in queue:
            work()
        return (CUresult.CUDA_SUCCESS,)

    def new(count, kind):
        buffer = ctypes.create_string_buffer(b"\xff" * count, count)  # not a number, until it is written
        address = ctypes.addressof(buffer)
        alive[address], kind[address] = buffer, count
        return address

    @needs_context
    def cuMemAlloc(bytesize):
        if bytesize < 1:
            return fails(CUresult.CUDA_ERROR_INVALID_VALUE)
        state.allocations += 1
        return CUresult.CUDA_SUCCESS, Handle(new(bytesize, state.memory))

    @needs_context
    def cuMemFree(dptr):
        del state.memory[int(dptr)], alive[int(dptr)]
        return (CUresult.CUDA_SUCCESS,)

    @needs_context
    def cuMemAllocHost(bytesize):
        address = new(bytesize, pinned)
        state.pinned[address] = bytesize
        return CUresult.CUDA_SUCCESS, address

    @needs_context
    def cuMemFreeHost(p):
        del state.pinned[p], pinned[p], alive[p]
        return (CUresult.CUDA_SUCCESS,)

    def lies(address, count, known):
        return any(start <= int(address) and int(address) + count <= start + n for start, n in known.items())

    def queued(stream, target, source, count, known):
        if not all(lies(address, count, memory) for address, memory in known):
            return fails(CUresult.CUDA_ERROR_INVALID_VALUE)
        stream._queue.append(lambda: ctypes.memmove(int(target), int(source), count))
        return (CUresult.CUDA_SUCCESS,)

    @needs_context
    def cuMemcpyHtoDAsync(dstDevice, srcHost, ByteCount, hStream):
        known = ((dstDevice, state.memory), (srcHost, pinned))
        return queued(hStream, dstDevice, srcHost, ByteCount, known)

    @needs_context
    def cuMemcpyDtoHAsync(dstHost, srcDevice, ByteCount, hStream):
        known = ((dstHost, pinned), (srcDevice, state.memory))
        return queued(hStream, dstHost, srcDevice, ByteCount, known)

    @needs_context
    def cuMemcpyDtoDAsync(dstDevice, srcDevice, ByteCount, hStream):
        known = ((dstDevice, state.memory), (srcDevice, state.memory))
        return queued(hStream, dstDevice, srcDevice, ByteCount, known)

    @needs_context
    def cuMemcpyDtoH(dstHost, srcDevice, ByteCount):
        ctypes.memmove(dstHost, int(srcDevice), ByteCount)
        return (CUresult.CUDA_SUCCESS,)

    for thing in (
        CUresult, CUdevice_attribute, cuInit, cuDeviceGetCount, cuDeviceGet, cuDeviceGetName, cuDeviceGetAttribute,
        cuDriverGetVersion, cuGetErrorString, cuDevicePrimaryCtxRetain, cuCtxPushCurrent, cuCtxPopCurrent,
        cuStreamCreate, cuStreamDestroy, cuStreamSynchronize, cuMemAlloc, cuMemFree, cuMemAllocHost, cuMemFreeHost,
        cuMemcpyHtoDAsync, cuMemcpyDtoHAsync, cuMemcpyDtoDAsync, cuMemcpyDtoH,
    ):  # fmt: skip
        setattr(module, thing.__name__, thing)
    module.CUDA_VERSION = 13050
    module.state = state
    module.__spec__ = spec
    return module
