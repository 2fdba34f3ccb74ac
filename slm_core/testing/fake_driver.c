/* A stand-in for libnvidia-ml.so.1: what it answers is read anew at every call, so that a test
 * can lose a GPU, or let the driver hang, in the middle of a run.
 *
 * A value is looked up as KEY.GPU and KEY in the file that FAKE_NVML_CONTROL names (lines
 * "key value"), then as FAKE_NVML_KEY_GPU and FAKE_NVML_KEY in the environment. Keys: see
 * fake_driver.py. With -DSTUCK_PROGRAM this file is a program that is in state D instead.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef STUCK_PROGRAM
int main(void) {
    /* The parent of vfork sleeps uninterruptibly until its child ends. */
    if (vfork() == 0) {
        for (;;) pause();
    }
    return 0;
}
#else

enum { OK = 0, INVALID = 2, UNSUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, TIMEOUT = 10, LOST = 15 };

typedef struct { int gpu; int slice; } device;
static device devices[64 * 8];
static int calls = 0;
static char last_event[64] = "";

static int from_file(const char *key, char *value, size_t size) {
    const char *path = getenv("FAKE_NVML_CONTROL");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[512];
    size_t length = strlen(key);
    int found = 0;
    if (!file) return 0;
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        if (strncmp(line, key, length) == 0 && line[length] == ' ') {
            snprintf(value, size, "%s", line + length + 1);
            found = 1;
        }
    }
    fclose(file);
    return found;
}

static int from_environment(const char *key, char *value, size_t size) {
    char name[128] = "FAKE_NVML_";
    size_t i, begin = strlen(name);
    snprintf(name + begin, sizeof name - begin, "%s", key);
    for (i = begin; name[i]; i++) {
        if (name[i] == '.') name[i] = '_';
        else if (name[i] >= 'a' && name[i] <= 'z') name[i] -= 32;
    }
    if (!getenv(name)) return 0;
    snprintf(value, size, "%s", getenv(name));
    return 1;
}

static int get(const char *key, int gpu, char *value, size_t size) {
    char one[128];
    snprintf(one, sizeof one, "%s.%d", key, gpu);
    return (gpu >= 0 && from_file(one, value, size)) || from_file(key, value, size) ||
           (gpu >= 0 && from_environment(one, value, size)) || from_environment(key, value, size);
}

static long long number(const char *key, int gpu, long long otherwise) {
    char value[256];
    return get(key, gpu, value, sizeof value) ? strtoll(value, NULL, 0) : otherwise;
}

/* Every call passes here: it may hang, or fail with a code of its own. */
static int enter(const char *function, int gpu) {
    char value[256];
    calls++;
    if (calls <= number("after", -1, 0)) return OK;
    if (get("hang", gpu, value, sizeof value) && strcmp(value, function) == 0)
        for (;;) pause();
    if (get("fail", gpu, value, sizeof value)) {
        char *colon = strchr(value, ':');
        if (colon) {
            *colon = 0;
            if (strcmp(value, function) == 0) return atoi(colon + 1);
        }
    }
    if (gpu >= 0 && number("lost", gpu, 0)) return (int)number("lost_code", gpu, LOST);
    return OK;
}

#define ENTER(gpu) do { int code_ = enter(__func__, gpu); if (code_) return code_; } while (0)

static int text(const char *key, int gpu, const char *otherwise, char *out, unsigned size) {
    char value[256];
    snprintf(out, size, "%s", get(key, gpu, value, sizeof value) ? value : otherwise);
    return OK;
}

