/* CRC32C of several pieces of memory side by side: each step of one has to wait for the one before. */

#include "_copies.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define CRC_TARGET __attribute__((target("sse4.2")))
#define CAN_SUM (__builtin_cpu_supports("sse4.2") != 0)
#define CRC_WORD(sum, word) _mm_crc32_u64(sum, word)
#define CRC_BYTE(sum, byte) _mm_crc32_u8((uint32_t)(sum), byte)
#elif defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#define CRC_TARGET
#define CAN_SUM 1
#define CRC_WORD(sum, word) __crc32cd((uint32_t)(sum), word)
#define CRC_BYTE(sum, byte) __crc32cb((uint32_t)(sum), byte)
#else
#define CAN_SUM 0
#endif

#ifdef CRC_WORD
#define LANES 3
#define WORD sizeof(uint64_t)
/* So much of each is copied before it is summed up: it is still in the nearest cache then. */
#define PIECE_BYTES ((size_t)4096)
/* What is no longer is fetched before the sum, and not meanwhile. */
#define AT_ONCE_BYTES ((size_t)2048)

/* One range on its way. */
typedef struct {
    const char *source;
    /* Where it is copied to, or NULL; past the processor's caches from a piece of memory that stays in them, or straight. */
    char *target, *between;
    size_t num_between;
    int is_streamed;
    /* Bytes that are still to be copied, or to be looked at where they are. */
    size_t left;
    /* What comes next in the sum. */
    const char *data;
    size_t ready;
    uint64_t sum;
    int has_high_bits;
    Py_ssize_t number;
    /* Fetched while the sum is made, so that it takes hardly any time of its own, and what follows this range. */
    Next wanted, later;
} Lane;

static inline Next piece_of(const char *source, size_t size)
{
    return (Next){source, size < PIECE_BYTES ? size : PIECE_BYTES};
}

/* Fetches a line of what is wanted. */
static inline void fetch_line(Next *wanted)
{
    if (!wanted->size)
        return;
    FETCH(wanted->begin);
    size_t line = wanted->size < LINE_BYTES ? wanted->size : LINE_BYTES;
    wanted->begin += line, wanted->size -= line;
}

/* Brings a piece that was summed up to its place, if it is not there. */
static inline void bring(Lane *lane)
{
    if (lane->num_between)
        copy(lane->target, lane->between, lane->num_between, (Next){NULL, 0}, 1, 0);
    lane->target += lane->num_between;
    lane->num_between = 0;
}

/* Takes the next piece, if all before it was summed up: copies it, unless it is to be looked at where it is. */
static inline void make_ready(Lane *lane, int as_text)
{
    if (lane->ready || !lane->left)
        return;
    Next piece = piece_of(lane->source, lane->left);
    /* Pieces that are streamed end with a line, as they come one behind the other. */
    if (lane->is_streamed && lane->left > piece.size)
        piece.size -= (uintptr_t)lane->target & (LINE_BYTES - 1);
    lane->data = piece.begin, lane->ready = piece.size;
    lane->source += piece.size, lane->left -= piece.size;
    if (lane->target != NULL) {
        char *target = lane->is_streamed ? lane->between : lane->target;
        lane->has_high_bits |= copy(target, piece.begin, piece.size, (Next){NULL, 0}, 0, as_text);
        lane->data = target;
        if (lane->is_streamed)
            lane->num_between = piece.size;
        else
            lane->target += piece.size;
    }
    lane->wanted = lane->left ? piece_of(lane->source, lane->left) : piece_of(lane->later.begin, lane->later.size);
    while (lane->wanted.size && lane->wanted.size <= AT_ONCE_BYTES)
        fetch_line(&lane->wanted);
}

/* Goes on by so many words in each lane. */
CRC_TARGET static void side_by_side(Lane lanes[LANES], size_t size)
{
    const char *one = lanes[0].data, *two = lanes[1].data, *three = lanes[2].data;
    uint64_t a = lanes[0].sum, b = lanes[1].sum, c = lanes[2].sum;
    for (size_t place = 0; place < size;) {
        size_t stop = size;
        if (lanes[0].wanted.size || lanes[1].wanted.size || lanes[2].wanted.size) {
            fetch_line(&lanes[0].wanted), fetch_line(&lanes[1].wanted), fetch_line(&lanes[2].wanted);
            stop = size - place < LINE_BYTES ? size : place + LINE_BYTES;
        }
        for (; place < stop; place += WORD) {
            uint64_t u, v, w;
            memcpy(&u, one + place, WORD), memcpy(&v, two + place, WORD), memcpy(&w, three + place, WORD);
            a = CRC_WORD(a, u), b = CRC_WORD(b, v), c = CRC_WORD(c, w);
        }
    }
    lanes[0].sum = a, lanes[1].sum = b, lanes[2].sum = c;
    for (int i = 0; i < LANES; i++)
        lanes[i].data += size, lanes[i].ready -= size;
}

/* Goes to the end of what is ready. */
CRC_TARGET static void alone(Lane *lane)
{
    for (uint64_t word; lane->ready >= WORD; lane->ready -= WORD, lane->data += WORD) {
        memcpy(&word, lane->data, WORD);
        lane->sum = CRC_WORD(lane->sum, word);
    }
    for (; lane->ready; lane->ready--)
        lane->sum = CRC_BYTE(lane->sum, (unsigned char)*lane->data++);
}
#endif
