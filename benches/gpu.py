"""Start latency of `true` with a GPU, on a stand-in of a driver, against the same start without one.

    sudo benches/gpu.py [ROUNDS] [--earlier FILE]      gpurun is target/release/gpurun; busybox-static, cc and ldconfig must be installed

The stand-in has the number of files of NVIDIA's driver 550: 31 libraries, five programs, two files of firmware. One interleaved run; the figures are
medians and minima. `--earlier` adds another gpurun for comparison. Everything happens in a network namespace of its own, with the run directory on
a tmpfs, as /run is.
"""

import ctypes
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ARGUMENTS = sys.argv[1:]
EARLIER = ARGUMENTS.pop(ARGUMENTS.index("--earlier") + 1) if "--earlier" in ARGUMENTS else None
ROUNDS = int(next((word for word in ARGUMENTS if word.isdigit()), "30"))
HERE = os.path.dirname(os.path.abspath(__file__))
TARGET = os.environ.get("CARGO_TARGET_DIR", "target")
GPURUN = os.path.abspath(f"{TARGET}/release/gpurun")
WORK = tempfile.mkdtemp(prefix="gpurun-bench.", dir="/var/tmp")
RUN = tempfile.mkdtemp(prefix="gpurun-bench.", dir="/dev/shm")
VERSION = "550.54.15"
LIBRARIES = """
libnvidia-ml libnvidia-cfg libnvidia-nscq libcuda libcudadebugger libnvidia-opencl libnvidia-allocator libnvidia-gpucomp libnvidia-ptxjitcompiler
libnvidia-nvvm libnvidia-pkcs11 libnvidia-pkcs11-openssl3 libvdpau_nvidia libnvidia-encode libnvidia-opticalflow libnvcuvid libnvidia-eglcore
libnvidia-glcore libnvidia-tls libnvidia-glsi libnvidia-fbc libnvidia-rtcore libnvidia-glvkspirv libnvoptix libGLX_nvidia libEGL_nvidia
libGLESv2_nvidia libGLESv1_CM_nvidia libnvidia-ngx libnvidia-egl-gbm libnvidia-egl-wayland
""".split()
PROGRAMS = ["nvidia-smi", "nvidia-debugdump", "nvidia-persistenced", "nvidia-cuda-mps-control", "nvidia-cuda-mps-server"]


def write(path, text, mode=0o644):
    path = f"{WORK}/driver/{path}"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)
    os.chmod(path, mode)
    return path


def driver():
    write("proc/driver/nvidia/version", f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {VERSION}  Tue Mar  5 22:23:56 UTC 2024\n")
    write("proc/driver/nvidia/params", "ModifyDeviceFiles: 1\n")
    uuid = "GPU-aaaaaaaa-0000-0000-0000-000000000000"
    write("proc/driver/nvidia/gpus/0000:3b:00.0/information", f"Model: \t\t Stand-in\nGPU UUID: \t {uuid}\nDevice Minor: \t 0\n")
    write("proc/devices", "Character devices:\n195 nvidia\n195 nvidiactl\n511 nvidia-uvm\n")
    for name, major, minor in [("nvidia0", 195, 0), ("nvidiactl", 195, 255), ("nvidia-uvm", 511, 0), ("nvidia-uvm-tools", 511, 1)]:
        os.makedirs(f"{WORK}/driver/dev", exist_ok=True)
        os.mknod(f"{WORK}/driver/dev/{name}", 0o20666, os.makedev(major, minor))
    directory = f"{WORK}/driver/usr/lib/x86_64-linux-gnu"
    os.makedirs(directory)
    source = write("empty.c", "int gpurun_stand_in(void) { return 0; }\n")
    for name in LIBRARIES:
        code = os.path.abspath(f"{HERE}/../tests/fake-driver/nvml.c") if name == "libnvidia-ml" else source
        subprocess.run(["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}.so.1", "-o", f"{directory}/{name}.so.{VERSION}", code], check=True)
    write("usr/lib/x86_64-linux-gnu/fake-nvml", f"driver {VERSION}\ncuda 12040\ngpu 0 {uuid} 00000000:3B:00.0 0 85899345920 0 0 1 0\n")
    for name in PROGRAMS:
        write(f"usr/bin/{name}", "#!/bin/sh\n", 0o755)
    for name in ("gsp_ga10x.bin", "gsp_tu10x.bin"):
        write(f"lib/firmware/nvidia/{VERSION}/{name}", "firmware\n")
    write("etc/ld.so.conf", "/usr/lib/x86_64-linux-gnu\n")
    subprocess.run(["/sbin/ldconfig", "-r", f"{WORK}/driver"], check=True)


def image(environment):
    root = f"{WORK}/image"
    for directory in ("bin", "etc", "usr/bin", "usr/lib/x86_64-linux-gnu"):
        os.makedirs(f"{root}/{directory}")
    shutil.copy("/bin/busybox", f"{root}/bin/busybox")
    os.symlink("busybox", f"{root}/bin/true")
    shutil.copy("/etc/ld.so.cache", f"{root}/etc/ld.so.cache")
    subprocess.run(["tar", "-C", root, "-cf", f"{WORK}/rootfs.tar", "."], check=True)
    sys.path.insert(0, HERE)
    from archive import docker_archive

    docker_archive(f"{WORK}/rootfs.tar", "bench", f"{WORK}/bench.tar")
    subprocess.run([GPURUN, "image", "load", f"{WORK}/bench.tar"], check=True, capture_output=True, env=environment)


def main():
    if ctypes.CDLL(None).unshare(0x40000000) != 0:
        sys.exit("cannot make a network namespace: run this with sudo")
    environment = os.environ | {"GPURUN_ROOT": f"{WORK}/root", "GPURUN_RUN": RUN, "GPURUN_DRIVER_ROOT": f"{WORK}/driver"}
    driver()
    image(environment)
    programs = {"": GPURUN} | ({", earlier": EARLIER} if EARLIER else {})
    forms = {"without a GPU": [], "--gpus all": ["--gpus", "all"], "--gpus all, every file": ["--gpus", "all,capabilities=all"], "--gpus 1": ["--gpus", "1"]}
    calls = {
        name + which: [program, "run", "--rm", "--network", "none", *flags, "bench", "/bin/true"]
        for which, program in programs.items()
        for name, flags in forms.items()
    }
    times = {name: [] for name in calls}
    for turn in range(-1, ROUNDS):
        names = list(calls)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            began = time.monotonic()
            done = subprocess.run(calls[name], capture_output=True, text=True, env=environment)
            if done.returncode != 0:
                sys.exit(f"{name}: {done.stderr}")
            if turn >= 0:
                times[name].append((time.monotonic() - began) * 1000)
    base = statistics.median(times["without a GPU"])
    print(f"{ROUNDS} interleaved rounds of `/bin/true`; median, fastest, and the median above a start without a GPU, in ms")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:32} {median:7.1f} {min(values):7.1f} {median - base:+7.1f}")


try:
    main()
finally:
    for line in open("/proc/self/mountinfo").read().splitlines()[::-1]:
        if line.split()[4].startswith((WORK, RUN)):
            subprocess.run(["umount", "-l", line.split()[4]])
    shutil.rmtree(WORK, ignore_errors=True)
    shutil.rmtree(RUN, ignore_errors=True)
