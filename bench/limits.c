/* What the machine can do: rows gathered from mapped memory, records copied one after the other, cold random reads. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

void gather(const char *source, const int64_t *offsets, const int64_t *lengths, int64_t count, char *out)
{
    for (int64_t i = 0; i < count; i++) {
        memcpy(out, source + offsets[i], (size_t)lengths[i]);
        out += lengths[i];
    }
}

static int64_t now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000000000LL + at.tv_nsec;
}

/* Waits so many nanoseconds: sleeps, and spins for the last few microseconds, in which a sleep would end late. */
void rest(int64_t nanoseconds)
{
    int64_t until = now() + nanoseconds, wake = until - 30000;
    prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
    if (wake > now()) {
        struct timespec at = {wake / 1000000000LL, wake % 1000000000LL};
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == EINTR)
            ;
    }
    while (now() < until)
        ;
}

struct reads {
    int file;
    const int64_t *offsets, *lengths;
    int64_t count, most;
    int64_t *firsts; /* the first 8 bytes of each sample */
    _Atomic int64_t next;
    _Atomic int failed;
};

static void *read_some(void *argument)
{
    struct reads *all = argument;
    char *buffer = malloc((size_t)all->most);
    int64_t i;
    while (buffer && (i = atomic_fetch_add(&all->next, 1)) < all->count) {
        for (int64_t done = 0, got; done < all->lengths[i]; done += got) {
            got = pread(all->file, buffer + done, (size_t)(all->lengths[i] - done), all->offsets[i] + done);
            if (got <= 0) {
                all->failed = 1;
                goto end;
            }
        }
        memcpy(&all->firsts[i], buffer, sizeof(int64_t));
    }
    if (!buffer)
        all->failed = 1;
end:
    free(buffer);
    return NULL;
}

/* Reads ranges by so many threads, each range by one call into a buffer of the thread. Returns 0 if all came. */
int read_all(int file, const int64_t *offsets, const int64_t *lengths, int64_t count, int threads, int64_t *firsts)
{
    struct reads all = {.file = file, .offsets = offsets, .lengths = lengths, .count = count, .firsts = firsts};
    pthread_t *started = calloc((size_t)threads, sizeof *started);
    int running = 0;
    for (int64_t i = 0; i < count; i++)
        all.most = lengths[i] > all.most ? lengths[i] : all.most;
    for (; started && running < threads; running++)
        if (pthread_create(&started[running], NULL, read_some, &all))
            break;
    for (int i = 0; i < running; i++)
        pthread_join(started[i], NULL);
    free(started);
    return running < threads || all.failed;
}

/* Copies ranges of a mapping into `out`, over and over, `window` of them at a time, with those of the next window
   announced before. Returns 0 if the system takes the announcements. */
int gather_hinted(char *source, const int64_t *offsets, const int64_t *lengths, int64_t count, int64_t window, char *out,
                  int64_t *firsts)
{
    int64_t page = sysconf(_SC_PAGESIZE);
    for (int64_t hinted = 0, copied = 0; copied < count;) {
        for (; hinted < count && hinted < copied + 2 * window; hinted++) {
            int64_t start = offsets[hinted] / page * page;
            if (madvise(source + start, (size_t)(offsets[hinted] + lengths[hinted] - start), MADV_WILLNEED))
                return 1;
        }
        int64_t stop = copied + window < count ? copied + window : count;
        for (char *at = out; copied < stop; at += lengths[copied++]) {
            memcpy(at, source + offsets[copied], (size_t)lengths[copied]);
            memcpy(&firsts[copied], at, sizeof(int64_t));
        }
    }
    return 0;
}
