/* Preloaded into a command and all it starts: writes down every name that is looked up, every address beyond this
 * machine that is spoken to (both fail, so nothing leaves), and every file that is opened for writing or made; once more
 * where it is temporary and other users could read it.
 *
 * Lines go to the file that SAMKIT_WATCH names: "program<TAB>kind<TAB>what". Native libraries come by here, too; what
 * makes system calls by itself does not.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#undef open
#undef openat
#undef fopen
#undef freopen

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void note(const char *kind, const char *what) {
    const char *path = getenv("SAMKIT_WATCH");
    int before = errno, file;
    char line[2 * PATH_MAX];
    if (path != NULL && (file = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_APPEND | O_CREAT, 0666)) >= 0) {
        int length = snprintf(line, sizeof line, "%s\t%s\t%s\n", program_invocation_short_name, kind, what);
        syscall(SYS_write, file, line, length);
        syscall(SYS_close, file);
    }
    errno = before;
}

/* --- Files: a path is noted once it is there, made absolute and followed through links --- */

static int is_shared(const char *folder) {
    const char *temporary = getenv("TMPDIR");
    return !strcmp(folder, "/tmp") || !strcmp(folder, "/dev/shm") || (temporary != NULL && !strcmp(folder, temporary));
}

/* Whether other users may read a file: by its own mode, and through each folder up to the one that all users share. */
static int is_shown(const char *path) {
    char folder[PATH_MAX], *end;
    struct stat facts;
    if (stat(path, &facts) != 0 || !(facts.st_mode & S_IROTH)) return 0;
    snprintf(folder, sizeof folder, "%s", path);
    while ((end = strrchr(folder, '/')) != NULL && end != folder) {
        *end = '\0';
        if (is_shared(folder)) return 1;
        if (stat(folder, &facts) != 0 || !(facts.st_mode & S_IXOTH)) return 0;
    }
    return 0;
}

static void note_path(int folder, const char *path) {
    char from[64], base[PATH_MAX], whole[2 * PATH_MAX], real[PATH_MAX];
    int before = errno;
    if (path == NULL) return;
    if (path[0] == '/') {
        snprintf(whole, sizeof whole, "%s", path);
    } else {
        snprintf(from, sizeof from, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
        ssize_t length = readlink(from, base, sizeof base - 1);
        snprintf(whole, sizeof whole, "%.*s/%s", length < 0 ? 1 : (int)length, length < 0 ? "?" : base, path);
    }
    path = realpath(whole, real) != NULL ? real : whole;
    note("write", path);
    if (is_shown(path)) note("shown", path);
    errno = before;
}

static int writes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT); }

#define MODE(flags)                                                 \
    mode_t mode = 0;                                                \
    if (flags & (O_CREAT | O_TMPFILE)) {                            \
        va_list rest;                                               \
        va_start(rest, flags);                                      \
        mode = va_arg(rest, mode_t);                                \
        va_end(rest);                                               \
    }

#define OPEN(name)                                                  \
    int name(const char *path, int flags, ...) {                    \
        MODE(flags)                                                 \
        int file = REAL(name)(path, flags, mode);                   \
        if (file >= 0 && writes(flags)) note_path(AT_FDCWD, path);  \
        return file;                                                \
    }
#define OPENAT(name)                                                \
    int name(int folder, const char *path, int flags, ...) {        \
        MODE(flags)                                                 \
        int file = REAL(name)(folder, path, flags, mode);           \
        if (file >= 0 && writes(flags)) note_path(folder, path);    \
        return file;                                                \
    }
#define FOPEN(name)                                                 \
    FILE *name(const char *path, const char *how) {                 \
        FILE *file = REAL(name)(path, how);                         \
        if (file != NULL && strpbrk(how, "wa+") != NULL) note_path(AT_FDCWD, path); \
        return file;                                                \
    }
#define FREOPEN(name)                                               \
    FILE *name(const char *path, const char *how, FILE *old) {      \
        FILE *file = REAL(name)(path, how, old);                    \
        if (file != NULL && strpbrk(how, "wa+") != NULL) note_path(AT_FDCWD, path); \
        return file;                                                \
    }
#define CREAT(name)                                                 \
    int name(const char *path, mode_t mode) {                       \
        int file = REAL(name)(path, mode);                          \
        if (file >= 0) note_path(AT_FDCWD, path);                   \
        return file;                                                \
    }
#define TEMPORARY(name)                                             \
    int name(char *path) {                                          \
        int file = REAL(name)(path);                                \
        if (file >= 0) note_path(AT_FDCWD, path);                   \
        return file;                                                \
    }

OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)
FOPEN(fopen) FOPEN(fopen64) FREOPEN(freopen) FREOPEN(freopen64) CREAT(creat) CREAT(creat64)
TEMPORARY(mkstemp) TEMPORARY(mkstemp64)

