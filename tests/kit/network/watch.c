/* LD_PRELOAD: writes every name that is looked up, and every address outside this machine, to $TLKIT_PHONED, and
   refuses it; also for native code, which raises no audit event of Python. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static void note(const char *call, const char *name) {
    const char *path = getenv("TLKIT_PHONED");
    int file = path ? open(path, O_WRONLY | O_CREAT | O_APPEND, 0600) : -1;
    if (file < 0) abort();
    dprintf(file, "%s %s\n", call, name);
    close(file);
}

static int is_numeric(const char *node) {
    unsigned char address[sizeof(struct in6_addr)];
    return inet_pton(AF_INET, node, address) == 1 || inet_pton(AF_INET6, node, address) == 1;
}

static int is_outside(const char *call, const struct sockaddr *address) {
    char text[INET6_ADDRSTRLEN] = "";
    if (address && address->sa_family == AF_INET) {
        const struct in_addr *in = &((const struct sockaddr_in *)address)->sin_addr;
        if (ntohl(in->s_addr) >> 24 == 127) return 0;
        inet_ntop(AF_INET, in, text, sizeof text);
    } else if (address && address->sa_family == AF_INET6) {
        const struct in6_addr *in = &((const struct sockaddr_in6 *)address)->sin6_addr;
        if (IN6_IS_ADDR_LOOPBACK(in)) return 0;
        inet_ntop(AF_INET6, in, text, sizeof text);
    } else {
        return 0;
    }
    note(call, text);
    errno = ENETUNREACH;
    return 1;
}

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    int (*usual)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
    if (node && !is_numeric(node)) {
        note("getaddrinfo", node);
        return EAI_NONAME;
    }
    *(void **)&usual = dlsym(RTLD_NEXT, "getaddrinfo");
    return usual(node, service, hints, found);
}

struct hostent *gethostbyname(const char *name) {
    note("gethostbyname", name);
    return NULL;
}

struct hostent *gethostbyname2(const char *name, int family) {
    (void)family;
    return gethostbyname(name);
}

int gethostbyname_r(const char *name, struct hostent *entry, char *buffer, size_t size, struct hostent **found, int *why) {
    (void)entry, (void)buffer, (void)size;
    note("gethostbyname_r", name);
    *found = NULL;
    *why = HOST_NOT_FOUND;
    return ENOENT;
}

int connect(int descriptor, const struct sockaddr *address, socklen_t length) {
    int (*usual)(int, const struct sockaddr *, socklen_t);
    if (is_outside("connect", address)) return -1;
    *(void **)&usual = dlsym(RTLD_NEXT, "connect");
    return usual(descriptor, address, length);
}

ssize_t sendto(int descriptor, const void *content, size_t size, int flags, const struct sockaddr *address, socklen_t length) {
    ssize_t (*usual)(int, const void *, size_t, int, const struct sockaddr *, socklen_t);
    if (is_outside("sendto", address)) return -1;
    *(void **)&usual = dlsym(RTLD_NEXT, "sendto");
    return usual(descriptor, content, size, flags, address, length);
}
