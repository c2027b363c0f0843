/* Runs a program whose system calls below one directory can be held: a file system that hangs, or is slow.
 *
 *   stall DIRECTORY SWITCHES PROGRAM ARGUMENT...
 *
 * A call is held while SWITCHES has a file named after it (open, read, write, sync, rename, link, unlink): until that
 * file is gone, or, when the file holds a number, for so many milliseconds; a negative number is the errno that the call
 * fails with at once. Each such call is noted as a line of SWITCHES/held. What counts is the descriptor that the call begins with: a file or directory below DIRECTORY. So
 * nothing else of the program is ever held, be it below or outside of DIRECTORY by another way.
 *
 * How: the program runs under a seccomp filter that asks a listener about these calls, and about no others. The
 * listener is a child of the program (so the program has the process id, signals and output that its starter sees); it
 * looks at /proc/<thread>/fd/<descriptor> and lets the kernel carry the call out, now or later. It ends with the program.
 * Needs no privilege. The thread hangs within its call as it would on a disk that does not answer. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MAX_HELD 1024
#define LOOK_MS 2

static const struct { long number; const char *name; } CALLS[] = {
    {SYS_openat, "open"},      {SYS_openat2, "open"},     {SYS_read, "read"},
    {SYS_pread64, "read"},     {SYS_write, "write"},      {SYS_pwrite64, "write"},
    {SYS_fsync, "sync"},       {SYS_fdatasync, "sync"},   {SYS_linkat, "link"},
    {SYS_renameat2, "rename"}, {SYS_unlinkat, "unlink"},
#ifdef SYS_renameat
    {SYS_renameat, "rename"},
#endif
};
#define CALL_COUNT (sizeof CALLS / sizeof *CALLS)

static struct { __u64 id; const char *name; long long due_ms; } held[MAX_HELD];
static int held_count;
static const char *directory, *switches;

static void die(const char *what) {
    fprintf(stderr, "stall: %s: %s\n", what, strerror(errno));
    exit(125);
}

static long long now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

/* 0: not there. What it holds is 0 (until it is gone), milliseconds, or a negative errno. */
static int switch_of(const char *name, long long *what) {
    char path[4096], text[32] = "";
    snprintf(path, sizeof path, "%s/%s", switches, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    *what = length > 0 ? atoll(text) : 0;
    return 1;
}

static int is_below(const struct seccomp_notif *call) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/%u/fd/%d", call->pid, (int)call->data.args[0]);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    size_t prefix = strlen(directory);
    return strncmp(path, directory, prefix) == 0 && (path[prefix] == 0 || path[prefix] == '/');
}

/* Lets the kernel carry the call out, or fails it. */
static void answer(int listener, __u64 id, int error) {
    struct seccomp_notif_resp answer = {.id = id, .error = error, .flags = error ? 0 : SECCOMP_USER_NOTIF_FLAG_CONTINUE};
    ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer); /* Fails only when the thread is gone. */
}

static void note(const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%s/held", switches);
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd < 0) return;
    dprintf(fd, "%s\n", name);
    close(fd);
}

static void take(int listener) {
    struct seccomp_notif call = {0};
    if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call)) return;
    const char *name = "";
    for (size_t i = 0; i < CALL_COUNT; i++)
        if (CALLS[i].number == call.data.nr) name = CALLS[i].name;
    long long what = 0;
    int found = switch_of(name, &what) && held_count < MAX_HELD && is_below(&call);
    if (found) note(name);
    if (!found || what < 0) {
        answer(listener, call.id, found ? (int)what : 0);
        return;
    }
    held[held_count].id = call.id;
    held[held_count].name = name;
    held[held_count++].due_ms = what ? now_ms() + what : 0;
}

static void listen_to(int listener) {
    for (;;) {
        struct pollfd ready = {.fd = listener, .events = POLLIN};
        int count = poll(&ready, 1, held_count ? LOOK_MS : -1);
        if (count < 0 && errno != EINTR) exit(125);
        if (count > 0 && ready.revents & POLLHUP) exit(0); /* The program is gone. */
        if (count > 0 && ready.revents & POLLIN) take(listener);
        for (int i = 0; i < held_count;) {
            long long what;
            int over = held[i].due_ms ? now_ms() >= held[i].due_ms : !switch_of(held[i].name, &what);
            if (!over) { i++; continue; }
            answer(listener, held[i].id, 0);
            held[i] = held[--held_count];
        }
    }
}

static int install(void) {
    struct sock_filter program[CALL_COUNT + 3] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    };
    for (size_t i = 0; i < CALL_COUNT; i++)
        program[1 + i] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, CALLS[i].number, CALL_COUNT - i, 0);
    program[1 + CALL_COUNT] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    program[2 + CALL_COUNT] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
    struct sock_fprog filter = {.len = CALL_COUNT + 3, .filter = program};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) die("no_new_privs");
    int listener = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &filter);
    if (listener < 0) die("seccomp");
    return listener;
}

/* The filter must not hold the call that hands the listener over: sendmsg is none of CALLS. */
static void pass(int socket, int *fd, int sending) {
    char byte = 0;
    union { char space[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } control = {{0}};
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control.space, .msg_controllen = sizeof control.space};
    if (sending) {
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(header), fd, sizeof(int));
        if (sendmsg(socket, &message, 0) < 0) die("sendmsg");
    } else {
        if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) <= 0 || !CMSG_FIRSTHDR(&message)) exit(125);
        memcpy(fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
    }
}

int main(int count, char **arguments) {
    if (count < 4) { fprintf(stderr, "usage: stall DIRECTORY SWITCHES PROGRAM ARGUMENT...\n"); return 125; }
    directory = arguments[1];
    switches = arguments[2];
    int pair[2], listener;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) die("socketpair");
    pid_t child = fork();
    if (child < 0) die("fork");
    if (child == 0) {
        setsid(); /* A signal to the program's group is not for us. */
        for (int fd = 0; fd < 3; fd++) close(fd); /* Its output ends with the program. */
        close(pair[0]);
        pass(pair[1], &listener, 0);
        close(pair[1]);
        listen_to(listener);
    }
    close(pair[1]);
    listener = install();
    pass(pair[0], &listener, 1);
    close(listener);
    execv(arguments[3], arguments + 3);
    die(arguments[3]);
}
