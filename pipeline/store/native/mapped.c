/* A file that is read through a memory map, in which a page that cannot be read is no signal.
 *
 * A copy out of a map costs less than a system call that copies, above all if the page cache holds
 * the file in large pages. Pages that come in by small random reads stay small, and slow, for as
 * long as they are cached. So once a part of the file has been read, the rest is fetched by blocks
 * of 2 MB. Each block is fetched once; where memory is short, and it is dropped, later reads fetch
 * no more than they need. What is not in memory and not fetched here is left to the caller.
 *
 * The kernel sends SIGBUS for a page that a file has no more, or that its disk cannot read. While a
 * thread copies, the signal ends the copy, which is then reported as failed. Any other SIGBUS goes
 * to the handler that was there before. The rest of a file's last page reads as zeros, so the size
 * of the file is compared after a copy.
 */
#define _GNU_SOURCE
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

#include "int8.h"
#include "rows.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

#define INTERFACE 2 /* of this module; mapped.py uses no other, such as a stale one */
#define BLOCK ((size_t)2 << 20)
#define KNOWN 128
#define MAX_PARTS 64 /* that are copied at a time, without the interpreter's lock */
#define SPARSE 4 /* reads of less than this share of the file, in all, fetch no blocks */

/* A signal while a thread copies */

static __thread sigjmp_buf landing;
static __thread const char *volatile copied_from, *volatile copied_to; /* range of its map */
static struct sigaction previous;
static volatile sig_atomic_t is_passed_on;

static void on_bus_error(int number, siginfo_t *info, void *context)
{
    const char *at = info->si_addr;
    if (copied_from && at >= copied_from && at < copied_to)
        siglongjmp(landing, 1);
    if (!is_passed_on && (previous.sa_flags & SA_SIGINFO) && previous.sa_sigaction) {
        is_passed_on = 1; /* a handler that calls this one again must not do so for ever */
        previous.sa_sigaction(number, info, context);
        is_passed_on = 0;
    } else if (!is_passed_on && previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
        is_passed_on = 1;
        previous.sa_handler(number);
        is_passed_on = 0;
    } else {
        signal(number, SIG_DFL);
        raise(number);
    }
}

/* Handle SIGBUS, also if another library has set a handler since the last time. */
static bool guard_copies(void)
{
    struct sigaction now, ours;
    if (sigaction(SIGBUS, NULL, &now))
        return false;
    if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_bus_error)
        return true;
    previous = now;
    memset(&ours, 0, sizeof ours);
    ours.sa_sigaction = on_bus_error;
    ours.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK; /* NODEFER: it is left by a jump */
    return !sigaction(SIGBUS, &ours, NULL);
}

/* Begin a guarded copy; true again, by a jump, if a page cannot be read. A macro, because the
 * function that calls sigsetjmp must not return before the jump. */
#define FAILS(file) \
    (copied_to = (file)->copies + (file)->size, copied_from = (file)->copies, \
     sigsetjmp(landing, 0) != 0)
/* Nothing of the copy may be moved beyond its end. */
#define END_COPY() (atomic_signal_fence(memory_order_seq_cst), copied_from = NULL)

/* The file */

typedef struct {
    PyObject_HEAD
    int descriptor;
    size_t size;
    char *copies;   /* a map that values are copied from */
    char *fetches;  /* one that blocks are fetched by, in large pages */
    uint8_t *known; /* for each block, KNOWN if it has been fetched or was there, else visits */
    size_t n_asked; /* bytes; threads may lose some, which does no harm */
} MappedFile;

static size_t page_size;

#define TMPFS 0x01021994

/* Whether a map is of use. On file systems that are not local it is no faster, and may show old
 * content. On tmpfs a read of a hole through a map takes memory for it, until the file is deleted:
 * the space that dropped utterances have left. And where the address space is limited (`ulimit -v`,
 * some batch systems), maps would leave none for anything else. */
