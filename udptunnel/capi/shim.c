/*
 * The C side of the library: it finds Python and begins it, copies structs of other versions, and calls the functions of bridge.py.
 *
 * udptunnel.h comes before this, and cffi's part of the library around it. UDPTUNNEL_PYTHON and UDPTUNNEL_VERSION are what
 * build.py found.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WHY_BYTES 1024

/* What bridge.py has; each writes why it has failed to the last argument. */
static int bridge_start_udp_local(const struct udptunnel_local_profile *, const struct udptunnel_callbacks *, void *, udptunnel **,
                                  char *);
static int bridge_start_udp_server(const struct udptunnel_server_profile *, const struct udptunnel_callbacks *, void *,
                                   udptunnel **, char *);
static int bridge_start_tun2socks(const struct udptunnel_tun2socks_profile *, const struct udptunnel_callbacks *, void *,
                                  udptunnel **, char *);
static int bridge_start_l3_tunnel(const struct udptunnel_l3_profile *, const struct udptunnel_callbacks *, void *, udptunnel **,
                                  char *);
static int bridge_stop(udptunnel *, char *);
static long bridge_send(udptunnel *, const struct udptunnel_datagram *, size_t, char *);
static long bridge_send_packets(udptunnel *, const struct udptunnel_packet *, size_t, char *);
static int bridge_close_source(udptunnel *, uint64_t, char *);
static int bridge_get_stats(udptunnel *, struct udptunnel_stats *, char *);
static long bridge_report(udptunnel *, char *, size_t, char *);

static _Thread_local char why[WHY_BYTES];

/* -- Python */

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static int state; /* 0: not begun; 1: begun; otherwise an error */
static char broken[WHY_BYTES];

/* Called by the first words of Python if it can not go on. */
static void udptunnel_broken(const char *text)
{
    state = UDPTUNNEL_ERROR_PYTHON;
    snprintf(broken, sizeof broken, "%s", text);
}

/* Modules of Python look for its functions among what all see. Whoever has loaded this library may have kept it to himself. */
static void show_python(void)
{
    Dl_info found;

    if (dladdr((void *)(uintptr_t)Py_IsInitialized, &found) != 0 && found.dli_fname != NULL)
        dlopen(found.dli_fname, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);
}

/* Python's own module handles SIGINT from its first import on, whatever was asked for; it stays the program's. */
static void import_signal(void)
{
    struct sigaction before;

    sigaction(SIGINT, NULL, &before);
    Py_XDECREF(PyImport_ImportModule("_signal"));
    PyErr_Clear();
    sigaction(SIGINT, &before, NULL);
}

/* Begin Python as the executable would: it finds its modules, those of a virtual environment too. */
static int begin_python(void)
{
    const char *executable = getenv("UDPTUNNEL_PYTHON");
    PyPreConfig first;
    PyStatus status;
    PyConfig config;

    if (executable == NULL || *executable == '\0')
        executable = UDPTUNNEL_PYTHON;
    show_python();
    /* The locale and the streams are the program's. */
    PyPreConfig_InitPythonConfig(&first);
    first.configure_locale = 0;
    first.coerce_c_locale = 0;
    first.utf8_mode = 1;
    first.parse_argv = 0;
    status = Py_PreInitialize(&first);
    PyConfig_InitPythonConfig(&config);
    config.configure_c_stdio = 0;
    config.install_signal_handlers = 0;
    config.parse_argv = 0;
    if (!PyStatus_Exception(status))
        status = PyConfig_SetBytesString(&config, &config.program_name, executable);
    if (!PyStatus_Exception(status))
        status = PyConfig_SetBytesString(&config, &config.executable, executable);
    if (!PyStatus_Exception(status))
        status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    if (PyStatus_Exception(status)) {
        snprintf(broken, sizeof broken, "Python %s: %s; UDPTUNNEL_PYTHON may name another one", executable,
                 status.err_msg != NULL ? status.err_msg : "does not begin");
        return UDPTUNNEL_ERROR_PYTHON;
    }
    import_signal();
    PyEval_SaveThread();
    return 0;
}

/* Begin Python and the bridge, if that has not happened yet. */
static int begin(void)
{
    int found = __atomic_load_n(&state, __ATOMIC_ACQUIRE);

    if (found == 1)
        return UDPTUNNEL_OK;
    pthread_mutex_lock(&turn);
    if (state == 0 && !Py_IsInitialized())
        state = begin_python();
    if (state == 0 && cffi_start_python() != 0)
        udptunnel_broken("Python does not find cffi; UDPTUNNEL_PYTHON may name another one");
    if (state == 0)
        __atomic_store_n(&state, 1, __ATOMIC_RELEASE);
    found = state;
    pthread_mutex_unlock(&turn);
    if (found == 1)
        return UDPTUNNEL_OK;
    snprintf(why, sizeof why, "%s", broken);
    return found;
}

