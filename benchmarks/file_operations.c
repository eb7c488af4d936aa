/* Preloaded by chaos_saves.py: counts what a process does to checkpoints below the folder OPERATIONS_IN, and does
   OPERATIONS_DO (kill, stop, full) at number OPERATIONS_AT. OPERATIONS_LOG gets a line for each. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define FAILS 6 /* calls in a row for which the disk is full */

static int count, owner;

static int is_below(const char *path) {
    const char *folder = getenv("OPERATIONS_IN");
    return path && folder && strncmp(path, folder, strlen(folder)) == 0 && strstr(path, ".pth.tar");
}

static int path_of(int fd, char *path) {
    char link[64];
    if (!getenv("OPERATIONS_IN"))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    path[size < 0 ? 0 : size] = 0;
    return is_below(path);
}

/* Whether a call fails, with errno. */
static int happens(const char *call, const char *path) {
    int before = errno;
    if (owner != getpid()) {
        owner = getpid();
        count = 0;
    }
    int number = __sync_add_and_fetch(&count, 1);
    const char *log = getenv("OPERATIONS_LOG"), *at = getenv("OPERATIONS_AT"), *what = getenv("OPERATIONS_DO");
    if (log) {
        char line[PATH_MAX + 64];
        int size = snprintf(line, sizeof line, "%d %s %s\n", number, call, path);
        int fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND, 0666);
        syscall(SYS_write, fd, line, size);
        syscall(SYS_close, fd);
    }
    int since = at && what ? number - atoi(at) : -1;
    if (since == 0 && strcmp(what, "kill") == 0)
        kill(getpid(), SIGKILL);
    if (since == 0 && strcmp(what, "stop") == 0) {
        kill(getenv("LOCAL_RANK") ? getppid() : getpid(), SIGTERM); /* its launcher */
        usleep(300000); /* the main thread goes on, in the middle of this call */
    }
    if (since >= 0 && since < FAILS && strcmp(what, "full") == 0 && strcmp(call, "unlink") && strcmp(call, "rename")) {
        errno = ENOSPC;
        return 1;
    }
    errno = before;
    return 0;
}

#define WRITES (O_WRONLY | O_RDWR | O_CREAT)
#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define OPEN(name) \
int name(const char *path, int flags, ...) { \
    REAL(name); va_list more; va_start(more, flags); int mode = va_arg(more, int); va_end(more); \
    return (flags & WRITES) && is_below(path) && happens("open", path) ? -1 : real(path, flags, mode); }
OPEN(open)
OPEN(open64)
#define FOPEN(name) \
FILE *name(const char *path, const char *mode) { \
    REAL(name); return mode[0] != 'r' && is_below(path) && happens("open", path) ? NULL : real(path, mode); }
FOPEN(fopen)
FOPEN(fopen64)
#define ON_PATH(call, parameters, path, arguments) \
int call parameters { REAL(call); return is_below(path) && happens(#call, path) ? -1 : real arguments; }
ON_PATH(unlink, (const char *name), name, (name))
ON_PATH(rename, (const char *from, const char *to), to, (from, to))
#define ON_FILE(call, name, result, parameters, arguments) \
result name parameters { \
    REAL(name); char path[PATH_MAX]; return path_of(fd, path) && happens(call, path) ? -1 : real arguments; }
ON_FILE("write", write, ssize_t, (int fd, const void *data, size_t size), (fd, data, size))
ON_FILE("write", writev, ssize_t, (int fd, const struct iovec *data, int number), (fd, data, number))
ON_FILE("fsync", fsync, int, (int fd), (fd))
