"""What tests/real-gpu.sh runs inside its containers: NVIDIA's driver itself, by its C interface, so that nothing but Python is needed.

    cuda            a kernel on every GPU that the container has: squares numbers, compares
    hold FILE       has a context on the first GPU and memory in use, until FILE is there
    open N          the result of opening GPU N's node, which is created if it does not exist
    torch           a matrix product by PyTorch, against the processor's
"""

import ctypes
import errno
import os
import sys
import time

PTX = b"""
.version 6.0
.target sm_50
.address_size 64
.visible .entry square(.param .u64 numbers)
{
    .reg .b64 %rd<4>;
    .reg .b32 %r<5>;
    .reg .f32 %f<3>;
    ld.param.u64 %rd1, [numbers];
    cvta.to.global.u64 %rd1, %rd1;
    mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %ntid.x;
    mov.u32 %r3, %tid.x;
    mad.lo.s32 %r4, %r1, %r2, %r3;
    mul.wide.s32 %rd2, %r4, 4;
    add.s64 %rd3, %rd1, %rd2;
    ld.global.f32 %f1, [%rd3];
    mul.f32 %f2, %f1, %f1;
    st.global.f32 [%rd3], %f2;
    ret;
}
"""


class Cuda:
    def __init__(self):
        self.library = ctypes.CDLL("libcuda.so.1")
        self.call("cuInit", 0)

    def call(self, name, *args):
        result = getattr(self.library, name)(*args)
        if result != 0:
            text = ctypes.c_char_p()
            self.library.cuGetErrorString(result, ctypes.byref(text))
            sys.exit(f"{name}: {(text.value or b'?').decode()} ({result})")

    def version(self):
        number = ctypes.c_int()
        self.call("cuDriverGetVersion", ctypes.byref(number))
        return f"{number.value // 1000}.{number.value % 1000 // 10}"

    def devices(self):
        count = ctypes.c_int()
        self.call("cuDeviceGetCount", ctypes.byref(count))
        for index in range(count.value):
            device, name = ctypes.c_int(), ctypes.create_string_buffer(128)
            self.call("cuDeviceGet", ctypes.byref(device), index)
            self.call("cuDeviceGetName", name, 128, device)
            yield device, name.value.decode()

    def context(self, device):
        context = ctypes.c_void_p()
        self.call("cuCtxCreate_v2", ctypes.byref(context), 0, device)
        return context

    def memory(self, size):
        pointer = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size))
        return pointer


def cuda():
    driver, found = Cuda(), 0
    for device, name in driver.devices():
        context = driver.context(device)
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        driver.call("cuModuleLoadData", ctypes.byref(module), PTX)
        driver.call("cuModuleGetFunction", ctypes.byref(function), module, b"square")
        count = 1 << 20
        numbers = (ctypes.c_float * count)(*(float(n % 1000) for n in range(count)))
        place = driver.memory(ctypes.sizeof(numbers))
        driver.call("cuMemcpyHtoD_v2", place, numbers, ctypes.c_size_t(ctypes.sizeof(numbers)))
        arguments = (ctypes.c_void_p * 1)(ctypes.cast(ctypes.byref(place), ctypes.c_void_p))
        driver.call("cuLaunchKernel", function, count // 256, 1, 1, 256, 1, 1, 0, None, arguments, None)
        driver.call("cuMemcpyDtoH_v2", numbers, place, ctypes.c_size_t(ctypes.sizeof(numbers)))
        if any(numbers[n] != float(n % 1000) ** 2 for n in range(0, count, 997)):
            sys.exit(f"{name}: the squares are wrong")
        driver.call("cuCtxDestroy_v2", context)
        print(f"{name}: {count} squares are right")
        found += 1
    print(f"CUDA {driver.version()}, {found} GPUs")
    sys.exit(0 if found else "CUDA sees no GPU")


def hold(end):
    driver = Cuda()
    device, name = next(driver.devices())
    driver.context(device)
    driver.memory(256 << 20)
    print(f"{name}: 256 MiB are held", flush=True)
    while not os.path.exists(end):
        time.sleep(0.1)


def opened(number):
    path = f"/dev/nvidia{number}"
    if not os.path.exists(path):
        path = f"/tmp/nvidia{number}"
        try:
            os.mknod(path, 0o666 | 0o020000, os.makedev(195, int(number)))
        except PermissionError:
            print("no")
            return
    try:
        os.close(os.open(path, os.O_RDWR))
        print("open")
    except PermissionError:
        print("denied")
    except OSError as error:
        # The filter let it through, and no driver is behind it: a stand-in's node.
        print("open" if error.errno == errno.ENXIO else error)


def product():
    import torch

    size = 4096
    one, other = torch.randn(size, size), torch.randn(size, size)
    a, b = one.cuda(), other.cuda()
    a @ b
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(10):
        result = a @ b
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - began) / 10
    rows = slice(0, 64)
    worst = (result[rows].cpu() - one[rows] @ other).abs().max().item()
    print(f"PyTorch {torch.__version__} (CUDA {torch.version.cuda}) on {torch.cuda.get_device_name(0)}: "
          f"{size} x {size} in {seconds * 1e3:.2f} ms, {2 * size**3 / seconds / 1e12:.1f} TFLOP/s, off by {worst:.2g} at most")
    # TF32 keeps ten bits; a sum of 4096 products of size one.
    sys.exit(0 if worst < 1.0 else "the product is wrong")


if __name__ == "__main__":
    {"cuda": cuda, "hold": hold, "open": opened, "torch": product}[sys.argv[1]](*sys.argv[2:])
