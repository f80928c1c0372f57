/* Many slices of one piece of memory as byte strings, by one call. See byte_strings.py, which does without where this was not built. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) || defined(_M_X64)
#include <emmintrin.h>
#endif

/* So many bytes are copied without the interpreter's lock: a thread that has to wait for it again may wait for milliseconds. */
#define UNLOCKED_BYTES (1 << 20)

/* From this size on copies go past the processor's caches: thousands of them push all else out of there, and each line that is
   written would first be read. */
#define STREAMED_BYTES (16 << 10)

typedef struct {
    char *target;
    const char *source;
    size_t size;
} Copy;

static void copy_one(Copy copy)
{
#if defined(__x86_64__) || defined(_M_X64)
    if (copy.size >= STREAMED_BYTES) {
        size_t before = -(uintptr_t)copy.target & 15;
        memcpy(copy.target, copy.source, before);
        char *target = copy.target + before;
        const char *source = copy.source + before;
        size_t rest = copy.size - before;
        for (; rest >= 64; rest -= 64, source += 64, target += 64) {
            __m128i a = _mm_loadu_si128((const __m128i *)source);
            __m128i b = _mm_loadu_si128((const __m128i *)source + 1);
            __m128i c = _mm_loadu_si128((const __m128i *)source + 2);
            __m128i d = _mm_loadu_si128((const __m128i *)source + 3);
            _mm_stream_si128((__m128i *)target, a);
            _mm_stream_si128((__m128i *)target + 1, b);
            _mm_stream_si128((__m128i *)target + 2, c);
            _mm_stream_si128((__m128i *)target + 3, d);
        }
        memcpy(target, source, rest);
        return;
    }
#endif
    memcpy(copy.target, copy.source, copy.size);
}

static void copy_all(const Copy *copies, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++)
        copy_one(copies[i]);
#if defined(__x86_64__) || defined(_M_X64)
    /* Streamed bytes are to be seen by whoever gets them next. */
    _mm_sfence();
#endif
}

/* Makes the byte strings, not filled yet, and notes what goes where. */
static PyObject *make_all(const Py_buffer *memory, const int64_t *starts, const int64_t *stops, Copy *copies, Py_ssize_t count,
                          size_t *total)
{
    PyObject *list = PyList_New(count);
    if (list == NULL)
        return NULL;
    for (Py_ssize_t i = 0; i < count; i++) {
        int64_t start = starts[i], stop = stops[i];
        if (start < 0 || stop < start || stop > memory->len) {
            PyErr_Format(PyExc_ValueError, "bytes %lld to %lld are not within %zd", (long long)start, (long long)stop, memory->len);
            Py_DECREF(list);
            return NULL;
        }
        PyObject *made = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(stop - start));
        if (made == NULL || PyList_SetItem(list, i, made) < 0) {
            Py_DECREF(list);
            return NULL;
        }
        copies[i] = (Copy){PyBytes_AsString(made), (const char *)memory->buf + start, (size_t)(stop - start)};
        *total += copies[i].size;
    }
    return list;
}

static PyObject *slices(PyObject *module, PyObject *args)
{
    Py_buffer memory, starts, stops;
    PyObject *list = NULL;
    size_t total = 0;
    if (!PyArg_ParseTuple(args, "y*y*y*:slices", &memory, &starts, &stops))
        return NULL;
    Py_ssize_t count = starts.len / (Py_ssize_t)sizeof(int64_t);
    if (starts.len != stops.len || starts.len % (Py_ssize_t)sizeof(int64_t)) {
        PyErr_SetString(PyExc_ValueError, "starts and stops must be int64 and equally many");
        goto done;
    }
    Copy *copies = PyMem_Malloc((size_t)(count ? count : 1) * sizeof(Copy));
    if (copies == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    list = make_all(&memory, starts.buf, stops.buf, copies, count, &total);
    if (list != NULL) {
        if (total < UNLOCKED_BYTES) {
            copy_all(copies, count);
        } else {
            Py_BEGIN_ALLOW_THREADS
            copy_all(copies, count);
            Py_END_ALLOW_THREADS
        }
    }
    PyMem_Free(copies);
done:
    PyBuffer_Release(&memory);
    PyBuffer_Release(&starts);
    PyBuffer_Release(&stops);
    return list;
}

static PyMethodDef methods[] = {
    {"slices", slices, METH_VARARGS, "slices(memory, starts, stops)\n--\n\nReturns slices of memory as new byte strings."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_slices", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__slices(void)
{
    return PyModuleDef_Init(&definition);
}
