/* Many ranges of one piece of memory by one call: as byte strings, as text, and their CRC32C. See ranges.py, which does without
   where this was not built. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) || defined(_M_X64)
#include <emmintrin.h>
#define X86_64
#endif

#if defined(X86_64) && defined(__GNUC__)
#include <nmmintrin.h>
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

/* So many bytes are copied without the interpreter's lock: a thread that has to wait for it again may wait for milliseconds. */
#define UNLOCKED_BYTES (1 << 20)

/* From this size on copies go past the processor's caches: thousands of them push all else out of there, and each line that is
   written would first be read. */
#define STREAMED_BYTES (16 << 10)

/* Of shorter ranges the beginnings are asked for ahead: for so many of them, and so many bytes each. */
#define AHEAD_RANGES 4
#define AHEAD_BYTES 2048
#define LINE_BYTES 64

#define NOT_ASCII UINT64_C(0x8080808080808080)

typedef struct {
    Py_buffer memory, starts, stops;
    Py_ssize_t count;
} Ranges;

typedef struct {
    PyObject *made;
    char *target;
    const char *source;
    size_t size;
    int is_whole;
} Copy;

static int64_t start_of(const Ranges *ranges, Py_ssize_t i)
{
    return ((const int64_t *)ranges->starts.buf)[i];
}

static int64_t stop_of(const Ranges *ranges, Py_ssize_t i)
{
    return ((const int64_t *)ranges->stops.buf)[i];
}

static void release(Ranges *ranges)
{
    PyBuffer_Release(&ranges->memory);
    PyBuffer_Release(&ranges->starts);
    PyBuffer_Release(&ranges->stops);
}

/* Checks that ranges lie within the memory; returns their bytes, -1 with an error set. */
static int64_t checked(Ranges *ranges)
{
    int64_t total = 0;
    ranges->count = ranges->starts.len / (Py_ssize_t)sizeof(int64_t);
    if (ranges->starts.len != ranges->stops.len || ranges->starts.len % (Py_ssize_t)sizeof(int64_t)) {
        PyErr_SetString(PyExc_ValueError, "starts and stops must be int64 and equally many");
        return -1;
    }
    for (Py_ssize_t i = 0; i < ranges->count; i++) {
        int64_t start = start_of(ranges, i), stop = stop_of(ranges, i);
        if (start < 0 || stop < start || stop > ranges->memory.len) {
            PyErr_Format(PyExc_ValueError, "bytes %lld to %lld are not within %zd", (long long)start, (long long)stop,
                         ranges->memory.len);
            return -1;
        }
        total += stop - start;
    }
    return total;
}

/* Has the beginning of a range that follows fetched, which lies anywhere. Inlined by force: gcc drops calls of a function that only
   does this. */
#ifdef __GNUC__
__attribute__((always_inline))
#endif
static inline void fetch_ahead(const Ranges *ranges, Py_ssize_t i)
{
#ifdef __GNUC__
    if (i + AHEAD_RANGES >= ranges->count)
        return;
    const char *next = (const char *)ranges->memory.buf + start_of(ranges, i + AHEAD_RANGES);
    int64_t size = stop_of(ranges, i + AHEAD_RANGES) - start_of(ranges, i + AHEAD_RANGES);
    for (int64_t place = 0; place < size && size < STREAMED_BYTES && place < AHEAD_BYTES; place += LINE_BYTES)
        __builtin_prefetch(next + place);
#endif
}

static void copy_bytes(char *target, const char *source, size_t size, int streamed)
{
#ifdef X86_64
    if (streamed) {
        size_t before = -(uintptr_t)target & 15;
        before = before < size ? before : size;
        memcpy(target, source, before);
        target += before, source += before, size -= before;
        for (; size >= 64; size -= 64, source += 64, target += 64) {
            __m128i a = _mm_loadu_si128((const __m128i *)source);
            __m128i b = _mm_loadu_si128((const __m128i *)source + 1);
            __m128i c = _mm_loadu_si128((const __m128i *)source + 2);
            __m128i d = _mm_loadu_si128((const __m128i *)source + 3);
            _mm_stream_si128((__m128i *)target, a);
            _mm_stream_si128((__m128i *)target + 1, b);
            _mm_stream_si128((__m128i *)target + 2, c);
            _mm_stream_si128((__m128i *)target + 3, d);
        }
    }
#endif
    memcpy(target, source, size);
}

