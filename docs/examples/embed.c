/*
 * Runs both ends of a tunnel in one process, sends three datagrams through them, and prints what arrives and what comes back.
 *
 *     cc docs/examples/embed.c -o embed $(pkg-config --cflags --libs udptunnel) -lpthread
 *     ./embed
 *
 * The target is a socket of the program's own, which answers with capital letters.
 */
#include <arpa/inet.h>
#include <ctype.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <udptunnel.h>

#define COUNT 3

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int isUp, answers;

/* Callbacks come in a thread of the library's. They do little, and wake those who wait. */
static void happened(const struct udptunnel_event *event, void *data)
{
    const char *who = data;

    switch (event->kind) {
    case UDPTUNNEL_READY:
        fprintf(stderr, "%s: ready, at %s\n", who, event->socks_address != NULL ? event->socks_address : "no socket");
        break;
    case UDPTUNNEL_SESSION_UP:
        fprintf(stderr, "%s: session %s is up\n", who, event->session);
        pthread_mutex_lock(&turn);
        isUp = 1;
        pthread_cond_broadcast(&changed);
        pthread_mutex_unlock(&turn);
        break;
    case UDPTUNNEL_FAILED:
        fprintf(stderr, "%s: can not go on: %s\n", who, event->text);
        break;
    }
}

static void received(const struct udptunnel_datagram *datagrams, size_t count, void *data)
{
    size_t place;

    (void)data;
    for (place = 0; place < count; place++)
        printf("back from %s:%d for source %llu: %.*s\n", datagrams[place].host, datagrams[place].port,
               (unsigned long long)datagrams[place].source, (int)datagrams[place].size, (const char *)datagrams[place].bytes);
    pthread_mutex_lock(&turn);
    answers += (int)count;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&turn);
}

static void require(int error)
{
    if (error != UDPTUNNEL_OK) {
        fprintf(stderr, "%s: %s\n", udptunnel_strerror(error), udptunnel_why());
        exit(1);
    }
}

/* A UDP socket on a free port of loopback. */
static int target(uint16_t *port)
{
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof here;
    int fd = socket(AF_INET, SOCK_DGRAM, 0);

    if (fd < 0 || bind(fd, (struct sockaddr *)&here, size) != 0 || getsockname(fd, (struct sockaddr *)&here, &size) != 0) {
        perror("target");
        exit(1);
    }
    *port = ntohs(here.sin_port);
    return fd;
}

static void answer(int fd)
{
    struct sockaddr_in from;
    socklen_t size = sizeof from;
    char text[100];
    ssize_t place, length = recvfrom(fd, text, sizeof text, 0, (struct sockaddr *)&from, &size);

    printf("there: %.*s\n", (int)length, text);
    for (place = 0; place < length; place++)
        text[place] = (char)toupper((unsigned char)text[place]);
    sendto(fd, text, (size_t)length, 0, (struct sockaddr *)&from, size);
}

/* The port in "127.0.0.1:PORT", which the server was bound to. */
static void noteAddress(const struct udptunnel_event *event, void *data)
{
    if (event->kind == UDPTUNNEL_READY)
        snprintf(data, 100, "tcp:%s", event->socks_address);
}

int main(void)
{
    struct udptunnel_server_profile serverProfile = UDPTUNNEL_SERVER_PROFILE;
    struct udptunnel_local_profile localProfile = UDPTUNNEL_LOCAL_PROFILE;
    struct udptunnel_callbacks serverCallbacks = UDPTUNNEL_CALLBACKS, localCallbacks = UDPTUNNEL_CALLBACKS;
    udptunnel *server, *local;
    char endpoint[100], text[100];
    uint16_t port;
    int fd = target(&port), number;

    serverProfile.listen = "tcp:0:interface=127.0.0.1"; /* any free port */
    serverProfile.allow = "127.0.0.0/8";
    serverCallbacks.happened = noteAddress;
    require(udptunnel_start_udp_server(&serverProfile, &serverCallbacks, endpoint, &server));

    localProfile.server = endpoint;
    localProfile.socks = "none";
    localCallbacks.happened = happened;
    localCallbacks.datagrams_received = received;
    require(udptunnel_start_udp_local(&localProfile, &localCallbacks, "local", &local));

    pthread_mutex_lock(&turn);
    while (!isUp)
        pthread_cond_wait(&changed, &turn);
    for (number = 0; number < COUNT; number++) {
        snprintf(text, sizeof text, "hello %d", number);
        require(udptunnel_send(local, text, strlen(text), "127.0.0.1", port, (uint64_t)number));
        answer(fd);
        while (answers <= number)
            pthread_cond_wait(&changed, &turn);
    }
    pthread_mutex_unlock(&turn);

    require(udptunnel_stop(local));
    require(udptunnel_stop(server));
    close(fd);
    return 0;
}
