/*
 * Fails input and output on purpose (fault injection): preloaded before the C library (LD_PRELOAD), it makes chosen calls on
 * chosen files fail as a bad disk, a full one or a signal would. The environment says which:
 *
 *   IO_FAULT_PATH   calls on paths that contain this text, and on descriptors opened from them
 *   IO_FAULT_CALL   open read write fsync rename close truncate unlink mkdir symlink list stat
 *   IO_FAULT_AT     the first that fails, counted from 0 over these calls
 *   IO_FAULT_NUM    how many fail in a row from there on
 *   IO_FAULT_ERRNO  the error; 0: the call succeeds for a part of the bytes only (short read, short write)
 *   IO_FAULT_LOG    a file to which each fault is appended as `CALL ERRNO PATH`, and at the end each call's number
 *
 * Without IO_FAULT_CALL nothing fails and calls are counted.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum call { OPEN, READ, WRITE, FSYNC, RENAME, CLOSE, TRUNCATE, UNLINK, MKDIR, SYMLINK, LIST, STAT, NUM_CALLS };
static const char *const NAMES[NUM_CALLS] = {"open",     "read",   "write", "fsync",   "rename", "close",
                                             "truncate", "unlink", "mkdir", "symlink", "list", "stat"};
#define MAX_FDS 65536
static _Atomic unsigned char watched[MAX_FDS];
static atomic_long counts[NUM_CALLS];

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) abort();
    return found;
}

static long number(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text ? strtol(text, NULL, 10) : otherwise;
}

static void say(const char *line) {
    const char *log = getenv("IO_FAULT_LOG");
    if (!log) return;
    int before = errno;
    int fd = REAL(open)(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    if (fd >= 0) {
        if (REAL(write)(fd, line, strlen(line)) < 0) abort();
        REAL(close)(fd);
    }
    errno = before;
}

static int is_path(const char *path) {
    const char *part = getenv("IO_FAULT_PATH");
    return part && path && strstr(path, part) != NULL;
}

static int is_fd(int fd) { return fd >= 0 && fd < MAX_FDS && atomic_load(&watched[fd]); }

/* A path as the calls with a folder's descriptor have it. */
static int is_at(int dir, const char *path) { return is_path(path) || (path && path[0] != '/' && is_fd(dir)); }

static void watch(int fd, int is_watched) {
    if (fd >= 0 && fd < MAX_FDS) atomic_store(&watched[fd], (unsigned char)is_watched);
}

/* -1: go on as usual; else the error to fail with, or 0 for a part of the bytes. */
static int fault(enum call call, int concerned, const char *what) {
    if (!concerned) return -1;
    long count = atomic_fetch_add(&counts[call], 1);
    const char *chosen = getenv("IO_FAULT_CALL");
    if (!chosen || strcmp(chosen, NAMES[call]) != 0) return -1;
    long at = number("IO_FAULT_AT", 0);
    if (count < at || count >= at + number("IO_FAULT_NUM", 1)) return -1;
    int error = (int)number("IO_FAULT_ERRNO", EIO);
    char line[4200];
    snprintf(line, sizeof line, "%s %d %s\n", NAMES[call], error, what ? what : "?");
    say(line);
    return error;
}

static const char *path_of(int fd, char *buffer, size_t len) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t got = readlink(link, buffer, len - 1);
    buffer[got > 0 ? got : 0] = 0;
    return buffer;
}

static int fault_fd(enum call call, int fd) {
    char buffer[4096];
    if (!is_fd(fd)) return -1;
    return fault(call, 1, path_of(fd, buffer, sizeof buffer));
}

#define FAIL(error)                                                                                                    \
    do {                                                                                                               \
        errno = (error);                                                                                               \
        return -1;                                                                                                     \
    } while (0)

#define OPEN_LIKE(name)                                                                                                \
    int name(const char *path, int flags, ...) {                                                                       \
        va_list list;                                                                                                  \
        va_start(list, flags);                                                                                         \
        mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(list, mode_t) : 0;                                      \
        va_end(list);                                                                                                  \
        int concerned = is_path(path), error = fault(OPEN, concerned, path);                                           \
        if (error > 0) FAIL(error);                                                                                    \
        int fd = REAL(name)(path, flags, mode);                                                                        \
        watch(fd, concerned);                                                                                          \
        return fd;                                                                                                     \
    }
OPEN_LIKE(open)
OPEN_LIKE(open64)

#define OPENAT_LIKE(name)                                                                                              \
    int name(int dir, const char *path, int flags, ...) {                                                              \
        va_list list;                                                                                                  \
        va_start(list, flags);                                                                                         \
        mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(list, mode_t) : 0;                                      \
        va_end(list);                                                                                                  \
        int concerned = is_at(dir, path), error = fault(OPEN, concerned, path);                                        \
        if (error > 0) FAIL(error);                                                                                    \
        int fd = REAL(name)(dir, path, flags, mode);                                                                   \
        watch(fd, concerned);                                                                                          \
        return fd;                                                                                                     \
    }
OPENAT_LIKE(openat)
OPENAT_LIKE(openat64)

/* A part of the bytes: one at least, as 0 would mean the end. */
#define PART(error, len) ((error) == 0 && (len) > 1 ? (len) / 2 : (len))

ssize_t read(int fd, void *bytes, size_t len) {
    int error = fault_fd(READ, fd);
    if (error > 0) FAIL(error);
    return REAL(read)(fd, bytes, PART(error, len));
}
#define PREAD_LIKE(name, off)                                                                                          \
    ssize_t name(int fd, void *bytes, size_t len, off offset) {                                                        \
        int error = fault_fd(READ, fd);                                                                                \
        if (error > 0) FAIL(error);                                                                                    \
        return REAL(name)(fd, bytes, PART(error, len), offset);                                                        \
    }
