/*
 * Tests for libudptunnel, with cmocka. Each begins with the rule that it shows.
 *
 * Both ends run in this process, and a thread of its own answers every datagram as it came. UDPTUNNEL_STRESS says how many seconds
 * the test with many threads takes.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <udptunnel.h>

#define PATIENCE_SECONDS 60
#define MOST_EVENTS 64
#define LARGEST 65507

static uint16_t echoPort;

/* -- a target */

static void *echo(void *data)
{
    static char bytes[65536];
    int fd = *(int *)data;

    for (;;) {
        struct sockaddr_in from;
        socklen_t size = sizeof from;
        ssize_t length = recvfrom(fd, bytes, sizeof bytes, 0, (struct sockaddr *)&from, &size);

        if (length >= 0)
            sendto(fd, bytes, (size_t)length, 0, (struct sockaddr *)&from, size);
    }
    return NULL;
}

static int setUpTarget(void **state)
{
    static int fd;
    static pthread_t thread;
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof here;
    int room = 8 << 20;

    (void)state;
    fd = socket(AF_INET, SOCK_DGRAM, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    if (bind(fd, (struct sockaddr *)&here, size) != 0 || getsockname(fd, (struct sockaddr *)&here, &size) != 0)
        return -1;
    echoPort = ntohs(here.sin_port);
    return pthread_create(&thread, NULL, echo, &fd);
}

/* -- a host */

struct host {
    pthread_mutex_t turn;
    pthread_cond_t changed;
    udptunnel *handle;
    pthread_t thread;      /* which calls the callbacks */
    int kinds[MOST_EVENTS]; /* of events, log lines apart */
    int events, lines, others;
    int socksFd, udpFd, resumed;
    char socksAddress[100], udpAddress[100], session[100], text[300];
    int blocksPipe;        /* whether SIGPIPE is blocked in that thread */
    int stopAt; /* the kind of event at which it stops the role */
    int stopped; /* what that has returned */
    int stops;   /* how often it has done so */
    uint64_t datagrams, wrong;
    size_t size; /* of the last datagram */
    char bytes[65536];
    char from[100];
    uint64_t source;
    unsigned char *seen; /* by number, if it counts */
    uint64_t packets;
};

static void copy(char *to, size_t size, const char *text)
{
    snprintf(to, size, "%s", text != NULL ? text : "NULL");
}

static void happened(const struct udptunnel_event *event, void *data)
{
    struct host *host = data;

    pthread_mutex_lock(&host->turn);
    if (event->kind == UDPTUNNEL_LOG) {
        host->lines++;
    } else {
        if (host->events == 0) {
            sigset_t blocked;

            host->thread = pthread_self();
            pthread_sigmask(SIG_BLOCK, NULL, &blocked);
            host->blocksPipe = sigismember(&blocked, SIGPIPE);
        }
        host->others += !pthread_equal(host->thread, pthread_self()) || event->handle != host->handle
            || event->size != sizeof *event;
        if (host->events < MOST_EVENTS)
            host->kinds[host->events++] = event->kind;
        if (event->kind == UDPTUNNEL_READY) {
            host->socksFd = event->socks_fd;
            host->udpFd = event->udp_fd;
            copy(host->socksAddress, sizeof host->socksAddress, event->socks_address);
            copy(host->udpAddress, sizeof host->udpAddress, event->udp_address);
        }
        if (event->kind == UDPTUNNEL_SESSION_UP) {
            host->resumed = event->resumed;
            copy(host->session, sizeof host->session, event->session);
        }
    }
    pthread_cond_broadcast(&host->changed);
    pthread_mutex_unlock(&host->turn);
    if (host->stopAt != 0 && event->kind == host->stopAt) {
        int stopped = udptunnel_stop(event->handle);

        pthread_mutex_lock(&host->turn);
        host->stopped = stopped;
        host->stops++;
        pthread_cond_broadcast(&host->changed);
        pthread_mutex_unlock(&host->turn);
    }
}

static void received(const struct udptunnel_datagram *datagrams, size_t count, void *data)
{
    struct host *host = data;
    size_t place;
    uint64_t number;

    pthread_mutex_lock(&host->turn);
    for (place = 0; place < count; place++) {
        const struct udptunnel_datagram *each = &datagrams[place];

        host->datagrams++;
        host->size = each->size;
        host->source = each->source;
        memcpy(host->bytes, each->bytes, each->size);
        snprintf(host->from, sizeof host->from, "%s:%d", each->host, each->port);
        if (host->seen != NULL) {
            memcpy(&number, each->bytes, sizeof number);
            host->wrong += host->seen[number]++ != 0 || number % 10 != each->source;
        }
    }
    pthread_cond_broadcast(&host->changed);
    pthread_mutex_unlock(&host->turn);
}

static void packetsReceived(const struct udptunnel_packet *packets, size_t count, void *data)
{
    struct host *host = data;

    pthread_mutex_lock(&host->turn);
    host->packets += count;
    host->size = packets[count - 1].size;
    memcpy(host->bytes, packets[count - 1].bytes, packets[count - 1].size);
    pthread_cond_broadcast(&host->changed);
    pthread_mutex_unlock(&host->turn);
}

static struct host *newHost(void)
{
    struct host *host = calloc(1, sizeof *host);

    assert_non_null(host);
    pthread_mutex_init(&host->turn, NULL);
    pthread_cond_init(&host->changed, NULL);
    return host;
}

static void freeHost(struct host *host)
{
    pthread_mutex_destroy(&host->turn);
    pthread_cond_destroy(&host->changed);
    free(host->seen);
    free(host);
}

static struct udptunnel_callbacks callbacksOf(void)
{
    struct udptunnel_callbacks callbacks = UDPTUNNEL_CALLBACKS;

    callbacks.happened = happened;
    callbacks.datagrams_received = received;
    return callbacks;
}

/* Wait until a figure of a host's is as large as this. */
#define AWAIT(host, figure, least) awaitFigure(host, &(host)->figure, sizeof(host)->figure, least, #figure)

static uint64_t figure(const void *place, size_t size)
{
    return size == sizeof(int) ? (uint64_t) * (const int *)place : *(const uint64_t *)place;
}

static void awaitFigure(struct host *host, const void *place, size_t size, uint64_t least, const char *what)
{
    struct timespec until;
    int late = 0;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += PATIENCE_SECONDS;
    pthread_mutex_lock(&host->turn);
    while (figure(place, size) < least && !late)
        late = pthread_cond_timedwait(&host->changed, &host->turn, &until) == ETIMEDOUT;
    pthread_mutex_unlock(&host->turn);
    if (late) {
        static char report[4000];

        if (udptunnel_report(host->handle, report, sizeof report) > 0)
            print_error("%s\n", report);
        fail_msg("%s is not %llu", what, (unsigned long long)least);
    }
}

static void assertEvents(struct host *host, const int *kinds, int count)
{
    int place;

    AWAIT(host, events, (uint64_t)count);
    assert_int_equal(host->events, count);
    for (place = 0; place < count; place++)
        assert_int_equal(host->kinds[place], kinds[place]);
}

/* -- both ends */

/* However slow the machine is, nothing is dropped because it has waited for long. */
static const struct udptunnel_option PATIENT[] = {{"queue-age", "60000"}, {"delay", "0"}};

static udptunnel *startServer(struct host *host, const char *listen)
{
    struct udptunnel_server_profile profile = UDPTUNNEL_SERVER_PROFILE;
    struct udptunnel_callbacks callbacks = callbacksOf();

    profile.listen = listen;
    profile.allow = "127.0.0.0/8";
    profile.options = PATIENT;
    profile.option_count = 2;
    assert_int_equal(udptunnel_start_udp_server(&profile, &callbacks, host, &host->handle), UDPTUNNEL_OK);
    return host->handle;
}

static udptunnel *startLocal(struct host *host, const struct host *server)
{
    struct udptunnel_local_profile profile = UDPTUNNEL_LOCAL_PROFILE;
    struct udptunnel_callbacks callbacks = callbacksOf();
    char endpoint[110];

    snprintf(endpoint, sizeof endpoint, "tcp:%s", server->socksAddress);
    profile.server = endpoint;
    profile.socks = "none";
    profile.options = PATIENT;
    profile.option_count = 2;
    assert_int_equal(udptunnel_start_udp_local(&profile, &callbacks, host, &host->handle), UDPTUNNEL_OK);
    return host->handle;
}

struct pair {
    struct host *server, *local;
};

static const char ANYWHERE[] = "tcp:0:interface=127.0.0.1";

static struct pair startPair(void)
{
    struct pair pair = {newHost(), newHost()};

    startServer(pair.server, ANYWHERE);
    startLocal(pair.local, pair.server);
    AWAIT(pair.local, events, 2);
    return pair;
}

static void stopPair(struct pair pair)
{
    assert_int_equal(udptunnel_stop(pair.local->handle), UDPTUNNEL_OK);
    assert_int_equal(udptunnel_stop(pair.server->handle), UDPTUNNEL_OK);
    assert_int_equal(pair.local->others + pair.server->others, 0);
    freeHost(pair.local);
    freeHost(pair.server);
}

static int sendText(udptunnel *local, const char *text, uint64_t source)
{
    return udptunnel_send(local, text, strlen(text), "127.0.0.1", echoPort, source);
}

/* -- beginning */

/* Before a role is started, its host is told what is open; descriptors that there are none of are -1. */
static void test_start(void **state)
{
    struct host *server = newHost(), *local = newHost();
    struct udptunnel_local_profile profile = UDPTUNNEL_LOCAL_PROFILE;
    struct udptunnel_callbacks callbacks = callbacksOf();
    struct sockaddr_in bound;
    socklen_t size = sizeof bound;

    (void)state;
    assert_non_null(startServer(server, ANYWHERE));
    assert_int_equal(server->events, 1);
    assert_int_equal(server->kinds[0], UDPTUNNEL_READY);
    assert_int_equal(server->udpFd, UDPTUNNEL_NO_FD);
    assert_string_equal(server->udpAddress, "NULL");
    assert_int_equal(getsockname(server->socksFd, (struct sockaddr *)&bound, &size), 0);
    assert_int_equal(ntohs(bound.sin_port), atoi(strrchr(server->socksAddress, ':') + 1));

    profile.socks = "none";
    profile.forward = "127.0.0.1:0=127.0.0.1:9";
    assert_int_equal(udptunnel_start_udp_local(&profile, &callbacks, local, &local->handle), UDPTUNNEL_OK);
    assert_int_equal(local->socksFd, UDPTUNNEL_NO_FD);
    assert_int_equal(getsockname(local->udpFd, (struct sockaddr *)&bound, &size), 0);
    assert_int_equal(ntohs(bound.sin_port), atoi(strrchr(local->udpAddress, ':') + 1));
    assert_true(local->lines > 0);
    stopPair((struct pair){server, local});
}

/* Callbacks come in order, from one thread that is not ours, and nothing follows after the role was stopped. */
static void test_inOrder(void **state)
{
    const int ofLocal[] = {UDPTUNNEL_READY, UDPTUNNEL_SESSION_UP, UDPTUNNEL_SESSION_DOWN, UDPTUNNEL_STOPPED};
    struct pair pair = startPair();

    (void)state;
    assert_false(pthread_equal(pair.local->thread, pthread_self()));
    assert_true(pthread_equal(pair.local->thread, pair.server->thread));
    assert_int_equal(udptunnel_stop(pair.local->handle), UDPTUNNEL_OK);
    assert_int_equal(pair.local->events, 4);
    assertEvents(pair.local, ofLocal, 4);
    AWAIT(pair.server, events, 3);
    assert_int_equal(udptunnel_stop(pair.server->handle), UDPTUNNEL_OK);
    assertEvents(pair.server, ofLocal, 4);
    assert_string_equal(pair.local->session, pair.server->session);
    freeHost(pair.local);
    freeHost(pair.server);
}

/* A role can be started without anybody who is told. */
static void test_silent(void **state)
{
    struct udptunnel_server_profile profile = UDPTUNNEL_SERVER_PROFILE;
    struct udptunnel_callbacks callbacks = UDPTUNNEL_CALLBACKS;
    udptunnel *handle;

    (void)state;
    profile.listen = ANYWHERE;
    assert_int_equal(udptunnel_start_udp_server(&profile, NULL, NULL, &handle), UDPTUNNEL_OK);
    assert_int_equal(udptunnel_stop(handle), UDPTUNNEL_OK);
    assert_int_equal(udptunnel_start_udp_server(&profile, &callbacks, NULL, &handle), UDPTUNNEL_OK);
    assert_int_equal(udptunnel_stop(handle), UDPTUNNEL_OK);
}

/* A profile that is wrong is refused, with the option, its value and what is expected; then there is no handle. */
static void test_badProfile(void **state)
{
    struct udptunnel_option options[] = {{"queue-age", "none"}};
    struct udptunnel_server_profile profile = UDPTUNNEL_SERVER_PROFILE;
    struct udptunnel_callbacks callbacks = UDPTUNNEL_CALLBACKS;
    struct udptunnel_l3_profile l3 = UDPTUNNEL_L3_PROFILE;
    struct host *other = newHost();
    udptunnel *handle = (udptunnel *)&profile;
    char place[120];

    (void)state;
    profile.listen = ANYWHERE;
    profile.options = options;
    profile.option_count = 1;
    assert_int_equal(udptunnel_start_udp_server(&profile, NULL, NULL, &handle), UDPTUNNEL_ERROR_PROFILE);
    assert_null(handle);
    assert_string_equal(udptunnel_why(), "--queue-age none: expected a number from 1 to 60000");
    options[0].name = "colour";
    assert_int_equal(udptunnel_start_udp_server(&profile, NULL, NULL, &handle), UDPTUNNEL_ERROR_PROFILE);
    assert_non_null(strstr(udptunnel_why(), "unknown option colour"));
    options[0].name = "queue-age";
    options[0].value = NULL;
    assert_int_equal(udptunnel_start_udp_server(&profile, NULL, NULL, &handle), UDPTUNNEL_ERROR_PROFILE);
    /* Whoever says "false" does not want it turned on. */
    options[0] = (struct udptunnel_option){"insecure-no-auth", "false"};
    assert_int_equal(udptunnel_start_udp_server(&profile, NULL, NULL, &handle), UDPTUNNEL_ERROR_PROFILE);
    assert_non_null(strstr(udptunnel_why(), "option insecureNoAuth takes no value"));
    profile.option_count = 0;
    profile.listen = "nonsense";
    assert_int_equal(udptunnel_start_udp_server(&profile, NULL, NULL, &handle), UDPTUNNEL_ERROR_PROFILE);

    startServer(other, ANYWHERE);
    snprintf(place, sizeof place, "tcp:%s:interface=127.0.0.1", strrchr(other->socksAddress, ':') + 1);
    profile.listen = place;
    assert_int_equal(udptunnel_start_udp_server(&profile, NULL, NULL, &handle), UDPTUNNEL_ERROR_LISTEN);
    assert_null(handle);
    assert_int_equal(udptunnel_stop(other->handle), UDPTUNNEL_OK);
    freeHost(other);

    profile.listen = ANYWHERE;
    callbacks.log_level = 6;
    assert_int_equal(udptunnel_start_udp_server(&profile, &callbacks, NULL, &handle), UDPTUNNEL_ERROR_ARGUMENT);
    callbacks.log_level = 0;
    callbacks.statistics_seconds = -1;
    assert_int_equal(udptunnel_start_udp_server(&profile, &callbacks, NULL, &handle), UDPTUNNEL_ERROR_ARGUMENT);
    assert_int_equal(udptunnel_start_l3_tunnel(&l3, NULL, NULL, &handle), UDPTUNNEL_ERROR_PROFILE);
    assert_non_null(strstr(udptunnel_why(), "--interface"));
    l3.interface = "lo";
    l3.capture = "10.0.0.0/33";
    assert_int_equal(udptunnel_start_l3_tunnel(&l3, NULL, NULL, &handle), UDPTUNNEL_ERROR_PROFILE);
    assert_non_null(strstr(udptunnel_why(), "--capture 10.0.0.0/33"));
    assert_int_equal(udptunnel_start_udp_server(NULL, NULL, NULL, &handle), UDPTUNNEL_ERROR_ARGUMENT);
    assert_int_equal(udptunnel_start_udp_server(&profile, NULL, NULL, NULL), UDPTUNNEL_ERROR_ARGUMENT);
}

/* A struct may be of an older header, or of a newer one that says nothing new. */
static void test_versions(void **state)
{
    struct {
        struct udptunnel_server_profile known;
        char more[16];
    } profile = {UDPTUNNEL_SERVER_PROFILE, {0}};
    struct udptunnel_stats stats;
    udptunnel *handle;

    (void)state;
    profile.known.listen = ANYWHERE;
    profile.known.deny = "nonsense";
    profile.known.size = offsetof(struct udptunnel_server_profile, deny);
    assert_int_equal(udptunnel_start_udp_server(&profile.known, NULL, NULL, &handle), UDPTUNNEL_OK);
    memset(&stats, 0x55, sizeof stats);
    stats.size = offsetof(struct udptunnel_stats, received);
    assert_int_equal(udptunnel_get_stats(handle, &stats), UDPTUNNEL_OK);
    assert_int_equal(stats.up, 1);
    assert_int_equal(stats.sent, 0);
    assert_true(stats.received == 0x5555555555555555);
    stats.size = 0;
    assert_int_equal(udptunnel_get_stats(handle, &stats), UDPTUNNEL_ERROR_ARGUMENT);
    assert_non_null(strstr(udptunnel_why(), "initializer"));
    assert_int_equal(udptunnel_stop(handle), UDPTUNNEL_OK);

    profile.known.deny = NULL;
    profile.known.size = sizeof profile;
    assert_int_equal(udptunnel_start_udp_server(&profile.known, NULL, NULL, &handle), UDPTUNNEL_OK);
    assert_int_equal(udptunnel_stop(handle), UDPTUNNEL_OK);
    profile.more[15] = 1;
    assert_int_equal(udptunnel_start_udp_server(&profile.known, NULL, NULL, &handle), UDPTUNNEL_ERROR_ARGUMENT);
    profile.known.size = 0;
    assert_int_equal(udptunnel_start_udp_server(&profile.known, NULL, NULL, &handle), UDPTUNNEL_ERROR_ARGUMENT);
    assert_non_null(strstr(udptunnel_why(), "initializer"));
}

#define SIGNALS 31

static struct sigaction atFirst[SIGNALS + 1];

static void noteSignals(void)
{
    int number;

    for (number = 1; number <= SIGNALS; number++)
        sigaction(number, NULL, &atFirst[number]);
}

/* No signal of the program's is handled by the library. SIGPIPE would end it, and is blocked in the library's thread only. */
static void test_signals(void **state)
{
    struct pair pair = startPair();
    struct sigaction found;
    sigset_t blocked;
    int number;

    (void)state;
    for (number = 1; number <= SIGNALS; number++) {
        if (number == SIGSEGV || number == SIGILL || number == SIGBUS || number == SIGFPE || number == SIGSYS)
            continue; /* cmocka's own */
        sigaction(number, NULL, &found);
        if (found.sa_handler != atFirst[number].sa_handler)
            fail_msg("signal %d is handled", number);
    }
    pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    assert_false(sigismember(&blocked, SIGPIPE));
    assert_true(pair.local->blocksPipe);
    stopPair(pair);
}

extern char **environ;

static int environmentSize(void)
{
    int count = 0;

    while (environ[count] != NULL)
        count++;
    return count;
}

static int environmentAtFirst;

/* The locale and the environment stay the program's. */
static void test_untouched(void **state)
{
    struct pair pair = startPair();

    (void)state;
    assert_string_equal(setlocale(LC_ALL, NULL), "C");
    assert_int_equal(environmentSize(), environmentAtFirst);
    stopPair(pair);
}

/* -- datagrams */

/* A datagram of any size comes back as it was sent, with its source, and the address that has answered. */
static void test_sizes(void **state)
{
    static const size_t SIZES[] = {0, 1, 1400, 9000, LARGEST};
    static char bytes[LARGEST + 1];
    struct pair pair = startPair();
    char from[100];
    size_t place;

    (void)state;
    for (place = 0; place < LARGEST; place++)
        bytes[place] = (char)(place * 7);
    snprintf(from, sizeof from, "127.0.0.1:%d", echoPort);
    for (place = 0; place < sizeof SIZES / sizeof SIZES[0]; place++) {
        uint64_t source = UINT64_MAX - place;

        assert_int_equal(udptunnel_send(pair.local->handle, bytes, SIZES[place], "127.0.0.1", echoPort, source), UDPTUNNEL_OK);
        AWAIT(pair.local, datagrams, place + 1);
        assert_int_equal(pair.local->size, SIZES[place]);
        assert_memory_equal(pair.local->bytes, bytes, SIZES[place]);
        assert_true(pair.local->source == source);
        assert_string_equal(pair.local->from, from);
    }
    stopPair(pair);
}

/* What can not be sent is refused. */
static void test_refused(void **state)
{
    static char bytes[LARGEST + 1];
    struct pair pair = startPair();
    udptunnel *local = pair.local->handle;

    (void)state;
    assert_int_equal(udptunnel_send(local, bytes, LARGEST + 1, "127.0.0.1", 9, 1), UDPTUNNEL_ERROR_ARGUMENT);
    assert_non_null(strstr(udptunnel_why(), "65507"));
    assert_int_equal(udptunnel_send(local, bytes, 1, "127.0.0.1", 0, 1), UDPTUNNEL_ERROR_ARGUMENT);
    assert_int_equal(udptunnel_send(local, bytes, 1, "no name", 9, 1), UDPTUNNEL_ERROR_ARGUMENT);
    assert_int_equal(udptunnel_send(local, bytes, 1, "\xff\xfe", 9, 1), UDPTUNNEL_ERROR_ARGUMENT);
    assert_int_equal(udptunnel_send(local, bytes, 1, NULL, 9, 1), UDPTUNNEL_ERROR_ARGUMENT);
    assert_int_equal(udptunnel_send(local, NULL, 1, "127.0.0.1", 9, 1), UDPTUNNEL_ERROR_ARGUMENT);
    assert_int_equal(udptunnel_send_all(local, NULL, 1), UDPTUNNEL_ERROR_ARGUMENT);
    assert_int_equal(udptunnel_send_all(local, NULL, 0), 0);
    assert_int_equal(udptunnel_send(pair.server->handle, bytes, 1, "127.0.0.1", 9, 1), UDPTUNNEL_ERROR_HANDLE);
    assert_int_equal(udptunnel_send(NULL, bytes, 1, "127.0.0.1", 9, 1), UDPTUNNEL_ERROR_HANDLE);
    assert_int_equal(udptunnel_send((udptunnel *)bytes, bytes, 1, "127.0.0.1", 9, 1), UDPTUNNEL_ERROR_HANDLE);
    assert_int_equal(udptunnel_send_packets(local, NULL, 0), UDPTUNNEL_ERROR_HANDLE);
    stopPair(pair);
}

/* Of more than there is room for, so many are taken as there is. */
static void test_full(void **state)
{
    static struct udptunnel_datagram many[10000];
    struct pair pair = startPair();
    size_t place;
    long taken;

    (void)state;
    for (place = 0; place < 10000; place++)
        many[place] = (struct udptunnel_datagram){"x", 1, "127.0.0.1", 9, 1};
    taken = udptunnel_send_all(pair.local->handle, many, 10000);
    assert_in_range(taken, 1, 9999);
    stopPair(pair);
}

/* A source that was closed begins anew; an unknown one may be closed. */
static void test_closeSource(void **state)
{
    struct pair pair = startPair();

    (void)state;
    assert_int_equal(sendText(pair.local->handle, "x", 1), UDPTUNNEL_OK);
    AWAIT(pair.local, datagrams, 1);
    assert_int_equal(udptunnel_close_source(pair.local->handle, 1), UDPTUNNEL_OK);
    assert_int_equal(udptunnel_close_source(pair.local->handle, 7), UDPTUNNEL_OK);
    assert_int_equal(sendText(pair.local->handle, "x", 1), UDPTUNNEL_OK);
    AWAIT(pair.local, datagrams, 2);
    stopPair(pair);
}

/* Two pairs in one process have nothing in common. */
static void test_twoInstances(void **state)
{
    struct pair one = startPair(), two = startPair();

    (void)state;
    assert_ptr_not_equal(one.local->handle, two.local->handle);
    assert_int_equal(sendText(one.local->handle, "one", 5), UDPTUNNEL_OK);
    assert_int_equal(sendText(two.local->handle, "two", 5), UDPTUNNEL_OK);
    AWAIT(one.local, datagrams, 1);
    AWAIT(two.local, datagrams, 1);
    assert_memory_equal(one.local->bytes, "one", 3);
    assert_memory_equal(two.local->bytes, "two", 3);
    stopPair(one);
    assert_int_equal(sendText(two.local->handle, "still", 5), UDPTUNNEL_OK);
    AWAIT(two.local, datagrams, 2);
    assert_int_equal(two.local->datagrams, 2);
    stopPair(two);
}

#define MANY 10000
#define WINDOW 256
#define BATCH 32

/* Ten thousand datagrams go there and come back, none twice, each for its source. */
static void test_tenThousand(void **state)
{
    struct udptunnel_datagram batch[BATCH];
    uint64_t numbers[BATCH], sent = 0;
    struct pair pair = startPair();
    struct udptunnel_stats stats = UDPTUNNEL_STATS;

    (void)state;
    pair.local->seen = calloc(MANY, 1);
    while (sent < MANY) {
        size_t count = 0;
        long taken;

        AWAIT(pair.local, datagrams, sent > WINDOW ? sent - WINDOW : 0);
        for (; count < BATCH && sent + count < MANY; count++) {
            numbers[count] = sent + count;
            batch[count] =
                (struct udptunnel_datagram){&numbers[count], sizeof(uint64_t), "127.0.0.1", echoPort, (sent + count) % 10};
        }
        taken = udptunnel_send_all(pair.local->handle, batch, count);
        assert_true(taken >= 0);
        sent += (uint64_t)taken;
    }
    AWAIT(pair.local, datagrams, MANY);
    assert_int_equal(pair.local->wrong, 0);
    assert_int_equal(pair.local->datagrams, MANY);
    assert_int_equal(udptunnel_get_stats(pair.local->handle, &stats), UDPTUNNEL_OK);
    assert_int_equal(stats.sent, MANY);
    assert_int_equal(stats.received, MANY);
    assert_int_equal(stats.dropped, 0);
    assert_int_equal(stats.links, 1);
    assert_int_equal(stats.associations, 10);
    stopPair(pair);
}

/* -- the end */

/* A role that was stopped is unknown to every function, and so is what never was one. */
static void test_stopped(void **state)
{
    struct udptunnel_stats stats = UDPTUNNEL_STATS;
    struct pair pair = startPair();
    udptunnel *local = pair.local->handle;

    (void)state;
    assert_int_equal(udptunnel_stop(local), UDPTUNNEL_OK);
    assert_int_equal(udptunnel_stop(local), UDPTUNNEL_ERROR_HANDLE);
    assert_int_equal(udptunnel_stop(NULL), UDPTUNNEL_ERROR_HANDLE);
    assert_int_equal(sendText(local, "x", 1), UDPTUNNEL_ERROR_HANDLE);
    assert_int_equal(udptunnel_close_source(local, 1), UDPTUNNEL_ERROR_HANDLE);
    assert_int_equal(udptunnel_get_stats(local, &stats), UDPTUNNEL_ERROR_HANDLE);
    assert_int_equal(udptunnel_report(local, NULL, 0), UDPTUNNEL_ERROR_HANDLE);
    assert_int_equal(udptunnel_stop(pair.server->handle), UDPTUNNEL_OK);
    freeHost(pair.local);
    freeHost(pair.server);
}

/* A role may be stopped by its own callbacks, the first one included; that it is done is told. */
static void test_stopInside(void **state)
{
    struct host *server = newHost(), *first = newHost(), *second = newHost();

    (void)state;
    first->stopAt = UDPTUNNEL_READY;
    second->stopAt = UDPTUNNEL_SESSION_UP;
    first->stopped = second->stopped = 1;
    startServer(server, ANYWHERE);
    startLocal(first, server);
    startLocal(second, server);
    assertEvents(first, (const int[]){UDPTUNNEL_READY, UDPTUNNEL_STOPPED}, 2);
    AWAIT(second, events, 4);
    assert_int_equal(second->kinds[3], UDPTUNNEL_STOPPED);
    assert_int_equal(first->stopped, UDPTUNNEL_OK);
    assert_int_equal(second->stopped, UDPTUNNEL_OK);
    assert_int_equal(udptunnel_stop(first->handle), UDPTUNNEL_ERROR_HANDLE);
    assert_int_equal(udptunnel_stop(server->handle), UDPTUNNEL_OK);
    freeHost(first);
    freeHost(second);
    freeHost(server);
}

static void slowly(const struct udptunnel_event *event, void *data)
{
    const struct timespec pause = {0, 20000000};

    if (event->kind == UDPTUNNEL_STOPPED)
        nanosleep(&pause, NULL);
    happened(event, data);
}

/* Whoever stops a role that another one has begun to stop gets an error, but not before the last callback has returned. */
static void test_stopTwice(void **state)
{
    const int kinds[] = {UDPTUNNEL_READY, UDPTUNNEL_SESSION_UP, UDPTUNNEL_SESSION_DOWN, UDPTUNNEL_STOPPED};
    struct udptunnel_local_profile profile = UDPTUNNEL_LOCAL_PROFILE;
    struct udptunnel_callbacks callbacks = callbacksOf();
    struct host *server = newHost(), *local = newHost();
    char endpoint[110];

    (void)state;
    startServer(server, ANYWHERE);
    snprintf(endpoint, sizeof endpoint, "tcp:%s", server->socksAddress);
    profile.server = endpoint;
    profile.socks = "none";
    callbacks.happened = slowly;
    local->stopAt = UDPTUNNEL_SESSION_UP;
    assert_int_equal(udptunnel_start_udp_local(&profile, &callbacks, local, &local->handle), UDPTUNNEL_OK);
    AWAIT(local, stops, 1);
    assert_int_equal(udptunnel_stop(local->handle), UDPTUNNEL_ERROR_HANDLE);
    assert_int_equal(local->events, 4);
    assertEvents(local, kinds, 4);
    assert_int_equal(local->stopped, UDPTUNNEL_OK);
    assert_int_equal(udptunnel_stop(local->handle), UDPTUNNEL_ERROR_HANDLE);
    assert_int_equal(udptunnel_stop(server->handle), UDPTUNNEL_OK);
    freeHost(local);
    freeHost(server);
}

struct stopper {
    pthread_barrier_t *start;
    udptunnel *handle;
    int result;
};

static void *stopAtOnce(void *data)
{
    struct stopper *stopper = data;

    pthread_barrier_wait(stopper->start);
    stopper->result = udptunnel_stop(stopper->handle);
    return NULL;
}

#define STOPPERS 4

/* Of several threads that stop a role at once, one does it, and the others are told that it was stopped. */
static void test_stopAtOnce(void **state)
{
    struct stopper stoppers[STOPPERS];
    pthread_t threads[STOPPERS];
    pthread_barrier_t start;
    int place, turn;

    (void)state;
    pthread_barrier_init(&start, NULL, STOPPERS);
    for (turn = 0; turn < 10; turn++) {
        struct host *host = newHost();
        int sum = 0;

        startServer(host, ANYWHERE);
        for (place = 0; place < STOPPERS; place++) {
            stoppers[place] = (struct stopper){&start, host->handle, 1};
            assert_int_equal(pthread_create(&threads[place], NULL, stopAtOnce, &stoppers[place]), 0);
        }
        for (place = 0; place < STOPPERS; place++) {
            pthread_join(threads[place], NULL);
            sum += stoppers[place].result;
        }
        assert_int_equal(sum, (STOPPERS - 1) * UDPTUNNEL_ERROR_HANDLE);
        assertEvents(host, (const int[]){UDPTUNNEL_READY, UDPTUNNEL_STOPPED}, 2);
        freeHost(host);
    }
    pthread_barrier_destroy(&start);
}

/* A server that is started again at the same place is found again, and the host hears that external ports are new ones. */
static void test_restart(void **state)
{
    const int kinds[] = {UDPTUNNEL_READY, UDPTUNNEL_SESSION_UP, UDPTUNNEL_SESSION_DOWN, UDPTUNNEL_SESSION_UP,
                         UDPTUNNEL_MAPPINGS_LOST};
    struct pair pair = startPair();
    char place[120];

    (void)state;
    snprintf(place, sizeof place, "tcp:%s:interface=127.0.0.1", strrchr(pair.server->socksAddress, ':') + 1);
    assert_int_equal(sendText(pair.local->handle, "x", 1), UDPTUNNEL_OK);
    AWAIT(pair.local, datagrams, 1);
    assert_int_equal(udptunnel_stop(pair.server->handle), UDPTUNNEL_OK);
    AWAIT(pair.local, events, 3);
    freeHost(pair.server);
    pair.server = newHost();
    startServer(pair.server, place);
    assertEvents(pair.local, kinds, 5);
    assert_int_equal(sendText(pair.local->handle, "x", 1), UDPTUNNEL_OK);
    AWAIT(pair.local, datagrams, 2);
    stopPair(pair);
}

/* -- figures, texts */

/* Figures come as often as was asked for, in a struct and as JSON that may be cut. */
static void test_figures(void **state)
{
    struct udptunnel_server_profile profile = UDPTUNNEL_SERVER_PROFILE;
    struct udptunnel_callbacks callbacks = callbacksOf();
    struct udptunnel_stats stats = UDPTUNNEL_STATS;
    struct host *host = newHost();
    static char report[20000];
    char small[10];
    long length;

    (void)state;
    profile.listen = ANYWHERE;
    callbacks.statistics_seconds = 0.01;
    assert_int_equal(udptunnel_start_udp_server(&profile, &callbacks, host, &host->handle), UDPTUNNEL_OK);
    AWAIT(host, events, 3);
    assert_int_equal(host->kinds[2], UDPTUNNEL_STATISTICS);
    assert_int_equal(udptunnel_get_stats(host->handle, &stats), UDPTUNNEL_OK);
    assert_int_equal(stats.up, 1);
    length = udptunnel_report(host->handle, report, sizeof report);
    assert_int_equal(length, strlen(report));
    assert_non_null(strstr(report, "\"role\": \"udp-server\""));
    assert_int_equal(udptunnel_report(host->handle, NULL, 0), length);
    assert_int_equal(udptunnel_report(host->handle, small, sizeof small), length);
    assert_memory_equal(small, "{\"role\": \0", 10);
    assert_int_equal(udptunnel_get_stats(host->handle, NULL), UDPTUNNEL_ERROR_ARGUMENT);
    assert_int_equal(udptunnel_stop(host->handle), UDPTUNNEL_OK);
    freeHost(host);
}

/* Every error has a text of its own, and so has what is none. */
static void test_texts(void **state)
{
    int one, other;

    (void)state;
    for (one = -8; one <= 1; one++)
        for (other = -8; other < one; other++)
            if (!(one == 1 && other == -8))
                assert_string_not_equal(udptunnel_strerror(one), udptunnel_strerror(other));
    assert_true(strlen(udptunnel_version()) > 0);
}

/* -- packets */

static uint16_t sum(const unsigned char *bytes, size_t size)
{
    uint32_t total = 0;
    size_t place;

    for (place = 0; place + 1 < size; place += 2)
        total += (uint32_t)(bytes[place] << 8 | bytes[place + 1]);
    while (total >> 16)
        total = (total & 0xffff) + (total >> 16);
    return (uint16_t)~total;
}

/* Packets that are handed in are answered by packets: here, an echo request that goes into the tunnel's gateway. */
static void test_packets(void **state)
{
    /* IPv4, 28 bytes, ICMP, 10.5.0.2 to 192.0.2.1; ICMP echo request 1, 1. */
    unsigned char ping[] = {0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0, 10, 5, 0, 2, 192, 0, 2, 1, 8, 0, 0, 0, 0, 1, 0, 1};
    struct udptunnel_tun2socks_profile profile = UDPTUNNEL_TUN2SOCKS_PROFILE;
    struct udptunnel_callbacks callbacks = callbacksOf();
    struct udptunnel_packet packets[2] = {{ping, sizeof ping}, {ping, sizeof ping}};
    struct pair pair = startPair();
    struct host *host = newHost();
    uint16_t check;

    (void)state;
    check = sum(ping, 20);
    ping[10] = (unsigned char)(check >> 8);
    ping[11] = (unsigned char)check;
    check = sum(ping + 20, 8);
    ping[22] = (unsigned char)(check >> 8);
    ping[23] = (unsigned char)check;
    callbacks.packets_received = packetsReceived;
    profile.socks_server_addr = "127.0.0.1:9";
    profile.stack = "none";
    profile.local = pair.local->handle;
    assert_int_equal(udptunnel_start_tun2socks(&profile, &callbacks, host, &host->handle), UDPTUNNEL_OK);
    assert_int_equal(udptunnel_send_packets(host->handle, packets, 2), 2);
    AWAIT(host, packets, 2);
    assert_int_equal(host->size, sizeof ping);
    assert_int_equal(host->bytes[20], 0);
    assert_memory_equal(host->bytes + 12, ping + 16, 4);
    assert_memory_equal(host->bytes + 16, ping + 12, 4);
    assert_int_equal(udptunnel_send_packets(host->handle, NULL, 1), UDPTUNNEL_ERROR_ARGUMENT);
    assert_int_equal(sendText(host->handle, "x", 1), UDPTUNNEL_ERROR_HANDLE);
    assert_int_equal(udptunnel_stop(host->handle), UDPTUNNEL_OK);
    profile.local = host->handle;
    assert_int_equal(udptunnel_start_tun2socks(&profile, &callbacks, host, &host->handle), UDPTUNNEL_ERROR_HANDLE);
    freeHost(host);
    stopPair(pair);
}

/* The descriptor of a TUN stays the program's, whether the role starts or not. */
static void test_descriptor(void **state)
{
    struct udptunnel_tun2socks_profile profile = UDPTUNNEL_TUN2SOCKS_PROFILE;
    udptunnel *handle;
    int ends[2]; /* A socket of messages does for a TUN: the kernel is asked what it is, and need not know. */

    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_DGRAM, 0, ends), 0);
    profile.tun_fd = ends[0];
    profile.socks_server_addr = "127.0.0.1:9";
    profile.stack = "none";
    assert_int_equal(udptunnel_start_tun2socks(&profile, NULL, NULL, &handle), UDPTUNNEL_OK);
    assert_int_equal(udptunnel_stop(handle), UDPTUNNEL_OK);
    assert_int_not_equal(fcntl(ends[0], F_GETFD), -1);
    profile.stack = "colourful";
    assert_int_equal(udptunnel_start_tun2socks(&profile, NULL, NULL, &handle), UDPTUNNEL_ERROR_PROFILE);
    profile.stack = "tun";
    assert_int_not_equal(udptunnel_start_tun2socks(&profile, NULL, NULL, &handle), UDPTUNNEL_OK);
    assert_int_equal(close(ends[0]), 0);
    assert_int_equal(close(ends[1]), 0);
}

