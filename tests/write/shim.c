/* Counts the calls by which a process changes files, and kills it at one of them or makes that call fail.

   Preloaded; armed by the test itself through `shim_arm`, so that nothing before is counted. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { WRITE = 1, FSYNC = 2, RENAME = 4, COPY = 8, OPEN = 16, REMOVE = 32, MKDIR = 64, SIZE = 128 };
enum { KILL_BEFORE, KILL_AFTER, FAIL_ONCE, FAIL_FROM };

static volatile long count, of_kind[8], at = -1;
static volatile int how, code, kinds;

void shim_arm(long n, int how_, int code_, int kinds_) {
    for (int i = 0; i < 8; i++) of_kind[i] = 0;
    count = 0, how = how_, code = code_, kinds = kinds_, at = n;
}

/* How many calls of the kind with this bit there were since. */
long shim_count(int bit) { return of_kind[bit]; }

/* 1: the call shall fail; 2: the process dies after it. */
static int strikes(int kind) {
    if (at < 0 || !(kinds & kind)) return 0;
    __sync_add_and_fetch(&of_kind[__builtin_ctz(kind)], 1);
    long now = __sync_add_and_fetch(&count, 1);
    if (now != at && !(how == FAIL_FROM && now > at)) return 0;
    if (how == KILL_BEFORE) kill(getpid(), SIGKILL), pause();
    if (how == KILL_AFTER) return 2;
    errno = code;
    return 1;
}

static int regular(int descriptor) {
    struct stat found;
    return at >= 0 && descriptor > 2 && fstat(descriptor, &found) == 0 && S_ISREG(found.st_mode);
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define CALL(kind, applies, failed, ...) \
    int struck = (applies) ? strikes(kind) : 0; \
    if (struck == 1) return failed; \
    __typeof__(real(__VA_ARGS__)) result = real(__VA_ARGS__); \
    if (struck == 2) kill(getpid(), SIGKILL), pause(); \
    return result

ssize_t write(int fd, const void *data, size_t size) { REAL(write); CALL(WRITE, regular(fd), -1, fd, data, size); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t place) {
    REAL(pwrite64);
    CALL(WRITE, regular(fd), -1, fd, data, size, place);
}
int fsync(int fd) { REAL(fsync); CALL(FSYNC, 1, -1, fd); }
int fdatasync(int fd) { REAL(fdatasync); CALL(FSYNC, 1, -1, fd); }
int rename(const char *from, const char *to) { REAL(rename); CALL(RENAME, 1, -1, from, to); }
int renameat(int a, const char *from, int b, const char *to) { REAL(renameat); CALL(RENAME, 1, -1, a, from, b, to); }
ssize_t copy_file_range(int in, off64_t *a, int out, off64_t *b, size_t size, unsigned flags) {
    REAL(copy_file_range);
    CALL(COPY, 1, -1, in, a, out, b, size, flags);
}
int unlink(const char *path) { REAL(unlink); CALL(REMOVE, 1, -1, path); }
int unlinkat(int fd, const char *path, int flags) { REAL(unlinkat); CALL(REMOVE, 1, -1, fd, path, flags); }
int rmdir(const char *path) { REAL(rmdir); CALL(REMOVE, 1, -1, path); }
int mkdirat(int fd, const char *path, mode_t mode) { REAL(mkdirat); CALL(MKDIR, 1, -1, fd, path, mode); }
int mkdir(const char *path, mode_t mode) { REAL(mkdir); CALL(MKDIR, 1, -1, path, mode); }
int ftruncate64(int fd, off64_t size) { REAL(ftruncate64); CALL(SIZE, 1, -1, fd, size); }
int truncate64(const char *path, off64_t size) { REAL(truncate64); CALL(SIZE, 1, -1, path, size); }
int posix_fallocate64(int fd, off64_t start, off64_t size) {
    REAL(posix_fallocate64);
    CALL(SIZE, 1, code, fd, start, size);
}
int open64(const char *path, int flags, ...) {
    REAL(open64);
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    CALL(OPEN, flags & (O_WRONLY | O_RDWR | O_CREAT), -1, path, flags, mode);
}
int openat64(int fd, const char *path, int flags, ...) {
    REAL(openat64);
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    CALL(OPEN, flags & (O_WRONLY | O_RDWR | O_CREAT), -1, fd, path, flags, mode);
}
