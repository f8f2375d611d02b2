/*
 * udptunnel.h - UDP over TCP inside a C program.
 *
 * A role is started from a profile. What happens to it is told by callbacks, and a handle stops it. Several roles may run in one
 * process; they share one thread of the library's own. No function here ends the process, handles signals, changes the locale, or
 * prints anything but why its Python can not begin.
 *
 * Processes: none is started by udp-local and udp-server, unless the option "plugin" names a program, and none by l3-tunnel.
 * tun2socks starts one for the stack "netns", which "auto" may choose, and which lives as long as the role; with the stack "tun" or
 * "none" it starts none. A TUN is set up with ifconfig and route on macOS, and with netsh on Windows, which end at once.
 *
 * Threads:
 *   - Every function may be called from any thread at any time, from callbacks too.
 *   - Callbacks are called in one thread of the library's own, the same for all roles, one after the other. While one of them runs
 *     no role does anything. It must not wait for another thread that may be in a function of this header.
 *   - udptunnel_send, udptunnel_send_all and udptunnel_send_packets never wait for the network, nor for callbacks. The others wait
 *     until the library's thread has done what they ask for; called from a callback, they do not wait.
 *   - After fork() only the parent may go on with the library.
 *
 * Texts are UTF-8 with a NUL at the end. Pointers that are given to a function are not kept after it returns, those that a callback
 * gets are good until it returns; but "data" is kept, and given to each callback.
 *
 * Structs that a program fills begin with their size, which the initializers set. A program that was compiled with an older
 * header goes on working; one with a newer header does, as long as what it adds is zero. Three structs of which there are arrays
 * have no size, and never change: udptunnel_option, udptunnel_datagram, udptunnel_packet.
 */
#ifndef UDPTUNNEL_H
#define UDPTUNNEL_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define UDPTUNNEL_API
#elif defined(__GNUC__)
#define UDPTUNNEL_API __attribute__((visibility("default")))
#else
#define UDPTUNNEL_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this interface. It changes when a program must be changed. */
#define UDPTUNNEL_ABI 1

/* [definitions] From here on it is read by the library's own build, too: plain declarations only. */

/* A role that runs. What it points to is the library's own affair. A pointer is never used a second time. */
typedef struct udptunnel udptunnel;

/* What functions return when they fail. udptunnel_strerror has a text for each. */
enum {
    UDPTUNNEL_OK = 0,
    UDPTUNNEL_ERROR_PROFILE = -1,  /* an option of the profile is wrong */
    UDPTUNNEL_ERROR_LISTEN = -2,   /* a socket or a TUN can not be opened */
    UDPTUNNEL_ERROR_HANDLE = -3,   /* there is no such role, or it was stopped, or it can not do that */
    UDPTUNNEL_ERROR_ARGUMENT = -4, /* an argument is not what it must be */
    UDPTUNNEL_ERROR_FULL = -5,     /* there is no room just now: try again, or drop it */
    UDPTUNNEL_ERROR_PYTHON = -6,   /* the library does not find its Python, or what it needs there */
    UDPTUNNEL_ERROR_OTHER = -7     /* a mistake of the library's */
};

/* Absent descriptors are this. */
enum { UDPTUNNEL_NO_FD = -1 };

/* -- what happens */

enum {
    UDPTUNNEL_READY = 1,        /* all sockets are open; before the function that starts the role returns */
    UDPTUNNEL_SESSION_UP = 2,   /* udp-local: its first link is up. udp-server: a session begins. l3-tunnel: the other end is there */
    UDPTUNNEL_SESSION_DOWN = 3, /* udp-local: its last link is gone, and others are tried. Others: a session is over */
    UDPTUNNEL_MAPPINGS_LOST = 4, /* right after SESSION_UP: external ports are new ones */
    UDPTUNNEL_STATISTICS = 5,   /* so many seconds have passed as were asked for: call udptunnel_get_stats */
    UDPTUNNEL_LOG = 6,          /* a line of the log; each role gets those of all */
    UDPTUNNEL_FAILED = 7,       /* the role can not go on: stop it */
    UDPTUNNEL_STOPPED = 8       /* everything is closed; nothing follows */
};

/* What a line of the log is worth. */
enum {
    UDPTUNNEL_NO_LOG = 0, /* as the least level: no lines */
    UDPTUNNEL_DEBUG = 1,
    UDPTUNNEL_INFO = 2,
    UDPTUNNEL_WARNING = 3,
    UDPTUNNEL_ERROR = 4,
    UDPTUNNEL_CRITICAL = 5
};

struct udptunnel_event {
    size_t size;             /* of the struct, as the library knows it */
    int kind;                /* UDPTUNNEL_READY and so on */
    udptunnel *handle;       /* whose it is */
    int socks_fd;            /* READY: the first listener for TCP, of udp-local its SOCKS5 server; -1 if there is none */
    int udp_fd;              /* READY: the first forward, or the port of l3-tunnel; -1 if there is none */
    const char *socks_address; /* READY: what they are bound to, HOST:PORT or a path; NULL if there is none */
    const char *udp_address;
    const char *session;     /* SESSION_UP, SESSION_DOWN, MAPPINGS_LOST: what log lines call it; otherwise NULL */
    int resumed;             /* SESSION_UP: 1 if it goes on with what was there before */
    int level;               /* LOG: UDPTUNNEL_DEBUG and so on */
    const char *text;        /* LOG: the line; FAILED: the reason; otherwise NULL */
};

