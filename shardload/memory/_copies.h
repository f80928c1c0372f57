/* Copies from anywhere in memory: what is copied next is fetched meanwhile, as no processor can guess where it lies. */

#include <stdint.h>
#include <string.h>

/* Built with NARROW it does as processors do that have no wide registers, for tests. */
#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define WIDE_TARGET __attribute__((target("avx2")))
#endif
#if defined(WIDE_TARGET) && !defined(NARROW)
#define CAN_BE_WIDE (__builtin_cpu_supports("avx2") != 0)
#else
#define CAN_BE_WIDE 0
#endif

#define LINE_BYTES ((size_t)64)
/* From this size on lines are copied one by one. Below it so much of what comes next is asked for at once. */
#define LINES_BYTES ((size_t)1024)
#define BEGIN_BYTES ((size_t)1024)
#define NOT_ASCII UINT64_C(0x8080808080808080)

/* What is wanted next; of no size if nothing is. */
typedef struct {
    const char *begin;
    size_t size;
} Next;

/* Whether the processor has registers of 32 bytes. Set when the module is loaded. */
static int is_wide;

/* Has a line fetched; by FETCH_ONCE if it is needed but once. Macros, as gcc drops calls of functions that only do this. */
#ifdef __GNUC__
#define FETCH(data) __builtin_prefetch(data)
#define FETCH_ONCE(data) __builtin_prefetch(data, 0, 0)
#else
#define FETCH(data) (void)(data)
#define FETCH_ONCE(data) (void)(data)
#endif

static int has_high_bits(const char *data, size_t size)
{
    uint64_t ored = 0, word;
    for (; size >= sizeof(word); size -= sizeof(word), data += sizeof(word)) {
        memcpy(&word, data, sizeof(word));
        ored |= word;
    }
    for (; size; size--)
        ored |= (unsigned char)*data++;
    return (ored & NOT_ASCII) != 0;
}

#ifdef WIDE_TARGET
WIDE_TARGET static inline __m256i copy_line(char *target, const char *source, int streamed)
{
    __m256i a = _mm256_loadu_si256((const __m256i *)source), b = _mm256_loadu_si256((const __m256i *)source + 1);
    if (streamed) {
        _mm256_stream_si256((__m256i *)target, a);
        _mm256_stream_si256((__m256i *)target + 1, b);
    } else {
        _mm256_storeu_si256((__m256i *)target, a);
        _mm256_storeu_si256((__m256i *)target + 1, b);
    }
    return _mm256_or_si256(a, b);
}

/* Copies at least a line. */
WIDE_TARGET static inline int copy_lines(char *target, const char *source, size_t size, Next next, int streamed, int as_text)
{
    /* Nothing but whole lines is streamed, and no line that was written to by the way. */
    size_t place = streamed ? -(uintptr_t)target & (LINE_BYTES - 1) : 0;
    memcpy(target, source, place);
    __m256i ored = _mm256_setzero_si256();
    for (; place + LINE_BYTES <= size; place += LINE_BYTES) {
        if (place < next.size && streamed)
            FETCH_ONCE(next.begin + place);
        else if (place < next.size)
            FETCH(next.begin + place);
        __m256i line = copy_line(target + place, source + place, streamed);
        if (as_text)
            ored = _mm256_or_si256(ored, line);
    }
    if (streamed) {
        memcpy(target + place, source + place, size - place);
    } else if (place < size) {
        /* Part of it a second time. */
        place = size - LINE_BYTES;
        ored = _mm256_or_si256(ored, copy_line(target + place, source + place, 0));
    }
    return as_text && _mm256_movemask_epi8(ored) != 0;
}

WIDE_TARGET static int copy_wide(char *target, const char *source, size_t size, Next next, int streamed, int as_text)
{
    if (as_text)
        return copy_lines(target, source, size, next, 0, 1);
    return streamed ? copy_lines(target, source, size, next, 1, 0) : copy_lines(target, source, size, next, 0, 0);
}
#endif

/* Copies bytes, of text or, past the processor's caches if streamed, of anything else; returns whether text is not all ASCII. */
static int copy(char *target, const char *source, size_t size, Next next, int streamed, int as_text)
{
#ifdef WIDE_TARGET
    if (is_wide && size >= (as_text ? LINE_BYTES : LINES_BYTES))
        return copy_wide(target, source, size, next, streamed, as_text);
#endif
    for (size_t place = 0; place < next.size && place < BEGIN_BYTES; place += LINE_BYTES)
        FETCH(next.begin + place);
    memcpy(target, source, size);
    return as_text && has_high_bits(target, size);
}

/* Lets others see what was streamed. */
static void settle(void)
{
#ifdef WIDE_TARGET
    _mm_sfence();
#endif
}
