/*
 * Loads the library for itself alone, as programs do that find it at run time, and starts and stops a role.
 *
 *     ./load build/capi/lib/libudptunnel.so
 */
#include <dlfcn.h>
#include <stdio.h>

#include <udptunnel.h>

int main(int argc, char **argv)
{
    void *library = argc > 1 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : NULL;
    int (*start)(const struct udptunnel_server_profile *, const struct udptunnel_callbacks *, void *, udptunnel **);
    int (*stop)(udptunnel *);
    const char *(*why)(void);
    struct udptunnel_server_profile profile = UDPTUNNEL_SERVER_PROFILE;
    udptunnel *handle;

    if (library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    *(void **)&start = dlsym(library, "udptunnel_start_udp_server");
    *(void **)&stop = dlsym(library, "udptunnel_stop");
    *(void **)&why = dlsym(library, "udptunnel_why");
    profile.listen = "tcp:0:interface=127.0.0.1";
    if (start(&profile, NULL, NULL, &handle) != UDPTUNNEL_OK) {
        fprintf(stderr, "%s\n", why());
        return 1;
    }
    return stop(handle) != UDPTUNNEL_OK;
}
