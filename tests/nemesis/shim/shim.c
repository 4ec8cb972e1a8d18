// Stands between a node and the C library, and has calls fail, or the wall clock show another time, while the node runs.
// Loaded by LD_PRELOAD; what it does is told by a page of memory that the test shares with it (shim/mod.rs).
//
// A file system in user space could fail reads and syncs as well, but it takes another dependency, and cannot set a clock.
// What a call that fails would have done is not done: what was written before it stays where it was, in memory, as after a
// failed fsync it may. The functions are those that the binary takes from the C library for files and for the time.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

// Names the file of the page. Without it nothing is changed.
#define VARIABLE "NEMESIS_SHIM"
#define PAGE_BYTES 4096
// What may fail, as bits.
#define READS 1
#define SYNCS 2
#define WRITES 4

// The page. The test writes all but `left` and `struck`, `failing` last.
struct page {
    // By how much the wall clock is ahead.
    _Atomic int64_t ahead_seconds;
    // Which calls fail.
    _Atomic uint64_t failing;
    // How many more of them; the largest number is for ever.
    _Atomic uint64_t left;
    // How many have failed.
    _Atomic uint64_t struck;
    // Files whose paths begin with this.
    char path[PAGE_BYTES - 32];
};

static struct page *page;

// The function of the C library under this name. Looked up when it is first needed: others may be called before our
// constructor runs.
#define REAL(name)                                                                                                     \
    ({                                                                                                                 \
        static _Atomic(__typeof__(&name)) found;                                                                       \
        __typeof__(&name) real = atomic_load(&found);                                                                  \
        if (!real) {                                                                                                   \
            real = (__typeof__(&name))dlsym(RTLD_NEXT, #name);                                                         \
            atomic_store(&found, real);                                                                                \
        }                                                                                                              \
        real;                                                                                                          \
    })

__attribute__((constructor)) static void begin(void) {
    const char *file = getenv(VARIABLE);
    if (!file) return;
    int fd = open(file, O_RDWR | O_CLOEXEC);
    void *mapped = fd < 0 ? MAP_FAILED : mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED) {
        // A fault that silently never strikes would find nothing.
        perror(file);
        abort();
    }
    close(fd);
    page = mapped;
}

// Whether this call on `fd` is to fail. Then `errno` says so.
static int strikes(int fd, uint64_t kind) {
    if (!page || !(atomic_load(&page->failing) & kind)) return 0;
    int before = errno;
    char link[32], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = before;
    if (length <= 0) return 0;
    path[length] = 0;
    if (strncmp(path, page->path, strlen(page->path)) != 0) return 0;
    uint64_t left = atomic_load(&page->left);
    do {
        if (left == 0) return 0;
    } while (!atomic_compare_exchange_weak(&page->left, &left, left == UINT64_MAX ? left : left - 1));
    atomic_fetch_add(&page->struck, 1);
    errno = EIO;
    return 1;
}

int fsync(int fd) { return strikes(fd, SYNCS) ? -1 : REAL(fsync)(fd); }

int fdatasync(int fd) { return strikes(fd, SYNCS) ? -1 : REAL(fdatasync)(fd); }

// What sled calls.
int sync_file_range(int fd, off64_t offset, off64_t bytes, unsigned int flags) {
    return strikes(fd, SYNCS) ? -1 : REAL(sync_file_range)(fd, offset, bytes, flags);
}

ssize_t read(int fd, void *to, size_t bytes) { return strikes(fd, READS) ? -1 : REAL(read)(fd, to, bytes); }

ssize_t readv(int fd, const struct iovec *to, int count) {
    return strikes(fd, READS) ? -1 : REAL(readv)(fd, to, count);
}

ssize_t pread64(int fd, void *to, size_t bytes, off64_t offset) {
    return strikes(fd, READS) ? -1 : REAL(pread64)(fd, to, bytes, offset);
}

ssize_t write(int fd, const void *from, size_t bytes) {
    return strikes(fd, WRITES) ? -1 : REAL(write)(fd, from, bytes);
}

ssize_t writev(int fd, const struct iovec *from, int count) {
    return strikes(fd, WRITES) ? -1 : REAL(writev)(fd, from, count);
}

ssize_t pwrite64(int fd, const void *from, size_t bytes, off64_t offset) {
    return strikes(fd, WRITES) ? -1 : REAL(pwrite64)(fd, from, bytes, offset);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = REAL(clock_gettime)(clock, now);
    // Those that nobody can set go on as ever.
    if (result == 0 && page && clock == CLOCK_REALTIME) now->tv_sec += atomic_load(&page->ahead_seconds);
    return result;
}