static bool is_mappable(int descriptor, const struct stat *status)
{
    static const unsigned long local[] = {
        0xEF53,     /* ext2, ext3, ext4 */
        0x58465342, /* XFS */
        0x9123683E, /* btrfs */
        TMPFS,
        0xF2F52010, /* F2FS */
        0x794C7630, /* overlay */
    };
    struct statfs found;
    struct rlimit space;
    if (fstatfs(descriptor, &found) || getrlimit(RLIMIT_AS, &space) ||
        space.rlim_cur != RLIM_INFINITY)
        return false;
    if (found.f_type == TMPFS && status->st_blocks < status->st_size / 512)
        return false;
    for (size_t i = 0; i < sizeof local / sizeof *local; i++)
        if ((unsigned long)found.f_type == local[i])
            return true;
    return false;
}

static void unmap(MappedFile *self)
{
    if (self->copies)
        munmap(self->copies, self->size);
    if (self->fetches)
        munmap(self->fetches, self->size);
    PyMem_Free(self->known);
}

static PyObject *mapped_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    int descriptor, whole;
    (void)keywords;
    struct stat status;
    if (!PyArg_ParseTuple(args, "ip", &descriptor, &whole))
        return NULL;
    if (fstat(descriptor, &status))
        return PyErr_SetFromErrno(PyExc_OSError);
    if (!S_ISREG(status.st_mode) || status.st_size <= 0 || !is_mappable(descriptor, &status)) {
        PyErr_SetString(PyExc_OSError, "not a file with content on a local disk");
        return NULL;
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    MappedFile *self = (MappedFile *)allocate(type, 0);
    if (!self)
        return NULL;
    self->descriptor = descriptor;
    self->size = (size_t)status.st_size;
    self->n_asked = whole ? self->size : 0;
    self->known = PyMem_Calloc(self->size / BLOCK + 1, 1);
    char *maps[2];
    for (int i = 0; i < 2; i++) {
        maps[i] = mmap(NULL, self->size, PROT_READ, MAP_SHARED, descriptor, 0);
        if (maps[i] == MAP_FAILED)
            maps[i] = NULL;
    }
    self->copies = maps[0], self->fetches = maps[1];
    if (!self->known || !self->copies || !self->fetches) {
        Py_DECREF(self);
        return self->known ? PyErr_SetFromErrno(PyExc_OSError) : PyErr_NoMemory();
    }
    madvise(self->fetches, self->size, MADV_HUGEPAGE); /* where the kernel has none: small ones */
    return (PyObject *)self;
}

