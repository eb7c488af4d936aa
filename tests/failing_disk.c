/* Preloaded: a file system on which calls fail. `FAILING` is a list such as write=5,flock=37: the calls and their error
   numbers, below the folder `FAILING_FOLDER`, once the file `FAILING_SINCE` exists. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static int is_below(const char *path) {
    const char *folder = getenv("FAILING_FOLDER");
    return path && folder && strncmp(path, folder, strlen(folder)) == 0;
}

static int is_open_below(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0)
        return 0;
    path[size] = 0;
    return is_below(path);
}

static int is_folder(int fd) {
    struct stat found;
    return fstat(fd, &found) == 0 && S_ISDIR(found.st_mode);
}

/* Whether a call fails, and with errno; `is_there` is looked at last. */
static int fails(const char *call, int is_there) {
    const char *since = getenv("FAILING_SINCE"), *all = getenv("FAILING");
    char name[64];
    snprintf(name, sizeof name, "%s=", call);
    const char *found = is_there && all ? strstr(all, name) : NULL;
    if (!found || (found != all && found[-1] != ','))
        return 0;
    int before = errno;
    if (since && faccessat(AT_FDCWD, since, F_OK, 0)) {
        errno = before;
        return 0;
    }
    errno = atoi(found + strlen(name));
    return 1;
}

#define WRITES (O_WRONLY | O_RDWR | O_CREAT)
#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define OPEN(name) \
int name(const char *path, int flags, ...) { \
    REAL(name); va_list more; va_start(more, flags); int mode = va_arg(more, int); va_end(more); \
    return fails("open", (flags & WRITES) && is_below(path)) ? -1 : real(path, flags, mode); }
OPEN(open)
OPEN(open64)
#define OPENAT(name) \
int name(int folder, const char *path, int flags, ...) { \
    REAL(name); va_list more; va_start(more, flags); int mode = va_arg(more, int); va_end(more); \
    return fails("open", (flags & WRITES) && is_below(path)) ? -1 : real(folder, path, flags, mode); }
OPENAT(openat)
OPENAT(openat64)
#define FOPEN(name) \
FILE *name(const char *path, const char *mode) { \
    REAL(name); return fails("open", mode[0] != 'r' && is_below(path)) ? NULL : real(path, mode); }
FOPEN(fopen)
FOPEN(fopen64)

#define ONE(call, name, result, parameters, is_there, arguments) \
result name parameters { REAL(name); return fails(call, is_there) ? -1 : real arguments; }
ONE("write", write, ssize_t, (int fd, const void *data, size_t size), is_open_below(fd), (fd, data, size))
ONE("write", writev, ssize_t, (int fd, const struct iovec *data, int count), is_open_below(fd), (fd, data, count))
ONE("truncate", truncate, int, (const char *path, off_t size), is_below(path), (path, size))
ONE("truncate", truncate64, int, (const char *path, off64_t size), is_below(path), (path, size))
ONE("flock", flock, int, (int fd, int operation), is_open_below(fd), (fd, operation))
ONE("unlink", unlink, int, (const char *path), is_below(path), (path))
ONE("mkdir", mkdir, int, (const char *path, mode_t mode), is_below(path), (path, mode))
ONE("rename", rename, int, (const char *from, const char *to), is_below(to), (from, to))
ONE("link", link, int, (const char *from, const char *to), is_below(to), (from, to))
ONE("link", symlink, int, (const char *from, const char *to), is_below(to), (from, to))
ONE("chmod", chmod, int, (const char *path, mode_t mode), is_below(path), (path, mode))

int fsync(int fd) {
    REAL(fsync);
    int is_there = is_open_below(fd);
    return fails(is_folder(fd) ? "fsync_folder" : "fsync", is_there) ? -1 : real(fd);
}