/* -- structs of other versions */

/*
 * Copy a struct that begins with its size: what an older program does not know stays as it is, and what a newer program sets that
 * is not known here is an error.
 */
static int take(void *to, size_t known, const void *from, const char *what)
{
    size_t given, place;

    if (from == NULL) {
        snprintf(why, sizeof why, "%s is NULL", what);
        return UDPTUNNEL_ERROR_ARGUMENT;
    }
    memcpy(&given, from, sizeof given);
    if (given < sizeof given || given > 65536) {
        snprintf(why, sizeof why, "size of %s is %zu: set it with the initializer", what, given);
        return UDPTUNNEL_ERROR_ARGUMENT;
    }
    memcpy(to, from, given < known ? given : known);
    for (place = known; place < given; place++)
        if (((const char *)from)[place] != 0) {
            snprintf(why, sizeof why, "%s says something that this version of the library, " UDPTUNNEL_VERSION ", does not know",
                     what);
            return UDPTUNNEL_ERROR_ARGUMENT;
        }
    memcpy(to, &known, sizeof known);
    return UDPTUNNEL_OK;
}

static int take_callbacks(struct udptunnel_callbacks *to, const struct udptunnel_callbacks *from)
{
    if (from == NULL)
        return UDPTUNNEL_OK;
    return take(to, sizeof *to, from, "callbacks");
}

/* -- what udptunnel.h has */

static int prepare(struct udptunnel_callbacks *own, const struct udptunnel_callbacks *callbacks, udptunnel **handle)
{
    int error = UDPTUNNEL_OK;

    if (handle == NULL) {
        snprintf(why, sizeof why, "handle is NULL");
        return UDPTUNNEL_ERROR_ARGUMENT;
    }
    *handle = NULL;
    error = take_callbacks(own, callbacks);
    return error != UDPTUNNEL_OK ? error : begin();
}

int udptunnel_start_udp_local(const struct udptunnel_local_profile *profile, const struct udptunnel_callbacks *callbacks,
                              void *data, udptunnel **handle)
{
    struct udptunnel_local_profile known = UDPTUNNEL_LOCAL_PROFILE;
    struct udptunnel_callbacks own = UDPTUNNEL_CALLBACKS;
    int error = prepare(&own, callbacks, handle);

    if (error == UDPTUNNEL_OK)
        error = take(&known, sizeof known, profile, "profile");
    return error != UDPTUNNEL_OK ? error : bridge_start_udp_local(&known, &own, data, handle, why);
}

int udptunnel_start_udp_server(const struct udptunnel_server_profile *profile, const struct udptunnel_callbacks *callbacks,
                               void *data, udptunnel **handle)
{
    struct udptunnel_server_profile known = UDPTUNNEL_SERVER_PROFILE;
    struct udptunnel_callbacks own = UDPTUNNEL_CALLBACKS;
    int error = prepare(&own, callbacks, handle);

    if (error == UDPTUNNEL_OK)
        error = take(&known, sizeof known, profile, "profile");
    return error != UDPTUNNEL_OK ? error : bridge_start_udp_server(&known, &own, data, handle, why);
}

int udptunnel_start_tun2socks(const struct udptunnel_tun2socks_profile *profile, const struct udptunnel_callbacks *callbacks,
                              void *data, udptunnel **handle)
{
    struct udptunnel_tun2socks_profile known = UDPTUNNEL_TUN2SOCKS_PROFILE;
    struct udptunnel_callbacks own = UDPTUNNEL_CALLBACKS;
    int error = prepare(&own, callbacks, handle);

    if (error == UDPTUNNEL_OK)
        error = take(&known, sizeof known, profile, "profile");
    return error != UDPTUNNEL_OK ? error : bridge_start_tun2socks(&known, &own, data, handle, why);
}

int udptunnel_start_l3_tunnel(const struct udptunnel_l3_profile *profile, const struct udptunnel_callbacks *callbacks,
                              void *data, udptunnel **handle)
{
    struct udptunnel_l3_profile known = UDPTUNNEL_L3_PROFILE;
    struct udptunnel_callbacks own = UDPTUNNEL_CALLBACKS;
    int error = prepare(&own, callbacks, handle);

    if (error == UDPTUNNEL_OK)
        error = take(&known, sizeof known, profile, "profile");
    return error != UDPTUNNEL_OK ? error : bridge_start_l3_tunnel(&known, &own, data, handle, why);
}