static void mapped_dealloc(MappedFile *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    unmap(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static bool is_inside(const MappedFile *self, size_t offset, size_t length)
{
    return offset <= self->size && length <= self->size - offset;
}

/* Whether all pages of a range are in memory; true, too, if the system does not tell. */
static bool is_resident(const MappedFile *self, size_t offset, size_t length)
{
    unsigned char pages[512];
    size_t at = offset / page_size * page_size, end = offset + length;
    while (at < end) {
        size_t step = sizeof pages * page_size;
        if (step > end - at)
            step = end - at;
        if (mincore(self->copies + at, step, pages))
            return true;
        for (size_t i = 0; i < (step + page_size - 1) / page_size; i++)
            if (!(pages[i] & 1))
                return false;
        at += step;
    }
    return true;
}

static size_t block_size(const MappedFile *self, size_t block)
{
    size_t rest = self->size - block * BLOCK;
    return rest < BLOCK ? rest : BLOCK;
}

/* Whether a block is in memory as a whole. It is asked for at few visits, as that takes longer than
 * a small read. */
static bool is_found(MappedFile *self, size_t block)
{
    uint8_t visits = self->known[block];
    self->known[block] = visits < KNOWN - 1 ? visits + 1 : KNOWN / 2;
    if (visits & (visits - 1) || !is_resident(self, block * BLOCK, block_size(self, block)))
        return false;
    self->known[block] = KNOWN;
    return true;
}

/* Fetch the blocks of a range that no read has fetched before. A failure is left to the copy. */
static void fetch(MappedFile *self, size_t offset, size_t length)
{
    for (size_t block = offset / BLOCK; block * BLOCK < offset + length; block++) {
        if (self->known[block] == KNOWN)
            continue;
        size_t start = block * BLOCK, size = block_size(self, block);
        if (!is_resident(self, start, size)) {
            madvise(self->fetches + start, size, MADV_POPULATE_READ);
            madvise(self->fetches + start, size, MADV_DONTNEED); /* the cache keeps it */
        }
        self->known[block] = KNOWN;
    }
}

/* What a read of a range waits for. */
enum { READY = 0, RANGE = 1, BLOCKS = 2 };

static int needs(MappedFile *self, size_t offset, size_t length)
{
    bool is_known = true;
    for (size_t block = offset / BLOCK; block * BLOCK < offset + length; block++)
        is_known &= self->known[block] == KNOWN || is_found(self, block);
    if (is_known || is_resident(self, offset, length))
        return READY;
    return self->n_asked < self->size / SPARSE ? RANGE : BLOCKS;
}

/* Whether a range can be copied now; with `waits` its blocks are fetched, unless reads are few. */
static bool is_ready(MappedFile *self, size_t offset, size_t length, bool waits)
{
    int needed = needs(self, offset, length);
    if (waits)
        self->n_asked += length;
    if (needed == BLOCKS && waits)
        fetch(self, offset, length);
    return needed == READY || (needed == BLOCKS && waits);
}

/* Whether the file still has what was copied: the rest of its last page reads as zeros. Nobody uses
 * the position in the file, and to move it to the end takes a quarter of the time of fstat. */
static bool is_whole(const MappedFile *self, size_t offset, size_t length)
{
    off_t size = lseek(self->descriptor, 0, SEEK_END);
    return size >= 0 && (size_t)size >= offset + length;
}

static void copy_cached(char *to, const char *from, size_t length)
{
    memcpy(to, from, length);
}

/* Copy past the CPU's cache, which then need not fetch the destination first. */
static void stream(char *to, const char *from, size_t length)
{
#if defined(__x86_64__)
    size_t head = (size_t)(-(uintptr_t)to & 15), at = 0;
    head = head < length ? head : length;
    memcpy(to, from, head);
    to += head, from += head, length -= head;
    for (; at + 64 <= length; at += 64) {
        const __m128i *source = (const __m128i *)(from + at);
        __m128i a = _mm_loadu_si128(source), b = _mm_loadu_si128(source + 1);
        __m128i c = _mm_loadu_si128(source + 2), d = _mm_loadu_si128(source + 3);
        __m128i *target = (__m128i *)(to + at);
        _mm_prefetch(from + at + 1024, _MM_HINT_NTA);
        _mm_stream_si128(target, a), _mm_stream_si128(target + 1, b);
        _mm_stream_si128(target + 2, c), _mm_stream_si128(target + 3, d);
    }
    memcpy(to + at, from + at, length - at);
    _mm_sfence();
#else
    memcpy(to, from, length);
#endif
}

static bool copy(const MappedFile *self, const Py_buffer *parts, size_t n_parts, size_t offset,
                 bool streams)
{
    if (!guard_copies())
        return false;
    if (FAILS(self)) {
        END_COPY();
        return false;
    }
    const char *from = self->copies + offset;
    for (size_t i = 0; i < n_parts; i++) {
        (streams ? stream : copy_cached)(parts[i].buf, from, (size_t)parts[i].len);
        from += parts[i].len;
    }
    END_COPY();
    return true;
}

/* Fill some parts; return whether that was done, or -1 with an exception. */
static int read_some(MappedFile *self, PyObject *parts, Py_ssize_t first, Py_ssize_t last,
                     size_t *offset, bool waits, bool streams)
{
    Py_buffer views[MAX_PARTS];
    Py_ssize_t n = 0, length = 0;
    int done = -1;
    for (; first + n < last; n++) {
        PyObject *part = PySequence_GetItem(parts, first + n);
        if (!part)
            goto release;
        int failed = PyObject_GetBuffer(part, &views[n], PyBUF_WRITABLE);
        Py_DECREF(part);
        if (failed)
            goto release;
        length += views[n].len;
    }
    done = 0;
    if (is_inside(self, *offset, (size_t)length)) {
        Py_BEGIN_ALLOW_THREADS
        if (is_ready(self, *offset, (size_t)length, waits))
            done = copy(self, views, (size_t)n, *offset, streams) &&
                   is_whole(self, *offset, (size_t)length);
        Py_END_ALLOW_THREADS
        *offset += (size_t)length;
    }
release:
    while (n > 0)
        PyBuffer_Release(&views[--n]);
    return done;
}

static PyObject *mapped_read(MappedFile *self, PyObject *const *args, Py_ssize_t n_args, bool waits)
{
    if (n_args != 3) {
        PyErr_SetString(PyExc_TypeError, "expected parts, an offset, and whether to stream");
        return NULL;
    }
    int streams = PyObject_IsTrue(args[2]);
    Py_ssize_t n_parts = PySequence_Size(args[0]);
    size_t offset = PyLong_AsSize_t(args[1]);
    if (n_parts < 0 || PyErr_Occurred())
        return NULL;
    int done = 1;
    for (Py_ssize_t first = 0; done > 0 && first < n_parts; first += MAX_PARTS) {
        Py_ssize_t last = n_parts - first < MAX_PARTS ? n_parts : first + MAX_PARTS;
        done = read_some(self, args[0], first, last, &offset, waits, streams);
    }
    return done < 0 ? NULL : PyBool_FromLong(done);
}

static PyObject *read_into(PyObject *self, PyObject *const *args, Py_ssize_t n_args)
{
    return mapped_read((MappedFile *)self, args, n_args, true);
}

static PyObject *read_ready(PyObject *self, PyObject *const *args, Py_ssize_t n_args)
{
    return mapped_read((MappedFile *)self, args, n_args, false);
}

/* Parse an offset and a length of bytes in the file; a length of 0 if they are not. */
static bool parse_range(const MappedFile *self, PyObject *args, size_t *offset, size_t *length)
{
    Py_ssize_t first, n;
    if (!PyArg_ParseTuple(args, "nn", &first, &n))
        return false;
    bool is_valid = first >= 0 && n >= 0 && is_inside(self, (size_t)first, (size_t)n);
    *offset = is_valid ? (size_t)first : 0, *length = is_valid ? (size_t)n : 0;
    return true;
}

static PyObject *needs_range(PyObject *self, PyObject *args)
{
    size_t offset, length;
    if (!parse_range((MappedFile *)self, args, &offset, &length))
        return NULL;
    return PyLong_FromLong(needs((MappedFile *)self, offset, length));
}

static PyObject *fetch_range(PyObject *self, PyObject *args)
{
    size_t offset, length;
    if (!parse_range((MappedFile *)self, args, &offset, &length))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    fetch((MappedFile *)self, offset, length);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *decode_int8(PyObject *object, PyObject *const *args, Py_ssize_t n_args)
{
    MappedFile *self = (MappedFile *)object;
    Py_buffer scales, out;
    if (n_args != 4) {
        PyErr_SetString(PyExc_TypeError,
                        "expected an offset, scales, a destination, and whether to stream");
        return NULL;
    }
    int streams = PyObject_IsTrue(args[3]);
    size_t offset = PyLong_AsSize_t(args[0]);
    if (PyErr_Occurred() || PyObject_GetBuffer(args[1], &scales, PyBUF_SIMPLE))
        return NULL;
    if (PyObject_GetBuffer(args[2], &out, PyBUF_WRITABLE)) {
        PyBuffer_Release(&scales);
        return NULL;
    }
    int level = strata_int8_level();
    size_t dim = (size_t)scales.len / (2 * sizeof(float));
    size_t length = (size_t)out.len / sizeof(uint16_t);
    volatile int done = 0;
    if (level && dim && length % dim == 0 && is_inside(self, offset, length)) {
        Py_BEGIN_ALLOW_THREADS
        if (is_ready(self, offset, length, true) && guard_copies()) {
            if (!FAILS(self)) {
                strata_int8_decode(level, (const int8_t *)self->copies + offset, length / dim, dim,
                                   scales.buf, out.buf, NULL, streams);
                done = is_whole(self, offset, length);
            }
            END_COPY();
        }
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&scales);
    PyBuffer_Release(&out);
    return PyBool_FromLong(done);
}

/* Pointers and numbers are those that a RowScatter has checked. */
static PyObject *place_rows(PyObject *object, PyObject *const *args, Py_ssize_t n_args)
{
    MappedFile *self = (MappedFile *)object;
    size_t given[6];
    if (n_args != 6) {
        PyErr_SetString(PyExc_TypeError, "expected an offset and what strata_place_rows takes");
        return NULL;
    }
    for (int i = 0; i < 6; i++)
        given[i] = PyLong_AsSize_t(args[i]);
    if (PyErr_Occurred())
        return NULL;
    size_t offset = given[0], n = given[2], row_bytes = given[3], length = n * row_bytes;
    const uintptr_t *to = (const uintptr_t *)given[1];
    volatile int done = 0;
    if (is_inside(self, offset, length)) {
        Py_BEGIN_ALLOW_THREADS
        if (is_ready(self, offset, length, true) && guard_copies()) {
            if (!FAILS(self)) {
                strata_place_rows(self->copies + offset, to, n, row_bytes, given[4], given[5]);
                done = is_whole(self, offset, length);
            }
            END_COPY();
        }
        Py_END_ALLOW_THREADS
    }
    return PyBool_FromLong(done);
}

static PyMethodDef methods[] = {
    {"read_into", (PyCFunction)(void (*)(void))read_into, METH_FASTCALL,
     "read_into(parts, offset, streams): fill writable buffers; return whether that was done."},
    {"read_ready", (PyCFunction)(void (*)(void))read_ready, METH_FASTCALL,
     "read_ready(parts, offset, streams): the same, if the bytes are in memory."},
    {"decode_int8", (PyCFunction)(void (*)(void))decode_int8, METH_FASTCALL,
     "decode_int8(offset, scales, out, streams): decode int8 to float16; return whether that was done."},
    {"needs", needs_range, METH_VARARGS, "needs(offset, length): what a read waits for."},
    {"fetch", fetch_range, METH_VARARGS, "fetch(offset, length): fetch the blocks of a range."},
    {"place_rows", (PyCFunction)(void (*)(void))place_rows, METH_FASTCALL,
     "place_rows(offset, to, n, row_bytes, shift, alignment): as strata_place_rows, from the file."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, mapped_new},
    {Py_tp_dealloc, mapped_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_doc, "MappedFile(descriptor, whole): a map of a file, which must stay open."},
    {0, NULL},
};

static PyType_Spec spec = {
    "pipeline.store.native._mapped.MappedFile", sizeof(MappedFile), 0, Py_TPFLAGS_DEFAULT, slots,
};

static struct PyModuleDef module = {.m_base = PyModuleDef_HEAD_INIT, .m_name = "_mapped", .m_size = -1};

PyMODINIT_FUNC PyInit__mapped(void)
{
    page_size = (size_t)sysconf(_SC_PAGESIZE);
    PyObject *made = PyModule_Create(&module), *type = PyType_FromSpec(&spec);
    if (!made || !type || PyModule_AddObjectRef(made, "MappedFile", type) ||
        PyModule_AddIntConstant(made, "INTERFACE", INTERFACE)) {
        Py_XDECREF(made);
        made = NULL;
    }
    Py_XDECREF(type);
    return made;
}