/* Copies, and returns whether all bytes are ASCII. */
static int copy_ascii(char *target, const char *source, size_t size)
{
    int high = 0;
#ifdef X86_64
    for (; size >= 64 && !high; size -= 64, source += 64, target += 64) {
        __m128i a = _mm_loadu_si128((const __m128i *)source);
        __m128i b = _mm_loadu_si128((const __m128i *)source + 1);
        __m128i c = _mm_loadu_si128((const __m128i *)source + 2);
        __m128i d = _mm_loadu_si128((const __m128i *)source + 3);
        high = _mm_movemask_epi8(_mm_or_si128(_mm_or_si128(a, b), _mm_or_si128(c, d)));
        _mm_storeu_si128((__m128i *)target, a);
        _mm_storeu_si128((__m128i *)target + 1, b);
        _mm_storeu_si128((__m128i *)target + 2, c);
        _mm_storeu_si128((__m128i *)target + 3, d);
    }
#endif
    for (uint64_t word; size >= sizeof(word) && !high; size -= sizeof(word), source += sizeof(word), target += sizeof(word)) {
        memcpy(&word, source, sizeof(word));
        memcpy(target, &word, sizeof(word));
        high = (word & NOT_ASCII) != 0;
    }
    for (; size && !high; size--)
        high = (unsigned char)(*target++ = *source++) & 0x80;
    memcpy(target, source, size);
    return !high;
}

static void copy_one(Copy *copy, int as_text)
{
    if (!as_text)
        copy_bytes(copy->target, copy->source, copy->size, copy->size >= STREAMED_BYTES);
    else if (copy->target != NULL)
        copy->is_whole = copy_ascii(copy->target, copy->source, copy->size);
}

static void copy_all(const Ranges *ranges, Copy *copies, int as_text)
{
    for (Py_ssize_t i = 0; i < ranges->count; i++) {
        fetch_ahead(ranges, i);
        copy_one(&copies[i], as_text);
    }
}

#ifdef CRC_WORD
/* Of so many ranges sums are made side by side: each step of one has to wait for the one before. */
#define LANES 3
#define WORD ((size_t)8)

enum stores { NO_STORES, PLAIN_STORES, STREAMED_STORES };

typedef struct {
    const char *source;
    /* Where it is copied to, or NULL. */
    char *target;
    size_t left;
    uint64_t sum;
    /* All words, one over the other. */
    uint64_t ored;
    Py_ssize_t number;
} Lane;

CRC_TARGET static inline void step(Lane *lane, size_t place, enum stores stores)
{
    uint64_t word;
    memcpy(&word, lane->source + place, WORD);
    lane->sum = CRC_WORD(lane->sum, word);
    lane->ored |= word;
#ifdef X86_64
    if (stores == STREAMED_STORES)
        _mm_stream_si64((long long *)(lane->target + place), (long long)word);
    else
#endif
    if (stores != NO_STORES)
        memcpy(lane->target + place, &word, WORD);
}

static inline void pass(Lane *lane, size_t size)
{
    lane->source += size, lane->left -= size;
    if (lane->target != NULL)
        lane->target += size;
}

CRC_TARGET static inline void side_by_side(Lane lanes[LANES], size_t size, enum stores stores)
{
    Lane a = lanes[0], b = lanes[1], c = lanes[2];
    for (size_t place = 0; place < size; place += WORD)
        step(&a, place, stores), step(&b, place, stores), step(&c, place, stores);
    pass(&a, size), pass(&b, size), pass(&c, size);
    lanes[0] = a, lanes[1] = b, lanes[2] = c;
}

/* Goes to the end of a range. */
CRC_TARGET static void alone(Lane *lane)
{
    size_t size = lane->left, place = 0;
    for (; place + WORD <= size; place += WORD)
        step(lane, place, lane->target == NULL ? NO_STORES : PLAIN_STORES);
    pass(lane, place);
    for (size -= place; size; size--) {
        unsigned char byte = (unsigned char)*lane->source;
        lane->sum = CRC_BYTE(lane->sum, byte);
        lane->ored |= byte;
        if (lane->target != NULL)
            *lane->target = (char)byte;
        pass(lane, 1);
    }
}

