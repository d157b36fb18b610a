/* A stand-in for libnvidia-ml.so.1: the calls that gpurun makes, answered from the text file `fake-nvml` beside the library.
 *
 *     driver 550.54.15
 *     cuda 12040
 *     fail 18                                  nvmlInit answers this number
 *     hang                                     nvmlInit never comes back
 *     gpu 0 GPU-... 0000:3b:00.0 MINOR TOTAL USED UTIL PERSISTENCE MIG
 *     mig 0 MIG-... GI CI TOTAL USED           the next MIG device of GPU 0
 *     process 0 PID BYTES                      a compute process on GPU 0
 *     process 0:GI:CI PID BYTES                ... on one of its MIG devices
 *
 * A device handle is 1 + GPU * 256, plus 1 + n for its n-th MIG device. The structures are nvml.h's of CUDA 12. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT = 7 };
#define MAX 16

typedef unsigned long long u64;
typedef void *device;
struct mig { char uuid[96]; unsigned gi, ci; u64 total, used; };
struct gpu { char uuid[96], bus[32]; unsigned minor, util, persistence, mig; u64 total, used; unsigned migs; struct mig list[MAX]; };
struct process { unsigned gpu, gi, ci, pid; u64 bytes; };
struct memory_v2 { unsigned version; u64 total, reserved, free, used; };
struct pci { char legacy[16]; unsigned domain, bus, device, id, subsystem; char text[32]; };
struct process_info { unsigned pid; u64 bytes; unsigned gi, ci; };

static struct gpu gpus[MAX];
static struct process processes[64];
static unsigned count, process_count;
static char driver[80] = "550.54.15";
static int cuda = 12040, failure;

static int load(void) {
    Dl_info here;
    char path[PATH_MAX], line[512], rest[512];
    if (!dladdr((void *)load, &here)) return 999;
    snprintf(path, sizeof path, "%s", here.dli_fname);
    char *slash = strrchr(path, '/');
    snprintf(slash + 1, sizeof path - (slash + 1 - path), "fake-nvml");
    FILE *file = fopen(path, "r");
    if (!file) return 9;
    count = process_count = 0;
    failure = 0;
    while (fgets(line, sizeof line, file)) {
        unsigned n, gi, ci, pid;
        u64 bytes;
        struct gpu g = {0};
        struct mig m = {0};
        if (sscanf(line, "driver %79s", driver) == 1 || sscanf(line, "cuda %d", &cuda) == 1 || sscanf(line, "fail %d", &failure) == 1) continue;
        if (!strncmp(line, "hang", 4)) for (;;) pause();
        if (sscanf(line, "gpu %u %95s %31s %u %llu %llu %u %u %u", &n, g.uuid, g.bus, &g.minor, &g.total, &g.used, &g.util, &g.persistence, &g.mig) == 9 && n < MAX) {
            gpus[n] = g;
            if (n + 1 > count) count = n + 1;
        } else if (sscanf(line, "mig %u %95s %u %u %llu %llu", &n, m.uuid, &m.gi, &m.ci, &m.total, &m.used) == 6 && n < count && gpus[n].migs < MAX) {
            gpus[n].list[gpus[n].migs++] = m;
        } else if (sscanf(line, "process %u:%u:%u %u %llu", &n, &gi, &ci, &pid, &bytes) == 5 && process_count < 64) {
            processes[process_count++] = (struct process){n, gi, ci, pid, bytes};
        } else if (sscanf(line, "process %u %u %llu", &n, &pid, &bytes) == 3 && process_count < 64) {
            processes[process_count++] = (struct process){n, UINT_MAX, UINT_MAX, pid, bytes};
        } else if (sscanf(line, " %511s", rest) == 1) {
            fprintf(stderr, "fake-nvml: cannot read: %s", line);
            fclose(file);
            return 999;
        }
    }
    fclose(file);
    return failure;
}

static struct gpu *gpu_of(device d) { unsigned n = ((u64)d - 1) / 256; return n < count ? &gpus[n] : NULL; }
static struct mig *mig_of(device d) { unsigned n = ((u64)d - 1) % 256; struct gpu *g = gpu_of(d); return g && n && n <= g->migs ? &g->list[n - 1] : NULL; }
static int text(const char *from, char *to, unsigned size) { if (strlen(from) >= size) return INSUFFICIENT; strcpy(to, from); return SUCCESS; }

int nvmlInit_v2(void) { return load(); }
int nvmlShutdown(void) { return SUCCESS; }
int nvmlSystemGetDriverVersion(char *to, unsigned size) { return text(driver, to, size); }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = cuda; return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *to) { *to = count; return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned n, device *to) { if (n >= count) return INVALID; *to = (device)(u64)(1 + n * 256); return SUCCESS; }
int nvmlDeviceGetName(device d, char *to, unsigned size) { return text(mig_of(d) ? "Stand-in MIG 1g.10gb" : "Stand-in A100", to, size); }
int nvmlDeviceGetUUID(device d, char *to, unsigned size) { struct mig *m = mig_of(d); return text(m ? m->uuid : gpu_of(d)->uuid, to, size); }
int nvmlDeviceGetMinorNumber(device d, unsigned *to) { *to = gpu_of(d)->minor; return SUCCESS; }
int nvmlDeviceGetPersistenceMode(device d, unsigned *to) { *to = gpu_of(d)->persistence; return SUCCESS; }
int nvmlDeviceGetCudaComputeCapability(device d, int *major, int *minor) { (void)d; *major = 8; *minor = 0; return SUCCESS; }
int nvmlDeviceGetBrand(device d, unsigned *to) { (void)d; *to = 2; return SUCCESS; }
int nvmlDeviceGetPciInfo_v3(device d, struct pci *to) { memset(to, 0, sizeof *to); return text(gpu_of(d)->bus, to->text, sizeof to->text); }
int nvmlDeviceGetUtilizationRates(device d, unsigned *to) { if (gpu_of(d)->mig) return NOT_SUPPORTED; to[0] = gpu_of(d)->util; to[1] = 0; return SUCCESS; }
int nvmlDeviceGetMemoryInfo_v2(device d, struct memory_v2 *to) {
    struct mig *m = mig_of(d);
    if (to->version != (sizeof *to | 2 << 24)) return 25;
    to->total = m ? m->total : gpu_of(d)->total;
    to->used = m ? m->used : gpu_of(d)->used;
    to->reserved = 0;
    to->free = to->total - to->used;
    return SUCCESS;
}
int nvmlDeviceGetMigMode(device d, unsigned *now, unsigned *pending) { *now = *pending = gpu_of(d)->mig; return SUCCESS; }
int nvmlDeviceGetMaxMigDeviceCount(device d, unsigned *to) { *to = gpu_of(d)->mig ? 7 : 0; return SUCCESS; }
int nvmlDeviceGetMigDeviceHandleByIndex(device d, unsigned n, device *to) { if (n >= gpu_of(d)->migs) return NOT_FOUND; *to = (char *)d + 1 + n; return SUCCESS; }
int nvmlDeviceGetGpuInstanceId(device d, unsigned *to) { if (!mig_of(d)) return INVALID; *to = mig_of(d)->gi; return SUCCESS; }
int nvmlDeviceGetComputeInstanceId(device d, unsigned *to) { if (!mig_of(d)) return INVALID; *to = mig_of(d)->ci; return SUCCESS; }
int nvmlDeviceGetComputeRunningProcesses_v3(device d, unsigned *size, struct process_info *to) {
    unsigned found = 0, n = ((u64)d - 1) / 256;
    struct mig *m = mig_of(d);
    for (unsigned i = 0; i < process_count; i++) {
        struct process *p = &processes[i];
        if (p->gpu != n || (m && (p->gi != m->gi || p->ci != m->ci))) continue;
        if (to && found < *size) to[found] = (struct process_info){p->pid, p->bytes, p->gi, p->ci};
        found++;
    }
    int fits = found == 0 || (to && found <= *size);
    *size = found;
    return fits ? SUCCESS : INSUFFICIENT;
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(device d, unsigned *size, struct process_info *to) { (void)d; (void)to; *size = 0; return SUCCESS; }
