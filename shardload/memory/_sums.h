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
/* A piece that has nothing beside it is summed by stripes of so many bytes. */
#define STRIPE_BYTES ((size_t)1360)

/* By byte of a sum and its value: the sum after a stripe of zeros. */
static uint32_t shifts[4][256];

/* One range on its way. */
typedef struct {
    const char *source;
    /* Where it is copied to, or NULL. What is streamed goes there from a piece of memory that stays in the processor's caches. */
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
    /* What is fetched while the sum is made, so that this takes hardly any time of its own: the next piece, in the end of a later
       range. */
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
    if (!lane->num_between)
        return;
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

/* Continues sums over as many bytes each, by whole words. */
CRC_TARGET static inline void side_by_side(const char *const data[LANES], uint64_t sums[LANES], size_t size, Next *const wanted[LANES])
{
    const char *one = data[0], *two = data[1], *three = data[2];
    uint64_t a = sums[0], b = sums[1], c = sums[2];
    for (size_t place = 0; place < size;) {
        size_t stop = size;
        if (wanted[0]->size || wanted[1]->size || wanted[2]->size) {
            fetch_line(wanted[0]), fetch_line(wanted[1]), fetch_line(wanted[2]);
            stop = size - place < LINE_BYTES ? size : place + LINE_BYTES;
        }
        for (; place < stop; place += WORD) {
            uint64_t u, v, w;
            memcpy(&u, one + place, WORD), memcpy(&v, two + place, WORD), memcpy(&w, three + place, WORD);
            a = CRC_WORD(a, u), b = CRC_WORD(b, v), c = CRC_WORD(c, w);
        }
    }
    sums[0] = a, sums[1] = b, sums[2] = c;
}

/* Goes on by so many bytes in each lane. */
CRC_TARGET static void together(Lane lanes[LANES], size_t size)
{
    const char *const data[LANES] = {lanes[0].data, lanes[1].data, lanes[2].data};
    Next *const wanted[LANES] = {&lanes[0].wanted, &lanes[1].wanted, &lanes[2].wanted};
    uint64_t sums[LANES] = {lanes[0].sum, lanes[1].sum, lanes[2].sum};
    side_by_side(data, sums, size, wanted);
    for (int i = 0; i < LANES; i++)
        lanes[i].data += size, lanes[i].ready -= size, lanes[i].sum = sums[i];
}

/* Notes what becomes of each byte of a sum by a stripe of zeros. Called when the module is loaded. */
CRC_TARGET static void make_shifts(void)
{
    for (int byte = 0; byte < 4; byte++)
        for (int bit = 0; bit < 8; bit++) {
            uint64_t sum = UINT64_C(1) << (8 * byte + bit);
            for (size_t place = 0; place < STRIPE_BYTES; place += WORD)
                sum = CRC_WORD(sum, 0);
            for (int value = 0; value < 1 << bit; value++)
                shifts[byte][value + (1 << bit)] = shifts[byte][value] ^ (uint32_t)sum;
        }
}

/* Returns a sum as it is after a stripe of zeros. What comes in their place is added by one that starts from 0. */
static inline uint64_t shifted(uint64_t sum)
{
    return shifts[0][sum & 255] ^ shifts[1][sum >> 8 & 255] ^ shifts[2][sum >> 16 & 255] ^ shifts[3][sum >> 24 & 255];
}

/* Goes to the end of what is ready: of much of it three stripes are summed side by side. */
CRC_TARGET static void alone(Lane *lane)
{
    for (; lane->ready >= LANES * STRIPE_BYTES; lane->ready -= LANES * STRIPE_BYTES, lane->data += LANES * STRIPE_BYTES) {
        const char *const data[LANES] = {lane->data, lane->data + STRIPE_BYTES, lane->data + 2 * STRIPE_BYTES};
        Next *const wanted[LANES] = {&lane->wanted, &lane->wanted, &lane->wanted};
        uint64_t sums[LANES] = {lane->sum, 0, 0};
        side_by_side(data, sums, STRIPE_BYTES, wanted);
        lane->sum = shifted(shifted(sums[0]) ^ sums[1]) ^ sums[2];
    }
    for (uint64_t word; lane->ready >= WORD; lane->ready -= WORD, lane->data += WORD) {
        memcpy(&word, lane->data, WORD);
        lane->sum = CRC_WORD(lane->sum, word);
    }
    for (; lane->ready; lane->ready--)
        lane->sum = CRC_BYTE(lane->sum, (unsigned char)*lane->data++);
}
#endif