/* Replaces sums by those continued from them over ranges, `heads` bytes before them included, and copies the ranges. */
CRC_TARGET static void sum_all(const Ranges *ranges, const int64_t *heads, uint32_t *sums, Copy *copies)
{
    Lane lanes[LANES];
    int num_lanes = 0;
    for (Py_ssize_t next = 0; next < ranges->count || num_lanes;) {
        for (; num_lanes < LANES && next < ranges->count; next++) {
            fetch_ahead(ranges, next);
            size_t head = heads == NULL ? 0 : (size_t)heads[next];
            const char *source = (const char *)ranges->memory.buf + start_of(ranges, next);
            Lane *lane = &lanes[num_lanes++];
            *lane = (Lane){source - head, NULL, head, (uint32_t)~sums[next], 0, next};
            alone(lane);
            lane->ored = 0;
            lane->left = (size_t)(stop_of(ranges, next) - start_of(ranges, next));
            lane->target = copies == NULL ? NULL : copies[next].target;
        }
        if (num_lanes == LANES) {
            size_t size = lanes[0].left;
            enum stores stores = STREAMED_STORES;
            for (int i = 0; i < LANES; i++) {
                size = lanes[i].left < size ? lanes[i].left : size;
                if (lanes[i].target == NULL)
                    stores = NO_STORES;
                else if (stores == STREAMED_STORES && (copies[lanes[i].number].size < STREAMED_BYTES || ((uintptr_t)lanes[i].target & 7)))
                    stores = PLAIN_STORES;
            }
            size -= size % WORD;
            if (stores == NO_STORES)
                side_by_side(lanes, size, NO_STORES);
            else if (stores == PLAIN_STORES)
                side_by_side(lanes, size, PLAIN_STORES);
            else
                side_by_side(lanes, size, STREAMED_STORES);
        }
        int num_kept = 0;
        for (int i = 0; i < num_lanes; i++) {
            if (num_lanes < LANES || lanes[i].left < WORD)
                alone(&lanes[i]);
            if (lanes[i].left) {
                lanes[num_kept++] = lanes[i];
                continue;
            }
            sums[lanes[i].number] = ~(uint32_t)lanes[i].sum;
            if (copies != NULL && copies[lanes[i].number].target != NULL)
                copies[lanes[i].number].is_whole = !(lanes[i].ored & NOT_ASCII);
        }
        num_lanes = num_kept;
    }
}
#endif

/* Makes an object that is not filled yet. */
static int make_one(Copy *copy, int as_text)
{
    if (!as_text) {
        copy->made = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)copy->size);
        copy->target = copy->made == NULL ? NULL : PyBytes_AS_STRING(copy->made);
    } else if (copy->size < 2) {
        /* The interpreter has one object for each of these. */
        char own = copy->size ? *copy->source : 0;
        copy->made = PyUnicode_DecodeUTF8(&own, (Py_ssize_t)copy->size, NULL);
        copy->is_whole = 1;
    } else {
        copy->made = PyUnicode_New((Py_ssize_t)copy->size, 127);
        copy->target = copy->made == NULL ? NULL : PyUnicode_DATA(copy->made);
    }
    return copy->made == NULL ? -1 : 0;
}

/* Puts objects into a list, decoding what has turned out not to be ASCII: from the copy, which was summed and nobody else can change.
   The interpreter may look at it twice, to count characters and to write them. */
static PyObject *listed(Copy *copies, Py_ssize_t count, int as_text)
{
    PyObject *list = PyList_New(count);
    for (Py_ssize_t i = 0; list != NULL && i < count; i++) {
        if (as_text && !copies[i].is_whole) {
            PyObject *text = PyUnicode_DecodeUTF8(copies[i].target, (Py_ssize_t)copies[i].size, NULL);
            if (text == NULL) {
                Py_CLEAR(list);
                break;
            }
            Py_DECREF(copies[i].made);
            copies[i].made = text;
        }
        PyList_SET_ITEM(list, i, copies[i].made);
        copies[i].made = NULL;
    }
    return list;
}

/* Gets optional arrays: the bytes before each range that its sum covers, too, and the sums to go on from, to be replaced. */
static int summed(PyObject *heads, PyObject *sums, const Ranges *ranges, Py_buffer *before, Py_buffer *total)
{
    if (!CAN_SUM) {
        PyErr_SetString(PyExc_NotImplementedError, "this processor has no instruction for CRC32C");
        return -1;
    }
    if (heads != Py_None) {
        if (PyObject_GetBuffer(heads, before, PyBUF_SIMPLE) < 0)
            return -1;
        if (before->len != ranges->starts.len) {
            PyErr_SetString(PyExc_ValueError, "heads must be int64, one a range");
            return -1;
        }
        for (Py_ssize_t i = 0; i < ranges->count; i++) {
            int64_t head = ((const int64_t *)before->buf)[i];
            if (head < 0 || head > start_of(ranges, i)) {
                PyErr_Format(PyExc_ValueError, "there are no %lld bytes before byte %lld", (long long)head,
                             (long long)start_of(ranges, i));
                return -1;
            }
        }
    }
    if (PyObject_GetBuffer(sums, total, PyBUF_WRITABLE) < 0)
        return -1;
    if (total->len != ranges->count * (Py_ssize_t)sizeof(uint32_t)) {
        PyErr_SetString(PyExc_ValueError, "sums must be uint32, one a range");
        return -1;
    }
    return 0;
}