/* A value that the GPU has no field for unless the test sets it. */
static int optional(const char *key, int gpu, unsigned long long *out) {
    char value[256];
    if (!get(key, gpu, value, sizeof value)) return UNSUPPORTED;
    *out = strtoull(value, NULL, 0);
    return OK;
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; ENTER(-1); return (int)number("init", -1, 0); }
int nvmlInit_v2(void) { ENTER(-1); return (int)number("init", -1, 0); }
int nvmlShutdown(void) { ENTER(-1); return OK; }
const char *nvmlErrorString(int code) {
    static char words[64];
    snprintf(words, sizeof words, "fake driver error %d", code);
    return words;
}
int nvmlSystemGetDriverVersion(char *out, unsigned size) {
    ENTER(-1);
    return text("driver_version", -1, "580.65.06", out, size);
}
int nvmlSystemGetNVMLVersion(char *out, unsigned size) {
    ENTER(-1);
    return text("nvml_version", -1, "13.580.65.06", out, size);
}
int nvmlSystemGetCudaDriverVersion_v2(int *out) { ENTER(-1); *out = 13000; return OK; }
int nvmlDeviceGetCount_v2(unsigned *out) { ENTER(-1); *out = number("count", -1, 1); return OK; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, device **out) {
    if (index >= (unsigned)number("count", -1, 1)) return INVALID;
    ENTER((int)index);
    devices[index * 8].gpu = (int)index;
    devices[index * 8].slice = -1;
    *out = &devices[index * 8];
    return OK;
}
int nvmlDeviceGetUUID(device *d, char *out, unsigned size) {
    char name[64];
    ENTER(d->gpu);
    if (d->slice >= 0) {
        snprintf(out, size, "MIG-00000000-0000-4000-8000-%06d%06d", d->gpu, d->slice);
        return OK;
    }
    snprintf(name, sizeof name, "GPU-00000000-0000-4000-8000-%012d", d->gpu);
    return text("uuid", d->gpu, name, out, size);
}
int nvmlDeviceGetHandleByUUID(const char *uuid, device **out) {
    char name[96];
    ENTER(-1);
    for (int i = 0; i < (int)number("count", -1, 1) && i < 64; i++) {
        device one = {i, -1};
        if (nvmlDeviceGetUUID(&one, name, sizeof name) == OK && strcmp(name, uuid) == 0)
            return nvmlDeviceGetHandleByIndex_v2((unsigned)i, out);
    }
    return NOT_FOUND;
}
int nvmlDeviceGetIndex(device *d, unsigned *out) { ENTER(d->gpu); *out = (unsigned)d->gpu; return OK; }
int nvmlDeviceGetName(device *d, char *out, unsigned size) {
    ENTER(d->gpu);
    return text("name", d->gpu, "NVIDIA Fake 3090", out, size);
}
typedef struct {
    char legacy[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
} pci_info;
int nvmlDeviceGetPciInfo_v3(device *d, pci_info *out) {
    char address[32];
    ENTER(d->gpu);
    memset(out, 0, sizeof *out);
    snprintf(address, sizeof address, "00000000:%02X:00.0", 0x41 + d->gpu);
    return text("pci", d->gpu, address, out->bus_id, sizeof out->bus_id);
}
typedef struct { unsigned long long total, free, used; } memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2;
int nvmlDeviceGetMemoryInfo(device *d, memory *out) {
    ENTER(d->gpu);
    out->total = number("memory", d->gpu, 24LL << 30);
    out->used = number("memory_used", d->gpu, 0);
    out->free = out->total - out->used;
    return OK;
}
int nvmlDeviceGetMemoryInfo_v2(device *d, memory_v2 *out) {
    memory first;
    ENTER(d->gpu);
    nvmlDeviceGetMemoryInfo(d, &first);
    out->total = first.total;
    out->used = first.used;
    out->free = first.free;
    out->reserved = 0;
    return OK;
}
int nvmlDeviceGetTemperature(device *d, int sensor, unsigned *out) {
    (void)sensor;
    ENTER(d->gpu);
    *out = (unsigned)number("temperature", d->gpu, 35);
    return OK;
}
int nvmlDeviceGetTotalEccErrors(device *d, int kind, int counter, unsigned long long *out) {
    (void)kind; (void)counter;
    ENTER(d->gpu);
    return optional("ecc", d->gpu, out);
}
int nvmlDeviceGetMemoryErrorCounter(device *d, int kind, int counter, int where,
                                    unsigned long long *out) {
    (void)kind; (void)counter; (void)where;
    ENTER(d->gpu);
    return optional("sram", d->gpu, out);
}
int nvmlDeviceGetRemappedRows(device *d, unsigned *corrected, unsigned *uncorrected,
                              unsigned *pending, unsigned *failed) {
    unsigned long long is_pending = 0, is_failed = 0;
    ENTER(d->gpu);
    if (optional("remap_pending", d->gpu, &is_pending) & optional("remap_failed", d->gpu, &is_failed))
        return UNSUPPORTED;
    *corrected = *uncorrected = 0;
    *pending = (unsigned)is_pending;
    *failed = (unsigned)is_failed;
    return OK;
}
int nvmlDeviceGetCurrPcieLinkWidth(device *d, unsigned *out) {
    ENTER(d->gpu);
    *out = (unsigned)number("width", d->gpu, 16);
    return OK;
}
int nvmlDeviceGetMaxPcieLinkWidth(device *d, unsigned *out) {
    ENTER(d->gpu);
    *out = (unsigned)number("width_max", d->gpu, 16);
    return OK;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(device *d, unsigned long long *out) {
    ENTER(d->gpu);
    *out = (unsigned long long)number("throttle", d->gpu, 1);
    return OK;
}
int nvmlDeviceGetComputeRunningProcesses_v3(device *d, unsigned *count, void *out) {
    (void)out;
    ENTER(d->gpu);
    *count = 0;
    return OK;
}
int nvmlDeviceGetPowerUsage(device *d, unsigned *out) {
    ENTER(d->gpu);
    *out = (unsigned)number("power_milliwatts", d->gpu, 30000);
    return OK;
}
int nvmlDeviceGetUtilizationRates(device *d, unsigned *out) {
    ENTER(d->gpu);
    out[0] = (unsigned)number("utilization", d->gpu, 0);
    out[1] = 0;
    return OK;
}
int nvmlDeviceGetMigMode(device *d, unsigned *now, unsigned *pending) {
    ENTER(d->gpu);
    if (number("slices", d->gpu, -1) < 0) return UNSUPPORTED;
    *now = *pending = 1;
    return OK;
}
int nvmlDeviceGetMaxMigDeviceCount(device *d, unsigned *out) { ENTER(d->gpu); *out = 7; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(device *d, unsigned index, device **out) {
    ENTER(d->gpu);
    if ((long long)index >= number("slices", d->gpu, 0)) return NOT_FOUND;
    *out = &devices[d->gpu * 8 + 1 + (int)index];
    (*out)->gpu = d->gpu;
    (*out)->slice = (int)index;
    return OK;
}
typedef struct {
    unsigned id, scope;
    long long timestamp, latency;
    int type, code;
    union { double d; unsigned ui; unsigned long long ull; } value;
} field;
int nvmlDeviceGetFieldValues(device *d, int count, field *fields) {
    unsigned long long action;
    ENTER(d->gpu);
    for (int i = 0; i < count; i++) {
        fields[i].code = UNSUPPORTED;
        if (fields[i].id == 230 && optional("recovery", d->gpu, &action) == OK) {
            fields[i].code = OK;
            fields[i].value.ull = action;
        }
    }
    return OK;
}

typedef struct {
    device *gpu;
    unsigned long long type, data;
    unsigned gpu_instance, compute_instance;
} event;
int nvmlEventSetCreate(void **out) { ENTER(-1); *out = last_event; return OK; }
int nvmlEventSetFree(void *set) { (void)set; ENTER(-1); return OK; }
int nvmlDeviceRegisterEvents(device *d, unsigned long long types, void *set) {
    (void)types; (void)set;
    ENTER(d->gpu);
    return OK;
}
/* The key "xid" is "NUMBER GPU SERIAL"; each new value is one event. */
int nvmlEventSetWait_v2(void *set, event *out, unsigned timeout_ms) {
    (void)set;
    ENTER(-1);
    for (unsigned waited = 0;; waited += 20) {
        char value[64];
        int xid, gpu;
        if (get("xid", -1, value, sizeof value) && strcmp(value, last_event) != 0 &&
            sscanf(value, "%d %d", &xid, &gpu) == 2) {
            snprintf(last_event, sizeof last_event, "%s", value);
            memset(out, 0, sizeof *out);
            devices[gpu * 8].gpu = gpu;
            devices[gpu * 8].slice = -1;
            out->gpu = &devices[gpu * 8];
            out->type = 8; /* critical Xid */
            out->data = (unsigned long long)xid;
            return OK;
        }
        if (waited >= timeout_ms) return TIMEOUT;
        usleep(20000);
    }
}
#endif