/* -- threads */

#define THREADS 8
#define OUTSTANDING 16

static udptunnel *shared;
static int isOver;

struct worker {
    pthread_t thread;
    uint64_t number, sent, back, wrong, full;
    pthread_mutex_t turn;
    pthread_cond_t changed;
};

static struct worker workers[THREADS];

static void shareOut(const struct udptunnel_datagram *datagrams, size_t count, void *data)
{
    size_t place;

    (void)data;
    for (place = 0; place < count; place++) {
        struct worker *worker = &workers[datagrams[place].source % THREADS];
        uint64_t said[2];

        memcpy(said, datagrams[place].bytes, sizeof said);
        pthread_mutex_lock(&worker->turn);
        worker->wrong += datagrams[place].size != sizeof said || said[0] != datagrams[place].source || said[1] != worker->back;
        worker->back++;
        pthread_cond_signal(&worker->changed);
        pthread_mutex_unlock(&worker->turn);
    }
}

static void *work(void *data)
{
    struct worker *worker = data;
    struct udptunnel_stats stats = UDPTUNNEL_STATS;

    while (!__atomic_load_n(&isOver, __ATOMIC_ACQUIRE)) {
        uint64_t said[2] = {worker->number, worker->sent};
        struct timespec until;
        int late = 0, error;

        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += PATIENCE_SECONDS;
        pthread_mutex_lock(&worker->turn);
        while (worker->sent - worker->back >= OUTSTANDING && !late)
            late = pthread_cond_timedwait(&worker->changed, &worker->turn, &until) == ETIMEDOUT;
        pthread_mutex_unlock(&worker->turn);
        if (late)
            return NULL;
        error = udptunnel_send(shared, said, sizeof said, "127.0.0.1", echoPort, worker->number);
        worker->sent += error == UDPTUNNEL_OK;
        worker->full += error == UDPTUNNEL_ERROR_FULL;
        worker->wrong += error != UDPTUNNEL_OK && error != UDPTUNNEL_ERROR_FULL;
        if (worker->sent % 1000 == 0)
            worker->wrong += udptunnel_get_stats(shared, &stats) != UDPTUNNEL_OK;
        if (worker->sent % 1000 == 500) {
            struct udptunnel_server_profile profile = UDPTUNNEL_SERVER_PROFILE;
            udptunnel *another = NULL;

            profile.listen = ANYWHERE;
            worker->wrong += udptunnel_start_udp_server(&profile, NULL, NULL, &another) != UDPTUNNEL_OK;
            worker->wrong += udptunnel_stop(another) != UDPTUNNEL_OK;
        }
    }
    return NULL;
}