static void fill(const Ranges *ranges, Copy *copies, int as_text, const Py_buffer *heads, const Py_buffer *sums)
{
#ifdef CRC_WORD
    if (sums->buf != NULL)
        sum_all(ranges, heads->buf, sums->buf, copies);
    else
#endif
        copy_all(ranges, copies, as_text);
#ifdef X86_64
    /* Streamed bytes are to be seen by whoever gets them next. */
    _mm_sfence();
#endif
}

static PyObject *copied(PyObject *args, const char *format, int as_text)
{
    Ranges ranges;
    Py_buffer before = {0}, total = {0};
    PyObject *heads = Py_None, *sums = Py_None, *list = NULL;
    Copy *copies = NULL;
    Py_ssize_t num_made = 0;
    if (!PyArg_ParseTuple(args, format, &ranges.memory, &ranges.starts, &ranges.stops, &heads, &sums))
        return NULL;
    int64_t num_bytes = checked(&ranges);
    if (num_bytes < 0 || (sums != Py_None && summed(heads, sums, &ranges, &before, &total) < 0))
        goto done;
    copies = PyMem_Calloc((size_t)ranges.count, sizeof(Copy));
    if (copies == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    for (; num_made < ranges.count; num_made++) {
        Copy *copy = &copies[num_made];
        copy->source = (const char *)ranges.memory.buf + start_of(&ranges, num_made);
        copy->size = (size_t)(stop_of(&ranges, num_made) - start_of(&ranges, num_made));
        if (make_one(copy, as_text) < 0)
            goto done;
    }
    /* Nobody else can see the objects before they are filled. */
    if (num_bytes < UNLOCKED_BYTES) {
        fill(&ranges, copies, as_text, &before, &total);
    } else {
        Py_BEGIN_ALLOW_THREADS
        fill(&ranges, copies, as_text, &before, &total);
        Py_END_ALLOW_THREADS
    }
    list = listed(copies, ranges.count, as_text);
done:
    for (Py_ssize_t i = 0; i < num_made; i++)
        Py_XDECREF(copies[i].made);
    PyMem_Free(copies);
    PyBuffer_Release(&before);
    PyBuffer_Release(&total);
    release(&ranges);
    return list;
}

static PyObject *slices(PyObject *module, PyObject *args)
{
    return copied(args, "y*y*y*|OO:slices", 0);
}

static PyObject *texts(PyObject *module, PyObject *args)
{
    return copied(args, "y*y*y*|OO:texts", 1);
}

#ifdef CRC_WORD
static PyObject *add_up(PyObject *module, PyObject *args)
{
    Ranges ranges;
    Py_buffer before = {0}, total = {0};
    PyObject *sums = NULL;
    int failed = 1;
    if (!PyArg_ParseTuple(args, "y*y*y*O:add_up", &ranges.memory, &ranges.starts, &ranges.stops, &sums))
        return NULL;
    if (checked(&ranges) >= 0 && summed(Py_None, sums, &ranges, &before, &total) == 0) {
        Py_BEGIN_ALLOW_THREADS
        sum_all(&ranges, NULL, total.buf, NULL);
        Py_END_ALLOW_THREADS
        failed = 0;
    }
    PyBuffer_Release(&total);
    release(&ranges);
    return failed ? NULL : Py_NewRef(Py_None);
}
#endif

static PyMethodDef methods[] = {
    {"slices", slices, METH_VARARGS, "slices(memory, starts, stops, heads=None, sums=None)\n--\n\nReturns ranges as byte strings."},
    {"texts", texts, METH_VARARGS, "texts(memory, starts, stops, heads=None, sums=None)\n--\n\nReturns ranges decoded from UTF-8."},
#ifdef CRC_WORD
    {"add_up", add_up, METH_VARARGS, "add_up(memory, starts, stops, sums)\n--\n\nReplaces sums by those continued from them."},
#endif
    {NULL, NULL, 0, NULL},
};

static int add_facts(PyObject *module)
{
    return PyModule_AddIntConstant(module, "SUMS", CAN_SUM);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, add_facts},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_ranges", NULL, 0, methods, slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__ranges(void)
{
    return PyModuleDef_Init(&definition);
}