PREAD_LIKE(pread, off_t)
PREAD_LIKE(pread64, off64_t)

ssize_t readv(int fd, const struct iovec *parts, int num) {
    int error = fault_fd(READ, fd);
    if (error > 0) FAIL(error);
    return REAL(readv)(fd, parts, error == 0 ? 1 : num);
}

ssize_t write(int fd, const void *bytes, size_t len) {
    int error = fault_fd(WRITE, fd);
    if (error > 0) FAIL(error);
    return REAL(write)(fd, bytes, PART(error, len));
}
#define PWRITE_LIKE(name, off)                                                                                         \
    ssize_t name(int fd, const void *bytes, size_t len, off offset) {                                                  \
        int error = fault_fd(WRITE, fd);                                                                               \
        if (error > 0) FAIL(error);                                                                                    \
        return REAL(name)(fd, bytes, PART(error, len), offset);                                                        \
    }
PWRITE_LIKE(pwrite, off_t)
PWRITE_LIKE(pwrite64, off64_t)

ssize_t writev(int fd, const struct iovec *parts, int num) {
    int error = fault_fd(WRITE, fd);
    if (error > 0) FAIL(error);
    return REAL(writev)(fd, parts, error == 0 ? 1 : num);
}

/* A copy of a descriptor is of the same file. */
#define FCNTL_LIKE(name)                                                                                               \
    int name(int fd, int command, ...) {                                                                               \
        va_list list;                                                                                                  \
        va_start(list, command);                                                                                       \
        void *argument = va_arg(list, void *);                                                                         \
        va_end(list);                                                                                                  \
        int result = REAL(name)(fd, command, argument);                                                                \
        if (command == F_DUPFD || command == F_DUPFD_CLOEXEC) watch(result, is_fd(fd));                                \
        return result;                                                                                                 \
    }
FCNTL_LIKE(fcntl)
FCNTL_LIKE(fcntl64)

#define SYNC_LIKE(name)                                                                                                \
    int name(int fd) {                                                                                                 \
        int error = fault_fd(FSYNC, fd);                                                                               \
        if (error > 0) FAIL(error);                                                                                    \
        return REAL(name)(fd);                                                                                         \
    }
SYNC_LIKE(fsync)
SYNC_LIKE(fdatasync)

/* The descriptor is gone all the same, as on Linux. */
int close(int fd) {
    int error = fault_fd(CLOSE, fd);
    watch(fd, 0);
    int result = REAL(close)(fd);
    if (error > 0) FAIL(error);
    return result;
}

#define TRUNCATE_LIKE(name, off)                                                                                       \
    int name(int fd, off len) {                                                                                        \
        int error = fault_fd(TRUNCATE, fd);                                                                            \
        if (error > 0) FAIL(error);                                                                                    \
        return REAL(name)(fd, len);                                                                                    \
    }
TRUNCATE_LIKE(ftruncate, off_t)
TRUNCATE_LIKE(ftruncate64, off64_t)

int rename(const char *from, const char *to) {
    int error = fault(RENAME, is_path(from) || is_path(to), to);
    if (error > 0) FAIL(error);
    return REAL(rename)(from, to);
}
int renameat(int from_dir, const char *from, int to_dir, const char *to) {
    int error = fault(RENAME, is_at(from_dir, from) || is_at(to_dir, to), to);
    if (error > 0) FAIL(error);
    return REAL(renameat)(from_dir, from, to_dir, to);
}
int unlink(const char *path) {
    int error = fault(UNLINK, is_path(path), path);
    if (error > 0) FAIL(error);
    return REAL(unlink)(path);
}
int unlinkat(int dir, const char *path, int flags) {
    int error = fault(UNLINK, is_at(dir, path), path);
    if (error > 0) FAIL(error);
    return REAL(unlinkat)(dir, path, flags);
}
int rmdir(const char *path) {
    int error = fault(UNLINK, is_path(path), path);
    if (error > 0) FAIL(error);
    return REAL(rmdir)(path);
}
int mkdir(const char *path, mode_t mode) {
    int error = fault(MKDIR, is_path(path), path);
    if (error > 0) FAIL(error);
    return REAL(mkdir)(path, mode);
}
int symlink(const char *target, const char *path) {
    int error = fault(SYMLINK, is_path(path), path);
    if (error > 0) FAIL(error);
    return REAL(symlink)(target, path);
}
DIR *opendir(const char *path) {
    int error = fault(LIST, is_path(path), path);
    if (error > 0) {
        errno = error;
        return NULL;
    }
    DIR *dir = REAL(opendir)(path);
    if (dir) watch(dirfd(dir), is_path(path));
    return dir;
}
struct dirent64 *readdir64(DIR *dir) {
    int error = fault_fd(LIST, dirfd(dir));
    if (error > 0) {
        errno = error;
        return NULL;
    }
    return REAL(readdir64)(dir);
}
int closedir(DIR *dir) {
    watch(dirfd(dir), 0);
    return REAL(closedir)(dir);
}

int statx(int dir, const char *path, int flags, unsigned mask, struct statx *result) {
    /* Of an open descriptor nothing can fail in practice. */
    int error = fault(STAT, path[0] != 0 && is_at(dir, path), path);
    if (error > 0) FAIL(error);
    return REAL(statx)(dir, path, flags, mask, result);
}

__attribute__((destructor)) static void count(void) {
    char line[64];
    for (int call = 0; call < NUM_CALLS; call++) {
        snprintf(line, sizeof line, "count %s %ld\n", NAMES[call], atomic_load(&counts[call]));
        say(line);
    }
}