/* Eight threads call everything at once, and lose nothing. */
static void test_threads(void **state)
{
    struct udptunnel_local_profile profile = UDPTUNNEL_LOCAL_PROFILE;
    struct udptunnel_callbacks callbacks = UDPTUNNEL_CALLBACKS;
    const char *asked = getenv("UDPTUNNEL_STRESS");
    double seconds = asked != NULL ? atof(asked) : 1.0;
    struct host *server = newHost();
    struct timespec pause = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    uint64_t total = 0;
    char endpoint[110];
    int place;

    (void)state;
    startServer(server, ANYWHERE);
    snprintf(endpoint, sizeof endpoint, "tcp:%s", server->socksAddress);
    profile.server = endpoint;
    profile.socks = "none";
    profile.options = PATIENT;
    profile.option_count = 2;
    callbacks.datagrams_received = shareOut;
    assert_int_equal(udptunnel_start_udp_local(&profile, &callbacks, NULL, &shared), UDPTUNNEL_OK);
    for (place = 0; place < THREADS; place++) {
        workers[place].number = (uint64_t)place;
        pthread_mutex_init(&workers[place].turn, NULL);
        pthread_cond_init(&workers[place].changed, NULL);
        assert_int_equal(pthread_create(&workers[place].thread, NULL, work, &workers[place]), 0);
    }
    nanosleep(&pause, NULL);
    __atomic_store_n(&isOver, 1, __ATOMIC_RELEASE);
    for (place = 0; place < THREADS; place++) {
        struct worker *worker = &workers[place];
        struct timespec until;
        int late = 0;

        pthread_join(worker->thread, NULL);
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += PATIENCE_SECONDS;
        pthread_mutex_lock(&worker->turn);
        while (worker->back < worker->sent && !late)
            late = pthread_cond_timedwait(&worker->changed, &worker->turn, &until) == ETIMEDOUT;
        pthread_mutex_unlock(&worker->turn);
        assert_int_equal(worker->wrong, 0);
        assert_int_equal(worker->back, worker->sent);
        assert_true(worker->sent > OUTSTANDING);
        total += worker->sent;
    }
    printf("%llu datagrams there and back in %g s\n", (unsigned long long)total, seconds);
    assert_int_equal(udptunnel_stop(shared), UDPTUNNEL_OK);
    assert_int_equal(udptunnel_stop(server->handle), UDPTUNNEL_OK);
    freeHost(server);
}

