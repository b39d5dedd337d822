/* Faults below the C library, for a campaign: preloaded into the processes under test.

   A control block in a shared file says which calls on which files fail, and by how much the clock
   is wrong. Only calls through the dynamic linker are seen: not those within the C library itself,
   and no access to mapped memory. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { READ = 1, WRITE = 2, SYNC = 4, NAME = 8, SHORT = 16 };

/* The same as `Block` in layer.py. */
struct block {
    int64_t clock_offset_s;
    int32_t calls;     /* which calls fail: a sum of the above */
    int32_t error;     /* errno of the failure */
    int32_t countdown; /* calls that succeed before the first failure */
    int32_t left;      /* failures to come */
    int32_t fired;     /* failures that happened */
    int32_t counted;   /* calls that are counted: a sum of the above */
    int32_t seen[5];   /* how many of each there were below the prefix, the first kind first */
    char prefix[256];
    char host[64];
};

static struct block *block;

/* Map a control block; NULL or a failure means no faults. */
void chaos_attach(const char *path) {
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    block = NULL;
    if (fd < 0) return;
    void *at = mmap(NULL, sizeof(struct block), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (at != MAP_FAILED) block = at;
}

static int is_below(const char *path) {
    size_t n = strlen(block->prefix);
    return n && strncmp(path, block->prefix, n) == 0;
}

/* Whether a call is to fail now; sets errno. */
static int strikes(int call, int fd, const char *path) {
    if (!block || !((block->calls | block->counted) & call)) return 0;
    int before = errno;
    char name[64], target[512];
    if (!path) {
        snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(name, target, sizeof target - 1);
        errno = before;
        if (n < 0) return 0;
        target[n] = 0;
        path = target;
    }
    if (!is_below(path)) return 0;
    if (block->counted & call)
        __atomic_add_fetch(&block->seen[__builtin_ctz(call)], 1, __ATOMIC_SEQ_CST);
    if (!(block->calls & call)) return 0;
    if (__atomic_sub_fetch(&block->countdown, 1, __ATOMIC_SEQ_CST) >= 0) return 0;
    if (__atomic_sub_fetch(&block->left, 1, __ATOMIC_SEQ_CST) < 0) return 0;
    __atomic_add_fetch(&block->fired, 1, __ATOMIC_SEQ_CST);
    errno = block->error;
    return 1;
}

#define NEXT(name) \
    static __typeof__(&name) next; \
    if (!next) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

ssize_t read(int fd, void *data, size_t n) {
    NEXT(read);
    return strikes(READ, fd, NULL) ? -1 : next(fd, data, n);
}
ssize_t pread(int fd, void *data, size_t n, off_t at) {
    NEXT(pread);
    return strikes(READ, fd, NULL) ? -1 : next(fd, data, n, at);
}
ssize_t pread64(int fd, void *data, size_t n, off64_t at) {
    NEXT(pread64);
    return strikes(READ, fd, NULL) ? -1 : next(fd, data, n, at);
}
/* A short write writes the first half. */
static size_t half(int fd, size_t n) { return n > 1 && strikes(SHORT, fd, NULL) ? n / 2 : n; }
ssize_t write(int fd, const void *data, size_t n) {
    NEXT(write);
    return strikes(WRITE, fd, NULL) ? -1 : next(fd, data, half(fd, n));
}
ssize_t pwrite(int fd, const void *data, size_t n, off_t at) {
    NEXT(pwrite);
    return strikes(WRITE, fd, NULL) ? -1 : next(fd, data, half(fd, n), at);
}
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) {
    NEXT(pwrite64);
    return strikes(WRITE, fd, NULL) ? -1 : next(fd, data, half(fd, n), at);
}
ssize_t writev(int fd, const struct iovec *parts, int n) {
    NEXT(writev);
    if (strikes(WRITE, fd, NULL)) return -1;
    if (n > 0 && strikes(SHORT, fd, NULL)) return write(fd, parts[0].iov_base, parts[0].iov_len);
    return next(fd, parts, n);
}
ssize_t pwritev(int fd, const struct iovec *parts, int n, off_t at) {
    NEXT(pwritev);
    if (strikes(WRITE, fd, NULL)) return -1;
    if (n > 0 && strikes(SHORT, fd, NULL))
        return pwrite(fd, parts[0].iov_base, parts[0].iov_len, at);
    return next(fd, parts, n, at);
}
ssize_t pwritev64(int fd, const struct iovec *parts, int n, off64_t at) {
    NEXT(pwritev64);
    if (strikes(WRITE, fd, NULL)) return -1;
    if (n > 0 && strikes(SHORT, fd, NULL))
        return pwrite64(fd, parts[0].iov_base, parts[0].iov_len, at);
    return next(fd, parts, n, at);
}
int fsync(int fd) {
    NEXT(fsync);
    return strikes(SYNC, fd, NULL) ? -1 : next(fd);
}
int fdatasync(int fd) {
    NEXT(fdatasync);
    return strikes(SYNC, fd, NULL) ? -1 : next(fd);
}
int rename(const char *from, const char *to) {
    NEXT(rename);
    return strikes(NAME, -1, to) ? -1 : next(from, to);
}
int link(const char *from, const char *to) {
    NEXT(link);
    return strikes(NAME, -1, to) ? -1 : next(from, to);
}
int linkat(int fd, const char *from, int to_fd, const char *to, int flags) {
    NEXT(linkat);
    return strikes(NAME, -1, to) ? -1 : next(fd, from, to_fd, to, flags);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    NEXT(clock_gettime);
    int status = next(clock, now);
    if (!status && block && clock == CLOCK_REALTIME) now->tv_sec += block->clock_offset_s;
    return status;
}
int gettimeofday(struct timeval *now, void *zone) {
    NEXT(gettimeofday);
    int status = next(now, zone);
    if (!status && block) now->tv_sec += block->clock_offset_s;
    return status;
}
time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
int gethostname(char *name, size_t n) {
    NEXT(gethostname);
    if (!block || !block->host[0]) return next(name, n);
    snprintf(name, n, "%s", block->host);
    return 0;
}

__attribute__((constructor)) static void begin(void) { chaos_attach(getenv("CHAOS_CONTROL")); }