int mkdir(const char *path, mode_t mode) {
    int done = REAL(mkdir)(path, mode);
    if (done == 0) note_path(AT_FDCWD, path);
    return done;
}

int mkdirat(int folder, const char *path, mode_t mode) {
    int done = REAL(mkdirat)(folder, path, mode);
    if (done == 0) note_path(folder, path);
    return done;
}

char *mkdtemp(char *path) {
    char *made = REAL(mkdtemp)(path);
    note_path(AT_FDCWD, made);
    return made;
}

int rename(const char *old, const char *new) {
    int done = REAL(rename)(old, new);
    if (done == 0) note_path(AT_FDCWD, new);
    return done;
}

int symlink(const char *target, const char *path) {
    int done = REAL(symlink)(target, path);
    if (done == 0) note_path(AT_FDCWD, path);
    return done;
}

int shm_open(const char *name, int flags, mode_t mode) {
    int file = REAL(shm_open)(name, flags, mode);
    char path[PATH_MAX];
    if (file >= 0 && writes(flags)) {
        snprintf(path, sizeof path, "/dev/shm/%s", name + (name[0] == '/'));
        note_path(AT_FDCWD, path);
    }
    return file;
}

/* --- Names --- */

static int is_far(const char *name) {
    struct in6_addr address;
    if (name == NULL || !strcmp(name, "localhost") || inet_pton(AF_INET, name, &address) == 1) return 0;
    return inet_pton(AF_INET6, name, &address) != 1;
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    if (!is_far(name)) return REAL(getaddrinfo)(name, service, hints, found);
    note("look-up", name);
    return EAI_AGAIN;
}

#define HOST(name, parameters, ...)                                 \
    struct hostent *name parameters {                               \
        if (!is_far(host)) return REAL(name)(host __VA_ARGS__);     \
        note("look-up", host);                                      \
        h_errno = TRY_AGAIN;                                        \
        return NULL;                                                \
    }
#define HOST_R(name, parameters, ...)                               \
    int name parameters {                                           \
        if (!is_far(host)) return REAL(name)(host, __VA_ARGS__);    \
        note("look-up", host);                                      \
        *found = NULL;                                              \
        *error = TRY_AGAIN;                                         \
        return TRY_AGAIN;                                           \
    }
#define ROOM struct hostent *result, char *room, size_t size, struct hostent **found, int *error

HOST(gethostbyname, (const char *host), )
HOST(gethostbyname2, (const char *host, int family), , family)
HOST_R(gethostbyname_r, (const char *host, ROOM), result, room, size, found, error)
HOST_R(gethostbyname2_r, (const char *host, int family, ROOM), family, result, room, size, found, error)

/* --- Addresses: a name server on this machine passes questions on, so port 53 is far wherever it is --- */

static int refuse(const char *how, const struct sockaddr *to) {
    char text[INET6_ADDRSTRLEN] = "", what[128];
    int port = 0, near = 1;
    if (to != NULL && to->sa_family == AF_INET) {
        const struct sockaddr_in *four = (const void *)to;
        port = ntohs(four->sin_port);
        near = ntohl(four->sin_addr.s_addr) >> 24 == 127 || four->sin_addr.s_addr == INADDR_ANY;
        inet_ntop(AF_INET, &four->sin_addr, text, sizeof text);
    } else if (to != NULL && to->sa_family == AF_INET6) {
        const struct sockaddr_in6 *six = (const void *)to;
        port = ntohs(six->sin6_port);
        near = IN6_IS_ADDR_LOOPBACK(&six->sin6_addr) || IN6_IS_ADDR_UNSPECIFIED(&six->sin6_addr) ||
               (IN6_IS_ADDR_V4MAPPED(&six->sin6_addr) && six->sin6_addr.s6_addr[12] == 127);
        inet_ntop(AF_INET6, &six->sin6_addr, text, sizeof text);
    }
    if (near && port != 53) return 0;
    snprintf(what, sizeof what, "%s port %d", text, port);
    note(how, what);
    errno = ENETUNREACH;
    return 1;
}

int connect(int file, const struct sockaddr *to, socklen_t size) {
    return refuse("connect", to) ? -1 : REAL(connect)(file, to, size);
}

ssize_t sendto(int file, const void *data, size_t length, int flags, const struct sockaddr *to, socklen_t size) {
    return refuse("send", to) ? -1 : REAL(sendto)(file, data, length, flags, to, size);
}

ssize_t sendmsg(int file, const struct msghdr *message, int flags) {
    return refuse("send", message->msg_name) ? -1 : REAL(sendmsg)(file, message, flags);
}

int sendmmsg(int file, struct mmsghdr *messages, unsigned int count, int flags) {
    for (unsigned int i = 0; i < count; i++)
        if (refuse("send", messages[i].msg_hdr.msg_name)) return -1;
    return REAL(sendmmsg)(file, messages, count, flags);
}
