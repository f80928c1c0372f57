/* Many ranges of one piece of memory by one call: copied one behind the other, as byte strings, as text, and their CRC32C. See
   ranges.py, which does without where this was not built. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "_sums.h"

/* So many bytes are copied without the interpreter's lock: a thread that has to wait for it again may wait for milliseconds. */
#define UNLOCKED_BYTES (1 << 20)

/* From this size on copies go past the processor's caches: thousands of them push all else out of there, and each line that is
   written would first be read. */
#define STREAMED_BYTES (16 << 10)
/* And so do shorter ones of whole lines, from LINES_BYTES on, that together have so many bytes, where they come one behind the other. */
#define STREAMED_TOTAL (8 << 20)

/* Of ranges that follow each other this far the latter is fetched while the former is copied; of long ones the next one is. */
#define AHEAD_RANGES 4
#define LONG_BYTES 4096

typedef struct {
    Py_buffer memory, starts, stops;
    Py_ssize_t count;
} Ranges;

typedef struct {
    PyObject *made;
    char *target;
    const char *source;
    size_t size;
    int is_streamed, has_high_bits;
} Copy;

static int64_t start_of(const Ranges *ranges, Py_ssize_t i)
{
    return ((const int64_t *)ranges->starts.buf)[i];
}

static int64_t stop_of(const Ranges *ranges, Py_ssize_t i)
{
    return ((const int64_t *)ranges->stops.buf)[i];
}

static const char *source_of(const Ranges *ranges, Py_ssize_t i)
{
    return (const char *)ranges->memory.buf + start_of(ranges, i);
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
        if (stop - start > INT64_MAX - total) {
            PyErr_SetString(PyExc_ValueError, "the ranges have too many bytes together");
            return -1;
        }
        total += stop - start;
    }
    return total;
}

/* Returns a range as what is wanted next. */
static Next next_of(const Ranges *ranges, Py_ssize_t i)
{
    if (i >= ranges->count)
        return (Next){NULL, 0};
    return (Next){source_of(ranges, i), (size_t)(stop_of(ranges, i) - start_of(ranges, i))};
}

static void copy_all(const Ranges *ranges, Copy *copies, int as_text)
{
    for (Py_ssize_t i = 0; i < ranges->count; i++) {
        Copy *one = &copies[i];
        Next next = next_of(ranges, i + (one->size < LONG_BYTES ? AHEAD_RANGES : 1));
        if (one->target != NULL)
            one->has_high_bits = copy(one->target, one->source, one->size, next, one->is_streamed, as_text);
    }
}