/* Without a role there is no Python to ask. */
static int require(const udptunnel *handle, int isThere)
{
    if (!isThere) {
        snprintf(why, sizeof why, "an argument is NULL");
        return UDPTUNNEL_ERROR_ARGUMENT;
    }
    if (handle == NULL || __atomic_load_n(&state, __ATOMIC_ACQUIRE) != 1) {
        snprintf(why, sizeof why, "there is no such role");
        return UDPTUNNEL_ERROR_HANDLE;
    }
    return UDPTUNNEL_OK;
}

int udptunnel_stop(udptunnel *handle)
{
    int error = require(handle, 1);

    return error != UDPTUNNEL_OK ? error : bridge_stop(handle, why);
}

int udptunnel_send(udptunnel *handle, const void *bytes, size_t size, const char *host, uint16_t port, uint64_t source)
{
    struct udptunnel_datagram datagram = {bytes, size, host, port, source};
    long taken = udptunnel_send_all(handle, &datagram, 1);

    if (taken == 0) {
        snprintf(why, sizeof why, "much is sent at once, and there is no room");
        return UDPTUNNEL_ERROR_FULL;
    }
    return taken < 0 ? (int)taken : UDPTUNNEL_OK;
}

long udptunnel_send_all(udptunnel *handle, const struct udptunnel_datagram *datagrams, size_t count)
{
    int error = require(handle, datagrams != NULL || count == 0);
    size_t place;

    for (place = 0; error == UDPTUNNEL_OK && place < count; place++)
        error = require(handle, datagrams[place].host != NULL && (datagrams[place].bytes != NULL || datagrams[place].size == 0));
    return error != UDPTUNNEL_OK ? error : bridge_send(handle, datagrams, count, why);
}

long udptunnel_send_packets(udptunnel *handle, const struct udptunnel_packet *packets, size_t count)
{
    int error = require(handle, packets != NULL || count == 0);
    size_t place;

    for (place = 0; error == UDPTUNNEL_OK && place < count; place++)
        error = require(handle, packets[place].bytes != NULL || packets[place].size == 0);
    return error != UDPTUNNEL_OK ? error : bridge_send_packets(handle, packets, count, why);
}

int udptunnel_close_source(udptunnel *handle, uint64_t source)
{
    int error = require(handle, 1);

    return error != UDPTUNNEL_OK ? error : bridge_close_source(handle, source, why);
}

int udptunnel_get_stats(udptunnel *handle, struct udptunnel_stats *stats)
{
    struct udptunnel_stats known = UDPTUNNEL_STATS;
    int error = require(handle, stats != NULL);
    size_t given = error == UDPTUNNEL_OK ? stats->size : 0;

    if (error == UDPTUNNEL_OK && given < sizeof given) {
        snprintf(why, sizeof why, "size of stats is %zu: set it with the initializer", given);
        return UDPTUNNEL_ERROR_ARGUMENT;
    }
    if (error == UDPTUNNEL_OK)
        error = bridge_get_stats(handle, &known, why);
    if (error == UDPTUNNEL_OK) {
        memcpy(stats, &known, given < sizeof known ? given : sizeof known);
        stats->size = given;
    }
    return error;
}

long udptunnel_report(udptunnel *handle, char *buffer, size_t size)
{
    int error = require(handle, buffer != NULL || size == 0);

    return error != UDPTUNNEL_OK ? error : bridge_report(handle, buffer, size, why);
}

const char *udptunnel_strerror(int error)
{
    switch (error) {
    case UDPTUNNEL_OK:
        return "all is well";
    case UDPTUNNEL_ERROR_PROFILE:
        return "an option of the profile is wrong";
    case UDPTUNNEL_ERROR_LISTEN:
        return "a socket or a TUN can not be opened";
    case UDPTUNNEL_ERROR_HANDLE:
        return "there is no such role, or it can not do that";
    case UDPTUNNEL_ERROR_ARGUMENT:
        return "an argument is not what it must be";
    case UDPTUNNEL_ERROR_FULL:
        return "there is no room just now";
    case UDPTUNNEL_ERROR_PYTHON:
        return "Python, or what the library needs there, is not found";
    case UDPTUNNEL_ERROR_OTHER:
        return "a mistake of the library's";
    default:
        return "no error of this library";
    }
}

const char *udptunnel_why(void)
{
    return why;
}

const char *udptunnel_version(void)
{
    return UDPTUNNEL_VERSION;
}