/* A datagram, with its far end and its near end. This struct never changes. */
struct udptunnel_datagram {
    const void *bytes;
    size_t size;      /* 0 to 65507 */
    const char *host; /* target, or who has answered: an address; a target may be a name, which udp-server looks up */
    uint16_t port;
    uint64_t source;  /* whose it is: any number of the program's own; each has an external port of its own at udp-server */
};

/* An IP packet, from the first byte of its header on. This struct never changes. */
struct udptunnel_packet {
    const void *bytes;
    size_t size;
};

typedef void (*udptunnel_happened)(const struct udptunnel_event *event, void *data);
typedef void (*udptunnel_datagrams_received)(const struct udptunnel_datagram *datagrams, size_t count, void *data);
typedef void (*udptunnel_packets_received)(const struct udptunnel_packet *packets, size_t count, void *data);

/* Each may be NULL. */
struct udptunnel_callbacks {
    size_t size;
    udptunnel_happened happened;
    udptunnel_datagrams_received datagrams_received; /* udp-local: answers to what udptunnel_send has sent */
    udptunnel_packets_received packets_received;     /* tun2socks: packets for applications; there is no TUN then */
    int log_level;                                   /* the least level of log lines */
    double statistics_seconds;                       /* between two UDPTUNNEL_STATISTICS; 0: none */
};

/* -- profiles */

/*
 * Any option of the command line, by its name there without "--": {"queue-age", "100"}. A flag has the value NULL, and no other.
 * This struct never changes.
 */
struct udptunnel_option {
    const char *name;
    const char *value;
};

/* In all profiles NULL stands for the default, and an option of "options" may be given several times if its kind allows that. */

struct udptunnel_local_profile {
    size_t size;
    const char *server;      /* where udp-server is: "tcp:HOST:PORT" */
    const char *socks;       /* where the SOCKS5 server listens: "tcp:1234:interface=127.0.0.1"; "none": there is none */
    const char *forward;     /* LISTEN=TARGET, both HOST:PORT */
    const char *via;         /* HOST:PORT of a SOCKS5 server on the way to udp-server */
    const char *connect_via; /* HOST:PORT of the SOCKS5 server that gets CONNECT requests */
    const char *secret;      /* file with a line user:secret */
    const char *tls;         /* file with our key and certificate */
    const char *tls_trust;   /* file with the CA of udp-server, or sha256:HEX */
    const struct udptunnel_option *options; /* others */
    size_t option_count;
};

struct udptunnel_server_profile {
    size_t size;
    const char *listen;  /* where links are accepted: "tcp:3456:interface=127.0.0.1" */
    const char *egress;  /* "direct", "socks5:HOST:PORT" ... */
    const char *allow;   /* a network that is allowed although it is private: "127.0.0.0/8" */
    const char *deny;    /* a network that is not allowed */
    const char *secrets; /* file with lines user:secret */
    const char *tls;     /* file with our key and certificate, and the CA of the other end */
    const struct udptunnel_option *options;
    size_t option_count;
};

struct udptunnel_tun2socks_profile {
    size_t size;
    const char *tundev;                /* name of the TUN */
    int tun_fd;                        /* or its descriptor, which stays yours to close, and blocks no more; -1 if there is none */
    const char *socks_server_addr;     /* HOST:PORT of the SOCKS5 server for TCP */
    const char *udp_socks_server_addr; /* HOST:PORT of that for UDP, if it is another one */
    udptunnel *local;                  /* or an udp-local of this process, whose session takes the UDP; stop it later */
    const char *stack;                 /* who speaks TCP: "auto", "tun", "netns", "none" */
    int mtu;                           /* the longest packet; 0: 1500 */
    const struct udptunnel_option *options;
    size_t option_count;
};

struct udptunnel_l3_profile {
    size_t size;
    const char *interface; /* where packets are captured */
    const char *capture;   /* the network behind the other end: "10.2.0.0/16" */
    const char *local;     /* ADDRESS:PORT of this end */
    const char *peer;      /* HOST:PORT of the other end */
    const char *key_file;  /* file with the key that both ends have */
    const char *link;      /* go through this udp-server: "tcp:HOST:PORT" */
    const struct udptunnel_option *options;
    size_t option_count;
};

/* Figures. Those that a role does not have are 0. */
struct udptunnel_stats {
    size_t size;
    int up;                   /* whether it is of use: udp-local has a link */
    uint64_t sent;            /* datagrams that left it by UDP, by callback, or as packets */
    uint64_t sent_bytes;
    uint64_t received;        /* those that came in */
    uint64_t received_bytes;
    uint64_t dropped;         /* those that went no further; udptunnel_report says why */
    uint64_t links;
    uint64_t sessions;
    uint64_t associations;
    uint64_t reconnects;
};

