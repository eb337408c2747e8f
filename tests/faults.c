/* A disk that fails once: preloaded, it counts what a process asks of the files below one folder, and at the n-th
   request answers with an error, or ends the process. Compiled and used by faulty.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char root[PATH_MAX];
static long nth;       /* 0: only count */
static int fault;      /* an errno; 0: SIGKILL */
static long *requests; /* shared with the parent, so that it survives the kill */

void faults_arm(const char *folder, long n, int error, long *counter) {
    strncpy(root, folder, sizeof root - 1);
    nth = n, fault = error, requests = counter;
}

static int below(int directory, const char *path) {
    char name[PATH_MAX], link[64];
    ssize_t length;
    if (!requests) return 0;
    if (path && path[0] == '/') return !strncmp(path, root, strlen(root));
    if (directory == AT_FDCWD) return 0; /* the process works elsewhere */
    snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
    length = readlink(link, name, sizeof name - 1);
    return length > 0 && (name[length] = 0, !strncmp(name, root, strlen(root)));
}

static int fails(int directory, const char *path) {
    if (!below(directory, path) || ++*requests != nth) return 0;
    if (!fault) kill(getpid(), SIGKILL);
    errno = fault;
    return 1;
}

#define WRAP(type, name, parameters, arguments, directory, path)             \
    type name parameters {                                                   \
        static type(*real) parameters;                                       \
        if (!real) real = (type(*) parameters)dlsym(RTLD_NEXT, #name);       \
        return fails(directory, path) ? (type)-1 : real arguments;           \
    }

WRAP(ssize_t, write, (int d, const void *b, size_t n), (d, b, n), d, NULL)
WRAP(ssize_t, pwrite, (int d, const void *b, size_t n, off_t o), (d, b, n, o), d, NULL)
WRAP(ssize_t, pwrite64, (int d, const void *b, size_t n, off64_t o), (d, b, n, o), d, NULL)
WRAP(ssize_t, writev, (int d, const struct iovec *v, int n), (d, v, n), d, NULL)
WRAP(ssize_t, sendfile, (int d, int s, off_t *o, size_t n), (d, s, o, n), d, NULL)
WRAP(int, fsync, (int d), (d), d, NULL)
WRAP(int, fdatasync, (int d), (d), d, NULL)
WRAP(int, ftruncate, (int d, off_t n), (d, n), d, NULL)
WRAP(int, ftruncate64, (int d, off64_t n), (d, n), d, NULL)
WRAP(int, flock, (int d, int k), (d, k), d, NULL)
WRAP(int, rename, (const char *a, const char *b), (a, b), AT_FDCWD, b)
WRAP(int, renameat, (int d, const char *a, int e, const char *b), (d, a, e, b), e, b)
WRAP(int, unlink, (const char *a), (a), AT_FDCWD, a)
WRAP(int, unlinkat, (int d, const char *a, int f), (d, a, f), d, a)
WRAP(int, rmdir, (const char *a), (a), AT_FDCWD, a)
WRAP(int, mkdir, (const char *a, mode_t m), (a, m), AT_FDCWD, a)
WRAP(int, mkdirat, (int d, const char *a, mode_t m), (d, a, m), d, a)

/* Opening counts where it may make a file: reading asks nothing of a full disk. */
#define OPEN(name, parameters, arguments, directory)                         \
    int name parameters {                                                    \
        static int(*real) parameters;                                        \
        mode_t mode = 0;                                                     \
        if (!real) real = (int(*) parameters)dlsym(RTLD_NEXT, #name);        \
        if (flags & (O_CREAT | __O_TMPFILE)) {                               \
            va_list rest;                                                    \
            va_start(rest, flags), mode = va_arg(rest, mode_t), va_end(rest); \
        }                                                                    \
        return flags & O_CREAT && fails(directory, path) ? -1 : real arguments; \
    }

OPEN(open, (const char *path, int flags, ...), (path, flags, mode), AT_FDCWD)
OPEN(open64, (const char *path, int flags, ...), (path, flags, mode), AT_FDCWD)
OPEN(openat, (int directory, const char *path, int flags, ...), (directory, path, flags, mode), directory)
OPEN(openat64, (int directory, const char *path, int flags, ...), (directory, path, flags, mode), directory)