/* Before the first role every function says that there is none; this goes first. */
static void test_before(void **state)
{
    struct udptunnel_stats stats = UDPTUNNEL_STATS;

    (void)state;
    assert_int_equal(udptunnel_stop((udptunnel *)1), UDPTUNNEL_ERROR_HANDLE);
    assert_int_equal(udptunnel_get_stats((udptunnel *)1, &stats), UDPTUNNEL_ERROR_HANDLE);
    assert_int_equal(udptunnel_send((udptunnel *)1, "x", 1, "127.0.0.1", 9, 1), UDPTUNNEL_ERROR_HANDLE);
    assert_string_equal(udptunnel_why(), "there is no such role");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_before),      cmocka_unit_test(test_start),     cmocka_unit_test(test_inOrder),
        cmocka_unit_test(test_silent),      cmocka_unit_test(test_badProfile), cmocka_unit_test(test_versions),
        cmocka_unit_test(test_signals),     cmocka_unit_test(test_untouched),
        cmocka_unit_test(test_sizes),       cmocka_unit_test(test_refused),   cmocka_unit_test(test_full),
        cmocka_unit_test(test_closeSource), cmocka_unit_test(test_twoInstances), cmocka_unit_test(test_tenThousand),
        cmocka_unit_test(test_stopped),     cmocka_unit_test(test_stopInside), cmocka_unit_test(test_restart),
        cmocka_unit_test(test_stopTwice),   cmocka_unit_test(test_stopAtOnce),
        cmocka_unit_test(test_figures),     cmocka_unit_test(test_texts),     cmocka_unit_test(test_packets),
        cmocka_unit_test(test_descriptor),
        cmocka_unit_test(test_threads),
    };

    noteSignals();
    environmentAtFirst = environmentSize();
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests_name("libudptunnel", tests, setUpTarget, NULL);
}