/* [end of definitions] */

#define UDPTUNNEL_CALLBACKS { sizeof (struct udptunnel_callbacks), NULL, NULL, NULL, UDPTUNNEL_INFO, 0 }
#define UDPTUNNEL_LOCAL_PROFILE \
    { sizeof (struct udptunnel_local_profile), NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0 }
#define UDPTUNNEL_SERVER_PROFILE { sizeof (struct udptunnel_server_profile), NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0 }
#define UDPTUNNEL_TUN2SOCKS_PROFILE \
    { sizeof (struct udptunnel_tun2socks_profile), NULL, UDPTUNNEL_NO_FD, NULL, NULL, NULL, NULL, 0, NULL, 0 }
#define UDPTUNNEL_L3_PROFILE { sizeof (struct udptunnel_l3_profile), NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0 }
#define UDPTUNNEL_STATS { sizeof (struct udptunnel_stats), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

/*
 * Start a role. All sockets are open when it returns.
 *
 * callbacks: NULL if nothing is to be told.
 * data: given to each callback.
 * handle: gets the role before the first callback is called; NULL if the role does not start. The role can be used from
 *     UDPTUNNEL_READY on: lines of the log that come before have the same handle, and all functions say UDPTUNNEL_ERROR_HANDLE.
 *
 * Returns UDPTUNNEL_OK, or an error; udptunnel_why has the details then.
 */
UDPTUNNEL_API int udptunnel_start_udp_local(const struct udptunnel_local_profile *profile,
                                            const struct udptunnel_callbacks *callbacks, void *data, udptunnel **handle);
UDPTUNNEL_API int udptunnel_start_udp_server(const struct udptunnel_server_profile *profile,
                                             const struct udptunnel_callbacks *callbacks, void *data, udptunnel **handle);
UDPTUNNEL_API int udptunnel_start_tun2socks(const struct udptunnel_tun2socks_profile *profile,
                                            const struct udptunnel_callbacks *callbacks, void *data, udptunnel **handle);
UDPTUNNEL_API int udptunnel_start_l3_tunnel(const struct udptunnel_l3_profile *profile,
                                            const struct udptunnel_callbacks *callbacks, void *data, udptunnel **handle);

/*
 * Stop a role: it says farewell to the other end, and closes everything. When this returns no callback of the role is running,
 * and none will. Called from a callback it returns before; UDPTUNNEL_STOPPED tells when it is done.
 *
 * Returns UDPTUNNEL_OK, or UDPTUNNEL_ERROR_HANDLE if it was stopped before. If that is not done yet, because another thread or a
 * callback has only just begun it, this waits for it, too, and returns UDPTUNNEL_ERROR_HANDLE then.
 */
UDPTUNNEL_API int udptunnel_stop(udptunnel *handle);

/*
 * Send a datagram through udp-local, without any socket. Answers come by datagrams_received.
 *
 * Returns UDPTUNNEL_OK if there was room for it, which does not mean that it arrives; UDPTUNNEL_ERROR_FULL if not.
 */
UDPTUNNEL_API int udptunnel_send(udptunnel *handle, const void *bytes, size_t size, const char *host, uint16_t port,
                                 uint64_t source);

/* Send several, which costs less. Returns for how many of them, from the first on, there was room; or an error, and none is sent. */
UDPTUNNEL_API long udptunnel_send_all(udptunnel *handle, const struct udptunnel_datagram *datagrams, size_t count);

/* Hand packets of applications to tun2socks. Returns for how many of them, from the first on, there was room; or an error. */
UDPTUNNEL_API long udptunnel_send_packets(udptunnel *handle, const struct udptunnel_packet *packets, size_t count);

/* Forget a source of udp-local, and its external port. It may be unknown. */
UDPTUNNEL_API int udptunnel_close_source(udptunnel *handle, uint64_t source);

/* Tell the figures. "size" must be set, or it is UDPTUNNEL_ERROR_ARGUMENT; what lies beyond it is left alone. */
UDPTUNNEL_API int udptunnel_get_stats(udptunnel *handle, struct udptunnel_stats *stats);

/*
 * Write all figures as JSON to a buffer, cut if it is too small, with a NUL at the end if "size" is not 0.
 *
 * Returns how long the whole text is without the NUL, or an error.
 */
UDPTUNNEL_API long udptunnel_report(udptunnel *handle, char *buffer, size_t size);

/* A text for an error, for ever good. Any number is allowed. */
UDPTUNNEL_API const char *udptunnel_strerror(int error);

/* Why the last call in this thread that failed did so: it names the option, its value and what is expected. Good until the next. */
UDPTUNNEL_API const char *udptunnel_why(void);

/* The version of the library. For ever good. */
UDPTUNNEL_API const char *udptunnel_version(void);

#ifdef __cplusplus
}
#endif

#endif