#ifdef CRC_WORD
/* Replaces sums by those continued from them over ranges, `heads` bytes before them included, and copies the ranges. */
CRC_TARGET static void sum_all(const Ranges *ranges, const int64_t *heads, uint32_t *sums, Copy *copies, int as_text)
{
    char between[LANES][PIECE_BYTES];
    Lane lanes[LANES];
    int num_lanes = 0;
    for (int i = 0; i < LANES; i++)
        lanes[i].between = between[i];
    for (Py_ssize_t next = 0; next < ranges->count || num_lanes;) {
        for (; num_lanes < LANES && next < ranges->count; next++) {
            size_t head = heads == NULL ? 0 : (size_t)heads[next];
            const char *source = source_of(ranges, next);
            Lane *lane = &lanes[num_lanes++];
            *lane = (Lane){.source = source, .data = source - head, .ready = head, .sum = (uint32_t)~sums[next], .number = next, .between = lane->between};
            alone(lane);
            lane->left = (size_t)(stop_of(ranges, next) - start_of(ranges, next));
            lane->later = next_of(ranges, next + LANES);
            if (copies != NULL)
                lane->target = copies[next].target, lane->is_streamed = copies[next].is_streamed;
        }
        size_t size = SIZE_MAX;
        for (int i = 0; i < num_lanes; i++) {
            make_ready(&lanes[i], as_text);
            size = lanes[i].ready < size ? lanes[i].ready : size;
        }
        if (num_lanes == LANES)
            together(lanes, size - size % WORD);
        int num_kept = 0;
        for (int i = 0; i < num_lanes; i++) {
            if (num_lanes < LANES || lanes[i].ready < WORD)
                alone(&lanes[i]);
            if (!lanes[i].ready)
                bring(&lanes[i]);
            if (lanes[i].ready || lanes[i].left) {
                Lane ended = lanes[num_kept];
                lanes[num_kept++] = lanes[i];
                lanes[i] = ended;
                continue;
            }
            sums[lanes[i].number] = ~(uint32_t)lanes[i].sum;
            if (copies != NULL)
                copies[lanes[i].number].has_high_bits = lanes[i].has_high_bits;
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
        if (as_text && copies[i].has_high_bits) {
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
        sum_all(ranges, heads->buf, sums->buf, copies, as_text);
    else
#endif
        copy_all(ranges, copies, as_text);
    settle();
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
        copy->source = source_of(&ranges, num_made);
        copy->size = (size_t)(stop_of(&ranges, num_made) - start_of(&ranges, num_made));
        copy->is_streamed = !as_text && copy->size >= STREAMED_BYTES;
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

static PyObject *gather(PyObject *module, PyObject *args)
{
    Ranges ranges;
    Py_buffer target = {0}, total = {0};
    PyObject *into = NULL, *sums = Py_None;
    Copy *copies = NULL;
    int failed = 1;
    if (!PyArg_ParseTuple(args, "y*y*y*O|O:gather", &ranges.memory, &ranges.starts, &ranges.stops, &into, &sums))
        return NULL;
    int64_t num_bytes = checked(&ranges);
    if (num_bytes < 0 || PyObject_GetBuffer(into, &target, PyBUF_WRITABLE) < 0 ||
        (sums != Py_None && summed(Py_None, sums, &ranges, NULL, &total) < 0))
        goto done;
    if (target.len != num_bytes) {
        PyErr_Format(PyExc_ValueError, "the ranges have %lld bytes, and the target has %zd", (long long)num_bytes, target.len);
        goto done;
    }
    copies = PyMem_Malloc((size_t)ranges.count * sizeof(Copy));
    if (copies == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    /* A page may have to come from the device. */
    Py_BEGIN_ALLOW_THREADS
    char *place = target.buf;
    for (Py_ssize_t i = 0; i < ranges.count; i++) {
        size_t size = (size_t)(stop_of(&ranges, i) - start_of(&ranges, i));
        int is_lines = size >= LINES_BYTES && size % LINE_BYTES == 0 && (uintptr_t)place % LINE_BYTES == 0;
        copies[i] = (Copy){NULL, place, source_of(&ranges, i), size, size >= STREAMED_BYTES || (is_lines && num_bytes >= STREAMED_TOTAL), 0};
        place += size;
    }
    fill(&ranges, copies, 0, &(Py_buffer){0}, &total);
    Py_END_ALLOW_THREADS
    failed = 0;
done:
    PyMem_Free(copies);
    PyBuffer_Release(&total);
    PyBuffer_Release(&target);
    release(&ranges);
    return failed ? NULL : Py_NewRef(Py_None);
}

#ifdef CRC_WORD
static PyObject *add_up(PyObject *module, PyObject *args)
{
    Ranges ranges;
    Py_buffer total = {0};
    PyObject *sums = NULL;
    int failed = 1;
    if (!PyArg_ParseTuple(args, "y*y*y*O:add_up", &ranges.memory, &ranges.starts, &ranges.stops, &sums))
        return NULL;
    if (checked(&ranges) >= 0 && summed(Py_None, sums, &ranges, NULL, &total) == 0) {
        Py_BEGIN_ALLOW_THREADS
        sum_all(&ranges, NULL, total.buf, NULL, 0);
        Py_END_ALLOW_THREADS
        failed = 0;
    }
    PyBuffer_Release(&total);
    release(&ranges);
    return failed ? NULL : Py_NewRef(Py_None);
}
#endif

static PyMethodDef methods[] = {
    {"gather", gather, METH_VARARGS, "gather(memory, starts, stops, target, sums=None)\n--\n\nCopies ranges one behind the other."},
    {"slices", slices, METH_VARARGS, "slices(memory, starts, stops, heads=None, sums=None)\n--\n\nReturns ranges as byte strings."},
    {"texts", texts, METH_VARARGS, "texts(memory, starts, stops, heads=None, sums=None)\n--\n\nReturns ranges decoded from UTF-8."},
#ifdef CRC_WORD
    {"add_up", add_up, METH_VARARGS, "add_up(memory, starts, stops, sums)\n--\n\nReplaces sums by those continued from them."},
#endif
    {NULL, NULL, 0, NULL},
};

static int add_facts(PyObject *module)
{
    is_wide = CAN_BE_WIDE;
#ifdef CRC_WORD
    if (CAN_SUM)
        make_shifts();
#endif
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
